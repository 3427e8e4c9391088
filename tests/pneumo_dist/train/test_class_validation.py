"""A classifier in training: its score, the same on any number of ranks, its logs, and an exact resume."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import tiny_experiment
from sklearn.metrics import roc_auc_score
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensors import same
from threaded_ranks import on_ranks

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.data.films import InputSpec
from pneumo_dist.data.loader import eval_loader
from pneumo_dist.data.plan import split_fold
from pneumo_dist.network.build import build_model
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import Preempted, StopRequested
from pneumo_dist.report.inputs import read_history
from pneumo_dist.report.plots import draw_curves
from pneumo_dist.runs.checkpoint import load_checkpoint, weights_of
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train import stage as trainer
from pneumo_dist.train.class_validation import ClassValidation, roc_area, validate_classes
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.validation import ValidationFilms
from shards.dataset.table import Shards

ALONE = Ranks.alone()
MODEL: dict[str, Any] = {
    **{"arch": "classifier", "encoder": "tu-mobilenetv3_small_050", "in_channels": 1},
    "classification": {"dropout": 0.2},
}
LOSS = {"bce": 0, "dice": 0, "focal": 0, "classification": 1}
EXPERIMENT = tiny_experiment(
    {"name": "main", "image_size": 64, "epochs": 3, "micro_batch": 2, "top_k": 9, "loss": LOSS},
    model=MODEL,
    data={"loader": "torch"},
)


def train(experiment: Experiment, films: Shards, runs: Path) -> Path:
    train_fold(FoldRun(experiment, 0, films, runs / "fold0", ALONE), lambda _: "resolved: true\n")
    return runs / "fold0/main"


@pytest.fixture(scope="module")
def stage(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(EXPERIMENT, films, tmp_path_factory.mktemp("classifier"))


def states(stage: Path) -> list[dict[str, Any]]:
    files = sorted(CheckpointFolder(stage / "checkpoints").files(), key=lambda file: file.step)
    return [load_checkpoint(file.path) for file in files]


@pytest.mark.parametrize("seed", range(5))
def test_score_is_the_share_of_pairs_in_the_right_order(seed: int) -> None:
    random = np.random.default_rng(seed)
    positive = np.arange(40) % (2 + seed) == 0
    scores = random.integers(0, 12, 40).astype(float) + positive  # with ties
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert roc_area(positive, scores) == pytest.approx(np.mean(pairs), abs=1e-12)
    assert roc_area(positive, scores) == pytest.approx(roc_auc_score(positive, scores), abs=1e-12)


def test_score_without_a_class_or_a_number_says_nothing() -> None:
    assert roc_area(np.ones(4, bool), np.arange(4.0)) == roc_area(np.zeros(4, bool), np.arange(4.0)) == 0.5
    assert roc_area(np.arange(4) > 1, np.full(4, np.nan)) == 0.5


def validation_of(
    model: torch.nn.Module, films: Shards, ranks: Ranks, check: Callable[[], object] = lambda: None
) -> ClassValidation:
    rows = split_fold(films, 0, always_train=False).validation
    spec = InputSpec(64, 1, EXPERIMENT.data)
    loader = eval_loader(films, rows, EXPERIMENT.stages[0], spec, ranks.rank, ranks.world, with_mask=True)
    rounds = -(-len(loader_batches(rows)) // ranks.world)
    chosen = ValidationFilms(films, loader, rounds, frozenset())
    return validate_classes(model, chosen, EXPERIMENT.stages[0].loss, ranks, "float32", check)


def loader_batches(rows: np.ndarray[Any, Any]) -> list[int]:
    return list(range(0, len(rows), EXPERIMENT.stages[0].eval_batch))


def test_logged_figures_are_those_of_plain_calls_of_the_saved_network(stage: Path, films: Shards) -> None:
    made = states(stage)
    model = build_model(EXPERIMENT.model, pretrained=False)
    model.load_state_dict(weights_of(made[-1]))
    model.eval()
    rows = split_fold(films, 0, always_train=False).validation
    loader = eval_loader(films, rows, EXPERIMENT.stages[0], InputSpec(64, 1, EXPERIMENT.data), 0, 1, with_mask=True)
    logits: dict[int, float] = {}
    for batch in loader:
        with torch.no_grad():
            found = model(batch.images)[1][:, 0].tolist()
        logits.update(zip(batch.indices.tolist(), found, strict=False))
    positive = films.column("has_mask")[rows].astype(bool)
    values = np.array([logits[row] for row in rows.tolist()])
    loss = np.mean(np.log1p(np.exp(np.where(positive, -values, values))))
    record = made[-1]["history"][-1]
    assert record["score"] == pytest.approx(roc_auc_score(positive, values), abs=1e-12)
    assert record["accuracy_at_half"] == np.mean((values > 0) == positive)
    assert record["validation_loss"] == pytest.approx(loss, rel=1e-5)
    assert 0 <= record["training_f1"] <= 1 and record["loss"] == record["classification"] > 0
    assert len({state["history"][-1]["validation_loss"] for state in made}) == 3, "it learns"


@pytest.mark.slow
def test_ranks_agree_on_the_figures_of_one_rank(stage: Path, films: Shards) -> None:
    def validated(ranks: Ranks) -> ClassValidation:
        model = build_model(EXPERIMENT.model, pretrained=False)
        model.load_state_dict(weights_of(states(stage)[-1]))
        return validation_of(model, films, ranks)

    alone, (found, _) = validated(ALONE), on_ranks(2, validated)
    assert found == [alone, alone]


def test_checkpoints_are_ranked_by_the_area_under_the_roc_curve(stage: Path) -> None:
    history = states(stage)[-1]["history"]
    best = load_checkpoint(stage / "checkpoints/best")["history"][-1]
    assert best["score"] == max(epoch["score"] for epoch in history)


def test_logs_say_what_the_score_is(stage: Path) -> None:
    lines = [json.loads(line) for line in (stage / "metrics.jsonl").read_text().splitlines()]
    assert len(lines) == 3 and not any("dice" in name for line in lines for name in line)
    board = EventAccumulator(str(stage / "tensorboard"))
    board.Reload()
    tags = {tag for tag in board.Tags()["scalars"] if not tag.startswith(("train_step/", "epoch/"))}
    assert tags == {
        *("loss/training", "loss/validation", "film_f1/training", "film_roc_auc/score", "film_accuracy/at_half"),
        "best_score",
    }
    scores = [event.value for event in board.Scalars("film_roc_auc/score")]
    assert scores == pytest.approx([line["score"] for line in lines])
    history = read_history(stage.parents[1])
    assert draw_curves(history["main"]).startswith(b"\x89PNG")


@pytest.mark.slow
def test_run_stopped_in_training_and_in_validation_ends_with_the_same_bits(
    stage: Path, films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step, calls = trainer.StageRun._note, 0

    def stopping(self: trainer.StageRun, *arguments: Any) -> None:
        nonlocal calls
        step(self, *arguments)
        calls += 1
        if calls == 4:
            raise StopRequested

    def never(*arguments: Any) -> ClassValidation:
        raise StopRequested

    monkeypatch.setattr(trainer.StageRun, "_note", stopping)
    with pytest.raises(Preempted):
        train(EXPERIMENT, films, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(trainer, "validate_classes", never)
        with pytest.raises(Preempted):
            train(EXPERIMENT, films, tmp_path)
    again = states(train(EXPERIMENT, films, tmp_path))
    assert calls > 4
    for one, other in zip(states(stage), again, strict=True):
        assert one["history"] == other["history"] and same(one["model"], other["model"])
