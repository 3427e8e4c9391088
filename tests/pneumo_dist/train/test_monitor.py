"""The logs of a stage: cut to a checkpoint, silent on other ranks, and curves compared with counting."""

import csv
import json
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from builders import experiment_of
from tensorboard.backend.event_processing.data_provider import MultiplexerDataProvider
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.backend.event_processing.plugin_event_multiplexer import EventMultiplexer
from tensorboard.plugins.base_plugin import TBContext
from tensorboard.plugins.custom_scalar import layout_pb2
from tensorboard.plugins.hparams.hparams_plugin import HParamsPlugin
from werkzeug.test import Client

from pneumo_dist.runs.logs import METRICS, SUMMARY, logged_bytes, read_epochs, write_summary
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.train import monitor as logs
from pneumo_dist.train.monitor import Monitor, draw_overlay, pixel_dice, pr_curve, settings
from pneumo_dist.train.validation import Overlay, Validation
from shards.errors import InputError
from shards.palette import LABEL, PREDICTION

SCORE = Score(0.5, 0.4, 0.3, 4, 2)
PLANES = np.arange(64, dtype=np.uint8).reshape(8, 8)
RESULT = Validation(
    Triplet(0.5, 3, 0.25),
    SCORE,
    SCORE,
    0.7,
    (Overlay("worst/1", "film7", PLANES, PLANES % 2, PLANES, 0.26, 0.31, True),),
    np.ones((2, 256), int),
)


def record_of(epoch: int, **values: Any) -> dict[str, Any]:
    figures = {"loss": 1.5, **RESULT.figures(), "images_per_s": 9.0, **values}
    return {"stage": "main", "epoch": epoch, "step": 3 * (epoch + 1), **figures}


def write_epochs(monitor: Monitor, *epochs: int) -> None:
    for epoch in epochs:
        monitor.start_epoch("epoch", 3, 0)
        monitor.step(3 * epoch + 1, {"loss": 2.0, "lr": 0.1})
        monitor.bad_step("main", epoch, 3 * epoch + 2, ["a", "b"])
        monitor.epoch(3 * (epoch + 1), record_of(epoch), RESULT, 0.5)


def test_lines_after_the_checkpoint_of_a_killed_run_are_removed(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, True, 0, 0, True)
    write_epochs(monitor, 0, 1)
    monitor.close()
    whole = (tmp_path / METRICS).read_text()
    again = Monitor(tmp_path, True, 3, 1, False)
    again.sync()
    assert (tmp_path / METRICS).read_text() == "".join(whole.splitlines(keepends=True)[:2])
    write_epochs(again, 1)
    again.close()
    assert (tmp_path / METRICS).read_text() == whole
    assert [line["epoch"] for line in read_epochs(tmp_path / METRICS)] == [0, 1]
    assert len(whole.splitlines()) == 4
    assert json.loads(whole.splitlines()[0])["bad_step_films"] == ["a", "b"]


@pytest.mark.parametrize(
    ("step", "epochs", "kept"),
    [(0, 0, 0), (1, 0, 0), (2, 0, 1), (3, 0, 1), (3, 1, 2), (5, 1, 3), (6, 1, 3), (6, 2, 4), (99, 99, 4)],
    ids=lambda value: str(value),
)
def test_lines_up_to_a_checkpoint_are_kept(tmp_path: Path, step: int, epochs: int, kept: int) -> None:
    """Bad steps are 2 and 5; epochs end after 3 and 6. After step 6 an epoch may still be without its validation."""
    monitor = Monitor(tmp_path, True, 0, 0, True)
    write_epochs(monitor, 0, 1)
    monitor.close()
    lines = (tmp_path / METRICS).read_bytes().splitlines(keepends=True)
    assert logged_bytes(tmp_path / METRICS, step, epochs) == sum(map(len, lines[:kept]))


@pytest.mark.parametrize("end", ['{"stage": "ma', "\0\0\0\0", "[]\n", '{"step": "x"}\n', json.dumps(record_of(1))])
def test_line_cut_short_by_a_crash_is_removed(tmp_path: Path, end: str) -> None:
    whole = json.dumps(record_of(0)) + "\n"
    (tmp_path / METRICS).write_text(whole + end)
    Monitor(tmp_path, True, 99, 99, False).close()
    assert (tmp_path / METRICS).read_text() == whole
    write_summary(tmp_path, 1)
    assert len(list(csv.DictReader((tmp_path / SUMMARY).open()))) == 1


