"""A stage on one rank: the mean of its last epochs, stops, logs and a trace."""

import csv
import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_experiment
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensors import same
from torch.optim.swa_utils import update_bn

from pneumo_dist.cli.app import app
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.loader import eval_loader
from pneumo_dist.data.plan import split_fold
from pneumo_dist.network.batch_norm import recompute_statistics
from pneumo_dist.network.build import build_model
from pneumo_dist.network.fcn import Fcn
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import Preempted
from pneumo_dist.runs.checkpoint import load_checkpoint
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.logs import METRICS, read_epochs
from pneumo_dist.train import stage as trainer
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.monitor import BEST_SCORE, PIXEL_DICE, epoch_tag
from pneumo_dist.train.profiling import TRACE
from pneumo_dist.train.validation import ValidationFilms, validate
from shards import console
from shards.dataset.table import Shards

ALONE = Ranks.alone()
SGD = {"name": "sgd", "lr": 0.05}
SWA = {**SGD, "swa_epochs": 2}


def one_stage(**stage: Any) -> Experiment:
    return tiny_experiment({"name": "main", "eval_batch": 4, "top_k": 9, **stage}, data={"loader": "torch"})


def train(experiment: Experiment, films: Shards, runs: Path) -> Path:
    train_fold(FoldRun(experiment, 0, films, runs / "fold0", ALONE), lambda _: "resolved: true\n")
    return runs / "fold0/main"


def states(stage: Path) -> list[dict[str, Any]]:
    files = sorted(CheckpointFolder(stage / "checkpoints").files(), key=lambda file: file.step)
    return [load_checkpoint(file.path) for file in files]


# The mean of the last epochs


