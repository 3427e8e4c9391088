"""Rows of the GPU benchmark: their order, their file, and which are missing."""

from pathlib import Path
from typing import Any

import pytest

from benchmarks.gpu import chosen_networks, chosen_tasks, parsed, settings_of
from benchmarks.gpu_shipped import shipped_stage
from benchmarks.gpu_steps import Counts
from benchmarks.gpu_store import (
    LOADER,
    LOADERS,
    NETWORKS,
    SHIPPED_NETWORKS,
    SHIPPED_WAYS,
    WAYS,
    Row,
    Task,
    append_row,
    better_layout,
    latest,
    missing,
    read_rows,
    tasks,
)

CARD, OTHER = "NVIDIA H100 80GB HBM3", "NVIDIA H200"
NETWORK = ("resnet34", 1024)


def row(way: str, rate: float = 1.0, device: str = CARD, **values: Any) -> Row:
    return {"network": "resnet34", "size": 1024, "way": way, "device": device, "images_per_s": rate, **values}


def test_networks_include_every_encoder_at_full_size_and_the_first_at_half() -> None:
    assert NETWORKS[0] == ("se_resnext50_32x4d", 512) and ("se_resnext50_32x4d", 1024) in NETWORKS
    assert {encoder for encoder, size in NETWORKS if size == 1024} == {
        *("se_resnext50_32x4d", "se_resnext101_32x4d", "senet154", "resnet34")
    }
    assert [way.letter for way in WAYS.values()] == ["a", "b", "b'", "c'", "d", "e", "f"]


def test_way_comes_after_those_it_depends_on_and_adds_them() -> None:
    ordered = tasks([NETWORK], ["compile", LOADER], sizes=(512,))
    assert [task.way for task in ordered[:3]] == ["bf16", "channels_last", "compile"]
    assert {(task.network, task.size) for task in ordered[3:]} == {(LOADER, 512)}
    assert [task.way for task in tasks([NETWORK], ["plain"])] == ["plain"]
    every = [task.way for task in tasks([NETWORK], [*WAYS])]
    assert sorted(every) == sorted(WAYS) and every[:4] == ["bf16", "channels_last", "compile", "dali-jpeg"]


def test_most_informative_tasks_come_first() -> None:
    """The order is: the first network, the shipped experiments, the loaders, the other networks."""
    ordered = tasks(NETWORKS, [*WAYS, *SHIPPED_WAYS, LOADER])
    first = [task for task in ordered if (task.network, task.size) == NETWORKS[0]]
    shipped = [task for task in ordered if task.way in SHIPPED_WAYS]
    assert ordered[: len(first) + len(shipped)] == [*first, *shipped]
    assert [task.network for task in shipped if task.way == "shipped"] == [name for name, _ in SHIPPED_NETWORKS]
    assert shipped[0].way == "shipped" and len(shipped) == len(SHIPPED_WAYS) * len(SHIPPED_NETWORKS)
    assert len(ordered) == len(set(ordered)) == len(NETWORKS) * len(WAYS) + len(shipped) + len(LOADERS) * 2


def test_encoders_select_the_shipped_experiments() -> None:
    chosen = chosen_tasks(parsed(["--encoders", "senet154", "--rows", ",".join(SHIPPED_WAYS)]))
    assert [(task.network, task.way) for task in chosen] == [("heavy_senet154", way) for way in SHIPPED_WAYS]
    assert [task.way for task in chosen_tasks(parsed(["--rows", "shipped"]))] == ["shipped"] * len(SHIPPED_NETWORKS)
    for name, size in SHIPPED_NETWORKS:
        settings = settings_of(Task(name, size, "shipped-fused"), "cuda", {}, Counts(), [], CARD, None)
        assert settings is not None
        experiment, stage = shipped_stage(settings)
        assert stage.image_size == size and experiment.runtime.fused
        other = settings_of(Task(name, size, "shipped-layout"), "cuda", {}, Counts(), [], CARD, None)
        assert other is not None
        assert shipped_stage(other)[0].data.channels_last is not experiment.data.channels_last
        assert stage.global_batch == stage.micro_batch and stage.optim.ema_decay and experiment.model.classification


def test_row_that_was_cut_off_is_ignored_and_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "rows.jsonl"
    assert read_rows(path) == []
    append_row(path, row("bf16"))
    append_row(path, row("compile"))
    path.write_bytes(path.read_bytes()[:-20])
    assert [each["way"] for each in read_rows(path)] == ["bf16"]
    append_row(path, row("plain"))
    assert [each["way"] for each in read_rows(path)] == ["bf16", "plain"]
    assert path.read_bytes().count(b"\n") == 2


def test_run_resumes_with_the_rows_missing_on_this_card() -> None:
    ordered = tasks([NETWORK], ["bf16", "channels_last"])
    rows = [row("bf16", 1.0), row("bf16", 2.0), row("channels_last", device=OTHER)]
    assert missing(ordered, [], CARD) == ordered
    assert [task.way for task in missing(ordered, rows, CARD)] == ["channels_last"]
    assert [task.way for task in missing(ordered, rows, OTHER)] == ["bf16"]
    assert latest(rows, ordered[0], CARD) is rows[1], "the newest row counts"


@pytest.mark.parametrize(("contiguous", "last", "better"), [(2.0, 1.0, False), (1.0, 2.0, True)])
def test_better_layout_comes_from_the_faster_row(contiguous: float, last: float, better: bool) -> None:
    rows = [row("bf16", contiguous), row("channels_last", last)]
    assert better_layout(rows, *NETWORK, CARD) is better
    assert better_layout(rows[:1], *NETWORK, CARD) is None
    assert better_layout(rows, *NETWORK, OTHER) is None


def test_later_rows_use_batch_and_layout_of_earlier_ones() -> None:
    rows = [row("bf16", 1.0, batch=12), row("channels_last", 2.0, batch=12)]

    def settings(way: str, rows: list[Row]) -> Any:
        return settings_of(Task(*NETWORK, way), "cuda", {}, Counts(), rows, CARD, None)

    compiled = settings("compile", rows)
    assert (compiled.batch, compiled.layout, compiled.channels_last) == (12, True, True)
    assert settings("channels_last", rows[:1]).channels_last is True
    assert settings("bf16", []).batch is None and settings("plain", []).batch is None
    assert settings("compile", rows[:1]) is None and settings("channels_last", []) is None


@pytest.mark.parametrize(
    "words", [["--device", "cpu"], ["--rows", "bf17"], ["--encoders", "resnet35"]], ids=lambda words: words[0]
)
def test_unusable_options_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(words)
    assert caught.value.code == 2 and words[0] in capsys.readouterr().err


def test_encoders_and_quick_select_networks_and_sizes() -> None:
    assert chosen_networks(parsed([])) == list(NETWORKS)
    assert chosen_networks(parsed(["--encoders", "se_resnext50_32x4d"])) == [
        *(("se_resnext50_32x4d", 512), ("se_resnext50_32x4d", 1024))
    ]
    assert chosen_networks(parsed(["--quick", "--device", "cpu"])) == [("resnet18", 64)]