def test_other_ranks_write_nothing(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path / "stage", False, 0, 0, True)
    monitor.describe("config", {"lr": 0.1})
    write_epochs(monitor, 0)
    monitor.outcome()
    monitor.close()
    monitor.sync()
    assert list(tmp_path.iterdir()) == []


def test_summary_has_a_row_for_each_epoch_of_the_checkpoint(tmp_path: Path) -> None:
    lines = [record_of(0), {"stage": "main", "epoch": 1, "step": 4, "bad_step_films": ["a"]}, record_of(1, scale=2.0)]
    content = "".join(json.dumps(line) + "\n" for line in lines)
    (tmp_path / METRICS).write_text(content + json.dumps(record_of(2)) + "\n")
    write_summary(tmp_path, 2)
    rows = list(csv.DictReader((tmp_path / SUMMARY).open()))
    assert [row["epoch"] for row in rows] == ["0", "1"]
    assert rows[0] == {**{name: str(value) for name, value in lines[0].items()}, "scale": ""}
    assert rows[1] == {name: str(value) for name, value in lines[2].items()}


def test_no_summary_without_an_epoch(tmp_path: Path) -> None:
    write_summary(tmp_path, 0)
    (tmp_path / METRICS).write_text(json.dumps(record_of(0)) + "\n")
    write_summary(tmp_path, 0)
    assert not (tmp_path / SUMMARY).exists()


def test_curve_equals_counting_pixels() -> None:
    chance = np.random.default_rng(0)
    levels, truth = chance.integers(0, 256, 4000), chance.random(4000) < 0.3
    counts = np.stack([np.bincount(part, minlength=256) for part in (levels, levels[truth])])
    curve = pr_curve(counts)
    for threshold in (0, 1, 100, 255):
        called = levels >= threshold
        hit, false = (called & truth).sum(), (called & ~truth).sum()
        rest, miss = (~called & ~truth).sum(), (~called & truth).sum()
        expected = (hit, false, rest, miss, hit / called.sum(), hit / truth.sum())
        assert [values[threshold] for values in curve] == pytest.approx(expected)


def test_curve_without_positives_or_calls_is_finite() -> None:
    nothing = np.zeros((2, 256), np.int64)
    nothing[0, 0] = 50
    assert all(np.isfinite(values).all() for values in pr_curve(nothing))


def test_overlay_shows_outlines_of_label_and_prediction_on_the_film() -> None:
    image = np.full((64, 64), 50, np.uint8)
    label, p8 = np.zeros((64, 64), np.uint8), np.zeros((64, 64), np.uint8)
    label[8:28, 8:28], p8[36:56, 36:56] = 1, 200
    overlay = Overlay("x", "film7", image, label, p8, 0.5, 0.6, True)
    picture = draw_overlay(overlay, 0.5)
    # Anti-aliased outlines have the hue of their colour, not all of it.
    hue = picture[..., 2].astype(int) - picture[..., 0]
    blue, orange = hue > (LABEL[2] - LABEL[0]) / 4, hue < (PREDICTION[2] - PREDICTION[0]) / 4
    assert blue[8, 8:28].all() and blue[8:28, 27].all() and not blue[32:64].any()
    assert 0.4 < orange[36, 36:56].mean() < 0.9 and 0.4 < orange[36:56, 55].mean() < 0.9 and not orange[:32].any()
    assert (picture[18, 18] == 50).all() and (picture[46, 46] == 50).all()
    assert picture.shape[0] > 100 and blue[64:].any() and orange[64:].any(), "a caption with a legend"
    for nothing in (draw_overlay(overlay, 0.9), draw_overlay(replace(overlay, called=False), 0.5)):
        assert (nothing[32:64] == 50).all(), "nothing is above 0.9, and a film that is not called has no mask"


def test_overlay_names_film_dice_and_call(monkeypatch: pytest.MonkeyPatch) -> None:
    captions: list[Any] = []
    monkeypatch.setattr("shards.overlay.draw_overlay", lambda *given: captions.append(given[3]))
    nothing = np.zeros((8, 8), np.uint8)
    draw_overlay(Overlay("worst/1", "film7", nothing, nothing + 1, nothing, 0.26, 0.314, False), 0.5)
    draw_overlay(Overlay("fixed/a", "a", nothing, nothing, nothing, 0.0, 0.0, True), 0.5)
    assert captions == [
        ["film7", "Dice 0.31, label positive, call negative"],
        ["a", "Dice 0.00, label negative, call positive"],
    ]


