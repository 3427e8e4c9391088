"""Every shipped config trains: all its stages, a few steps each, on films of 64 pixels."""

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumo_dist.config.load import load_config
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.runs.checkpoint import load_checkpoint
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.step import Learner
from shards.dataset.table import Shards

pytestmark = pytest.mark.slow

CONFIGS = sorted(path for path in (Path(__file__).parents[3] / "configs").glob("*.yaml") if path.name != "base.yaml")
ALONE = Ranks.alone()
# Changes for a laptop without a hub. Optimizer, schedule, loss, sampling, freezing and heads are the recipe's.
SMALL = (
    *("image_size=64", "epochs=1", "global_batch=2", "micro_batch=2", "eval_batch=6", "repeat=null", "early_stop=null"),
    *("model.encoder_weights=null", "amp=float32", "data.threads=1"),
)


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
    experiment = load_config(path, SMALL).experiment
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
