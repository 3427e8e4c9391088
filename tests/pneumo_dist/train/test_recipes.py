"""Every shipped config trains, all its stages, a few steps each, on films of 64 pixels; recipe A's blends predict."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from tiny_runs import Trained, stored

from pneumo_dist.cli.app import app
from pneumo_dist.config.ensemble import EnsembleConfig, load_either
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import load_config
from pneumo_dist.config.shipped import shipped_configs
from pneumo_dist.maps.store import Predictions
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.runs.checkpoint import load_checkpoint
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.step import Learner
from shards.console import EXIT_DONE, run
from shards.dataset.table import Shards

pytestmark = pytest.mark.slow

CONFIGS = sorted(path for path in (Path(__file__).parents[3] / "configs").glob("*.yaml") if path.name != "base.yaml")
ALONE = Ranks.alone()
# Changes for a laptop without a hub. Optimizer, schedule, loss, sampling, freezing and heads are the recipe's.
SMALL = (
    *("image_size=64", "epochs=1", "global_batch=2", "micro_batch=2", "eval_batch=6", "repeat=null", "early_stop=null"),
    *("model.encoder_weights=null", "amp=float32", "data.threads=1"),
)


def small(path: Path) -> tuple[str, ...]:
    """Return the changes for a config; its films stay larger than its crops, and three positive films are two steps."""
    stages = load_config(path).experiment.stages
    has_crops = any(stage.eval_image_size for stage in stages)
    has_few = any(stage.sample_rate == 1 for stage in stages)
    return (*SMALL, *["eval_image_size=96"] * has_crops, *["global_batch=1", "micro_batch=1"] * has_few)


@pytest.fixture
def runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A folder for gigabytes of checkpoints, which are not synced to disk and not resumed.

    Writing takes most of the time here, and files without the optimizer's moments are half as large.
    """
    state = Learner.state
    monkeypatch.setattr(os, "fsync", lambda descriptor: None)
    monkeypatch.setattr(Learner, "state", lambda learner: {**state(learner), "optimizer": {}})
    yield tmp_path / "runs"
    shutil.rmtree(tmp_path / "runs", ignore_errors=True)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_every_stage_of_a_shipped_config_trains_and_leaves_a_checkpoint(path: Path, films: Shards, runs: Path) -> None:
    experiment = load_config(path, small(path)).experiment
    folder = runs / experiment.name / "fold0"
    train_fold(FoldRun(experiment, 0, films, folder, ALONE), lambda _: "resolved: true\n")
    previous: list[str] = []
    best_so_far, best_score = previous, -1.0
    for stage in experiment.stages:
        state = load_checkpoint(folder / stage.name / "checkpoints" / "best")
        previous = [*(best_so_far if stage.init_from == "best_so_far" else previous), stage.name]
        assert [ancestor["stage"] for ancestor in state["lineage"]] == previous
        assert state["position"]["finished"] and state["position"]["total"] >= 2
        (record,) = state["history"]
        if record["score"] > best_score:
            best_so_far, best_score = previous, record["score"]
        assert 0 <= record["score"] <= 1 and record["loss"] > 0 and record["validation_loss"] > 0
        assert all(value.isfinite().all() for value in state["model"].values())
        assert (state["averaged"] is None) == (stage.optim.ema_decay is None and stage.optim.swa_epochs is None)
        assert ("classification" in record) == (stage.loss.classification > 0)
    assert sorted(entry.name for entry in folder.iterdir() if entry.is_dir()) == sorted(
        each.name for each in experiment.stages
    )


def test_blends_of_recipe_a_go_from_training_to_a_submission(trained: Trained, runs: Path, tmp_path: Path) -> None:
    names = ("albunet_public", "albunet_valid", "seunet", "resnet50")
    for name in names:
        experiment = load_config(CONFIGS[0].parent / f"{name}.yaml", SMALL).experiment
        folder = runs / name / "fold0"
        train_fold(FoldRun(experiment, 0, trained.shards, folder, ALONE), Experiment.model_dump_json)  # JSON is YAML
    own = Trained(trained.shards, runs)
    alone = [
        stored(own, own.ensemble(members=[{"experiment": name, "folds": [0]}]), tmp_path / name, "oof", folds=(0,))
        for name in names
    ]
    for blend in ("recipe_a_first", "recipe_a_second", "recipe_a_suspected"):
        config = load_either(shipped_configs()[blend])
        assert isinstance(config, EnsembleConfig)
        weights = [member.weight for member in config.members]
        given = ("--config", blend, "--runs", str(runs))
        films = ("--shards", str(trained.shards.folder), "--fold", "0", "--cpu")
        for command in (("predict", *films, "--split", "oof"), ("predict", *films), ("submit",)):
            assert run(app, "pneumo_dist", [*command, *given]) == EXIT_DONE
        out_of_fold = Predictions(runs / blend / "oof/predictions")
        parts = out_of_fold.manifest["parts"]
        assert [part["weight"] for part in parts] == pytest.approx(weights)
        assert [part["name"].split("/")[0] for part in parts] == list(names)
        assert len(out_of_fold) == 6
        for number, (_, p8) in enumerate(out_of_fold):
            mean = sum(weight * each.p8(number) for weight, each in zip(weights, alone, strict=True))
            assert np.abs(p8 - mean).max() <= 1 + 1e-3, "each of the two roundings is half a level at most"
        header, *rows = (runs / blend / "test/submission.csv").read_text().splitlines()
        test = trained.shards.column("image_id")[trained.shards.indices("test")]
        assert header == "ImageId,EncodedPixels" and {row.split(",")[0] for row in rows} == set(test)