@pytest.mark.parametrize("name", [METRICS, "tensorboard"])
def test_logs_are_not_written_through_a_link(tmp_path: Path, name: str) -> None:
    other, folder = tmp_path / "other", tmp_path / "main"
    folder.mkdir()
    if name == METRICS:
        other.write_text("kept")
    else:
        other.mkdir()
    (folder / name).symlink_to(other)
    with pytest.raises(InputError, match=f"{name}: is a symbolic link"):
        Monitor(folder, True, 0, 0, True)
    assert other.read_text() == "kept" if name == METRICS else not list(other.iterdir())


# TensorBoard


def board_of(folder: Path) -> EventAccumulator:
    return EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0, "tensors": 0}).Reload()


def test_losses_are_no_dice_and_related_figures_have_related_tags(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, True, 0, 0, True)
    monitor.start_epoch("epoch", 3, 0)
    monitor.step(1, {"loss": 2.0, "dice": 0.9, "bce": 0.3, "lr": 0.1})
    record = record_of(0, dice=0.8, bce=0.2, training_dice=0.6)
    monitor.epoch(3, record, RESULT, 0.75)
    monitor.close()
    board = board_of(tmp_path)
    scalars: dict[str, Any] = {
        tag: [(each.step, pytest.approx(each.value)) for each in board.Scalars(tag)] for tag in board.Tags()["scalars"]
    }
    stepped = {"train_step/loss": 2.0, "train_step/dice_loss": 0.9, "train_step/bce_loss": 0.3, "train_step/lr": 0.1}
    assert {tag for tag in scalars if tag.startswith("train_step/")} == set(stepped)
    assert {tag: scalars[tag] for tag in stepped} == {tag: [(1, value)] for tag, value in stepped.items()}
    ended = {
        **{"epoch/dice_loss": 0.8, "epoch/bce_loss": 0.2, "loss/training": 1.5, "loss/validation": 0.7},
        **{"pixel_dice/training": 0.6, "pixel_dice/validation": pixel_dice(RESULT.pixels), "best_score": 0.75},
        **{"film_dice/score": 0.5, "film_dice/positives": 0.4, "film_dice/at_half": 0.5, "film_dice/always_empty": 0.3},
    }
    assert {tag: scalars[tag] for tag in ended} == {tag: [(3, value)] for tag, value in ended.items()}
    assert not [tag for tag in scalars if tag.rpartition("/")[2] == "dice"]
    assert json.loads((tmp_path / METRICS).read_text()) == record, "the files keep their names"


def test_charts_show_figures_that_every_run_has(tmp_path: Path) -> None:
    monitor = Monitor(tmp_path, True, 0, 0, True)
    monitor.describe("config", {"optim.lr": 0.1})
    monitor.start_epoch("epoch", 3, 0)
    monitor.epoch(3, record_of(0, training_dice=0.6), RESULT, 0.5)
    monitor.close()
    board = board_of(tmp_path)
    (event,) = board.Tensors("custom_scalars__config__")
    layout = layout_pb2.Layout.FromString(event.tensor_proto.string_val[0])
    charts = {chart.title: list(chart.multiline.tag) for category in layout.category for chart in category.chart}
    assert charts["loss"] == ["loss/training", "loss/validation"] and len(charts) == 3
    assert {tag for tags in charts.values() for tag in tags} <= set(board.Tags()["scalars"])


def test_table_of_runs_shows_settings_and_score_while_a_run_trains(tmp_path: Path) -> None:
    """Read as TensorBoard's server reads it."""
    for name, lr, score in (("a", 0.1, 0.25), ("b", 0.2, 0.75)):
        monitor = Monitor(tmp_path / name, True, 0, 0, True)
        experiment = experiment_of({"optim": {"lr": lr}}, seed=7)
        monitor.describe("config", settings(experiment, experiment.stages[0], 1))
        for epoch in range(2):
            monitor.start_epoch("epoch", 3, 0)
            monitor.epoch(3 * (epoch + 1), record_of(epoch), RESULT, score * (epoch + 1) / 2)
        if name == "b":
            monitor.outcome()
        monitor.close()
    events = EventMultiplexer()
    events.AddRunsFromDirectory(str(tmp_path))
    events.Reload()
    data = MultiplexerDataProvider(events, str(tmp_path))
    plugin = HParamsPlugin(TBContext(logdir=str(tmp_path), data_provider=data))
    apps = plugin.get_plugin_apps()

    def answer(route: str, **request: Any) -> Any:
        response = Client(apps[route]).post(json={"experimentName": "", **request})
        return json.loads(response.get_data())

    known = answer("/experiment")
    assert {info["name"] for info in known["hparamInfos"]} == set(settings(experiment, experiment.stages[0], 1))
    assert [info["name"]["tag"] for info in known["metricInfos"]] == ["best_score"]
    statuses = ["STATUS_UNKNOWN", "STATUS_SUCCESS", "STATUS_FAILURE", "STATUS_RUNNING"]
    columns = [{"metric": {"tag": "best_score"}}]
    found = answer("/session_groups", allowedStatuses=statuses, colParams=columns, startIndex=0, sliceSize=9)
    rows = {
        group["hparams"]["optim.lr"]: (group["metricValues"][0]["value"], group["sessions"][0]["status"])
        for group in found["sessionGroups"]
    }
    assert rows == {0.1: (0.25, "STATUS_UNKNOWN"), 0.2: (0.75, "STATUS_SUCCESS")}