@pytest.fixture(scope="module")
def straight(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A stage of four epochs without faults; the last two are averaged."""
    return train(one_stage(epochs=4, optim=SWA), films, tmp_path_factory.mktemp("straight"))


def test_averaged_weights_have_statistics_of_the_training_films(straight: Path, films: Shards) -> None:
    experiment, made = one_stage(), states(straight)
    stage = experiment.stages[0]
    assert [state["averaged_epochs"] for state in made] == [0, 0, 1, 2]
    rows = split_fold(films, 0, always_train=False).train
    loader = eval_loader(films, rows, stage, InputSpec(96, 1, experiment.data), 0, 1, with_mask=False)
    batches = [batch.images[: len(batch.indices)] for batch in loader]
    assert sum(map(len, batches)) == len(rows) == 6 and len(batches[-1]) < len(batches[0])
    model = build_model(experiment.model, pretrained=False)
    model.load_state_dict(made[3]["averaged"])
    update_bn(batches, model)
    for name, value in model.state_dict().items():
        torch.testing.assert_close(made[3]["averaged"][name], value, rtol=1e-6, atol=1e-6)
    assert not torch.allclose(made[3]["averaged"]["encoder.1.running_var"], made[3]["model"]["encoder.1.running_var"])


def test_a_stage_trains_on_crops_and_does_everything_else_on_whole_films(
    films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[bool, int]] = []
    forward = Fcn.forward

    def spy(network: Fcn, images: torch.Tensor) -> torch.Tensor:
        seen.append((network.training, images.shape[-1]))
        return forward(network, images)

    monkeypatch.setattr(Fcn, "forward", spy)
    experiment = one_stage(image_size=64, eval_image_size=96, epochs=2, optim={**SGD, "swa_epochs": 1})
    stage = train(experiment, films, tmp_path / "x")
    whole = 2 * 2 + 2  # batches of validation in both epochs, and of the statistics of the mean
    assert Counter(seen) == {(True, 64): 2 * 3 * 2, (False, 96): whole}
    rows = split_fold(films, 0, always_train=False).validation
    spec = InputSpec(96, 1, experiment.data)
    loader = eval_loader(films, rows, experiment.stages[0], spec, 0, 1, with_mask=True)
    state = states(stage)[-1]
    network = build_model(experiment.model, pretrained=False)
    network.load_state_dict(state["averaged"])
    again = validate(
        network,
        ValidationFilms(films, loader, len(list(loader)), frozenset()),
        experiment.stages[0].loss,
        ALONE,
        "float32",
    )
    assert again.figures() == {name: state["history"][-1][name] for name in again.figures()}


def stopped_in_statistics(model: torch.nn.Module, batches: Any, *arguments: Any) -> None:
    def interrupted() -> Iterator[Batch]:
        for batch in batches:
            os.kill(os.getpid(), signal.SIGUSR1)
            yield batch

    recompute_statistics(model, interrupted(), *arguments)


def stopped_in_validation(*arguments: Any) -> Any:
    os.kill(os.getpid(), signal.SIGUSR1)
    return validate(*arguments)


@pytest.mark.parametrize(
    ("name", "stopped"), [("recompute_statistics", stopped_in_statistics), ("validate", stopped_in_validation)]
)
def test_run_stopped_while_it_averages_ends_with_the_same_bits(
    films: Shards, tmp_path: Path, straight: Path, monkeypatch: pytest.MonkeyPatch, name: str, stopped: Any
) -> None:
    experiment, whole = one_stage(epochs=4, optim=SWA), getattr(trainer, name)
    calls = 0

    def sometimes(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        return (stopped if calls in (1, 3) else whole)(*arguments)

    monkeypatch.setattr(trainer, name, sometimes)
    for _ in range(2):
        with pytest.raises(Preempted):
            train(experiment, films, tmp_path)
    stage = train(experiment, films, tmp_path)
    for one, other in zip(states(straight), states(stage), strict=True):
        assert one["history"] == other["history"] and one["position"] == other["position"]
        assert same(one["model"], other["model"])
        assert (one["averaged"] is None) == (other["averaged"] is None)
        assert one["averaged"] is None or same(one["averaged"], other["averaged"])
    assert len(read_epochs(stage / METRICS)) == len(read_epochs(straight / METRICS)) == 4


# Logs

LOGGED = {
    *("loss", "bce", "dice", "focal", "training_dice", "validation_loss", "score", "positive_dice", "dice_at_half"),
    *("always_empty", "top", "area", "bottom", "lr", "grad_norm", "scale", "sample_rate", "bad_steps"),
    "overflowed_steps",
}
MEASURED = {"images_per_s", "data_wait_share", "peak_memory_mb"}


@pytest.fixture(scope="module")
def board(straight: Path) -> EventAccumulator:
    made = EventAccumulator(str(straight / "tensorboard"), size_guidance={"images": 0})
    made.Reload()
    return made


def test_every_figure_of_an_epoch_is_in_all_three_logs(straight: Path, board: EventAccumulator) -> None:
    lines = read_epochs(straight / METRICS)
    rows = list(csv.DictReader((straight / "summary.csv").open()))
    history = states(straight)[-1]["history"]
    assert len(lines) == len(rows) == 4
    place = {"stage", "epoch", "step"}
    assert {*lines[0]} == LOGGED | MEASURED | place and {*rows[0]} == LOGGED | MEASURED | place
    tags = {tag for tag in board.Tags()["scalars"] if not tag.startswith("train_step/")}
    assert tags == {*map(epoch_tag, LOGGED | MEASURED), PIXEL_DICE, BEST_SCORE}
    for number, (line, row, record) in enumerate(zip(lines, rows, history, strict=True)):
        assert {name: line[name] for name in record} == record
        assert row == {name: str(value) for name, value in line.items()}
        for name in LOGGED | MEASURED:
            event = board.Scalars(epoch_tag(name))[number]
            assert event.step == record["step"] and event.value == pytest.approx(line[name], rel=1e-6)
        best = max(each["score"] for each in history[: number + 1])
        assert board.Scalars(BEST_SCORE)[number].value == pytest.approx(best, rel=1e-6)


def test_every_step_is_logged(straight: Path, board: EventAccumulator) -> None:
    record = states(straight)[-1]["history"][-1]
    losses = {name: f"{name}_loss" for name in ("bce", "dice", "focal")}
    for name in ("loss", *losses, "lr", "grad_norm", "scale"):
        steps = board.Scalars(f"train_step/{losses.get(name, name)}")
        assert [event.step for event in steps] == list(range(1, record["step"] + 1))
        if name != "scale":
            mean = sum(event.value for event in steps[-3:]) / 3
            assert mean == pytest.approx(record[name], rel=1e-5), "an epoch is the mean of its three steps"


def test_config_result_curve_and_films_are_logged(straight: Path, board: EventAccumulator) -> None:
    tags = board.Tags()
    assert "config/text_summary" in tags["tensors"] and "validation/pixels" in tags["tensors"]
    (text,) = board.Tensors("config/text_summary")
    assert b'"swa_epochs": 2' in text.tensor_proto.string_val[0]
    # A film whose Dice changes has several tags.
    shown = Counter(tag.split("/")[1] for tag in tags["images"] for _ in board.Images(tag))
    assert shown == {"fixed": 12, "worst": 12}, "three positive films in each of four epochs"
    assert len(board.Tensors("validation/pixels")) == 4
    summaries = board.SummaryMetadata("_hparams_/session_start_info").plugin_data.content
    assert b"encoder" in summaries
    assert board.SummaryMetadata("_hparams_/session_end_info") is not None


# A trace


def test_stage_is_traced_in_its_first_epoch_on_request(films: Shards, tmp_path: Path) -> None:
    experiment = one_stage(epochs=2, global_batch=1, optim=SGD)
    (tmp_path / "x.yaml").write_text(json.dumps(experiment.model_dump(mode="json")))
    command = ["train", "--cpu", "--profile", "--config", str(tmp_path / "x.yaml"), "--fold", "0"]
    arguments = [*command, "--shards", str(films.folder), "--runs", str(tmp_path)]
    assert console.run(app, "pneumo_dist", arguments) == 0
    events = json.loads((tmp_path / "x/fold0/main/tensorboard" / TRACE).read_text())["traceEvents"]
    steps = {event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep#")}
    assert steps == {f"ProfilerStep#{number}" for number in range(4, 7)}, "six films are six steps"