def test_settings_are_those_of_the_config() -> None:
    stage = {
        "eval_image_size": 96,
        "loss": {"bce_positive_weight": 3, "dice_films": "positive"},
    }
    experiment = experiment_of(stage, {"freeze_batch_norm": True}, model={"norm": "batch"})
    found = [settings(experiment, each, 0) for each in experiment.stages]
    keys = ("image_size", "eval_image_size", "loss.bce_positive_weight", "loss.dice_films", "freeze_batch_norm")
    assert [found[0][key] for key in keys] == [64, 96, 3, "positive", False]
    assert [found[1][key] for key in keys] == [64, 64, 1, "all", True]
    grouped = experiment_of({}, model={"norm": "group_ws", "norm_groups": 8})
    found.append(settings(grouped, grouped.stages[0], 0))
    norms = [(each["model.norm"], each["model.norm_groups"]) for each in found]
    assert norms == [("batch", 0), ("batch", 0), ("group_ws", 8)]


def test_dice_of_all_pixels_equals_counting_them() -> None:
    chance = np.random.default_rng(1)
    levels, truth = chance.integers(0, 256, 4000), chance.random(4000) < 0.3
    mask = levels > 127.5
    expected = 2 * (mask & truth).sum() / (mask.sum() + truth.sum())
    counts = np.stack([np.bincount(part, minlength=256) for part in (levels, levels[truth])])
    assert pixel_dice(counts) == pytest.approx(expected)
    nothing = np.zeros((2, 256), np.int64)
    nothing[0, 0] = 50
    assert pixel_dice(nothing) == 1.0


# Pictures


def test_pictures_are_drawn_by_a_thread_in_order_and_are_complete_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[tuple[str, bool]] = []
    may_draw = threading.Event()

    def slow(overlay: Overlay, threshold: float) -> Any:
        assert may_draw.wait(60)
        drawn.append((overlay.name, threading.current_thread() is threading.main_thread()))
        return draw_overlay(overlay, threshold)

    monkeypatch.setattr(logs, "draw_overlay", slow)
    monitor = Monitor(tmp_path, True, 0, 0, True)
    write_epochs(monitor, 0)
    monitor.sync()
    assert drawn == [], "neither the epoch nor its save waits for the pictures"
    may_draw.set()
    write_epochs(monitor, 1)
    monitor.close()
    assert drawn == [("worst/1", False)] * 2
    board = EventAccumulator(str(tmp_path / "tensorboard"), size_guidance={"images": 0}).Reload()
    images = board.Images("validation/worst/1 Dice 0.3")
    assert [(image.step, image.width) for image in images] == [(3, 8), (6, 8)]
    picture = cv2.imdecode(np.frombuffer(images[0].encoded_image_string, np.uint8), cv2.IMREAD_COLOR)
    assert picture is not None
    expected = draw_overlay(RESULT.overlays[0], RESULT.triplet.bottom)
    np.testing.assert_array_equal(cv2.cvtColor(picture, cv2.COLOR_BGR2RGB), expected)


def test_error_of_a_picture_is_raised_by_the_next_epoch_or_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> Any:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(logs, "draw_overlay", broken)
    monitor = Monitor(tmp_path, True, 0, 0, True)
    write_epochs(monitor, 0)
    with pytest.raises(OSError, match="No space left"):
        write_epochs(monitor, 1)
    monitor.close()
    again = Monitor(tmp_path, True, 3, 1, False)
    write_epochs(again, 1)
    with pytest.raises(OSError, match="No space left"):
        again.close()
    assert len(read_epochs(tmp_path / METRICS)) == 2
