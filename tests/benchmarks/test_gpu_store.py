"""The rows of the GPU benchmark: their order, the file, and which are missing."""

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


def row(way: str, rate: float = 1.0, device: str = CARD, **given: Any) -> Row:
    return {"network": "resnet34", "size": 1024, "way": way, "device": device, "images_per_s": rate, **given}


def test_networks_are_those_that_were_asked_for_the_first_of_them_first() -> None:
    assert NETWORKS[0] == ("se_resnext50_32x4d", 512) and ("se_resnext50_32x4d", 1024) in NETWORKS
    assert {encoder for encoder, size in NETWORKS if size == 1024} == {
        *("se_resnext50_32x4d", "se_resnext101_32x4d", "senet154", "resnet34")
    }
    assert [way.letter for way in WAYS.values()] == ["a", "b", "b'", "c'", "d", "e", "f"]


def test_way_comes_after_those_that_it_builds_on_and_brings_them_along() -> None:
    made = tasks([NETWORK], ["compile", LOADER], sizes=(512,))
    assert [task.way for task in made[:3]] == ["bf16", "channels_last", "compile"]
    assert {(task.network, task.size) for task in made[3:]} == {(LOADER, 512)}
    assert [task.way for task in tasks([NETWORK], ["plain"])] == ["plain"]
    every = [task.way for task in tasks([NETWORK], [*WAYS])]
    assert sorted(every) == sorted(WAYS) and every[:4] == ["bf16", "channels_last", "compile", "dali-jpeg"]


def test_what_tells_the_most_comes_first() -> None:
    """The first network, the shipped experiments as they are, the loaders, and then the other networks."""
    made = tasks(NETWORKS, [*WAYS, *SHIPPED_WAYS, LOADER])
    first = [task for task in made if (task.network, task.size) == NETWORKS[0]]
    own = [task for task in made if task.way in SHIPPED_WAYS]
    assert made[: len(first) + len(own)] == [*first, *own]
    assert [task.network for task in own if task.way == "shipped"] == [name for name, _ in SHIPPED_NETWORKS]
    assert own[0].way == "shipped" and len(own) == len(SHIPPED_WAYS) * len(SHIPPED_NETWORKS)
    assert len(made) == len(set(made)) == len(NETWORKS) * len(WAYS) + len(own) + len(LOADERS) * 2


def test_shipped_experiments_are_those_of_the_encoders() -> None:
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


def test_row_that_was_cut_off_is_no_row_and_is_written_over(tmp_path: Path) -> None:
    path = tmp_path / "docs" / "rows.jsonl"
    assert read_rows(path) == []
    append_row(path, row("bf16"))
    append_row(path, row("compile"))
    path.write_bytes(path.read_bytes()[:-20])
    assert [each["way"] for each in read_rows(path)] == ["bf16"]
    append_row(path, row("plain"))
    assert [each["way"] for each in read_rows(path)] == ["bf16", "plain"]
    assert path.read_bytes().count(b"\n") == 2


def test_run_goes_on_with_what_is_missing_on_this_card() -> None:
    wanted = tasks([NETWORK], ["bf16", "channels_last"])
    rows = [row("bf16", 1.0), row("bf16", 2.0), row("channels_last", device=OTHER)]
    assert missing(wanted, [], CARD) == wanted
    assert [task.way for task in missing(wanted, rows, CARD)] == ["channels_last"]
    assert [task.way for task in missing(wanted, rows, OTHER)] == ["bf16"]
    found = latest(rows, wanted[0], CARD)
    assert found is not None and found["images_per_s"] == 2.0, "the newest row counts"


@pytest.mark.parametrize(("contiguous", "last", "better"), [(2.0, 1.0, False), (1.0, 2.0, True)])
def test_better_layout_is_that_of_the_faster_row(contiguous: float, last: float, better: bool) -> None:
    rows = [row("bf16", contiguous), row("channels_last", last)]
    assert better_layout(rows, *NETWORK, CARD) is better
    assert better_layout(rows[:1], *NETWORK, CARD) is None
    assert better_layout(rows, *NETWORK, OTHER) is None


def test_later_rows_take_batch_and_layout_of_those_before() -> None:
    rows = [row("bf16", 1.0, batch=12), row("channels_last", 2.0, batch=12)]

    def settings(way: str, rows: list[Row]) -> Any:
        return settings_of(Task(*NETWORK, way), "cuda", {}, Counts(), rows, CARD, None)

    compiled = settings("compile", rows)
    assert (compiled.batch, compiled.layout, compiled.channels_last) == (12, True, True)
    assert settings("channels_last", rows[:1]).channels_last is True
    assert settings("bf16", []).batch is None and settings("plain", []).batch is None
    assert settings("compile", rows[:1]) is None and settings("channels_last", []) is None


@pytest.mark.parametrize(
    "given", [["--device", "cpu"], ["--rows", "bf17"], ["--encoders", "resnet35"]], ids=lambda given: given[0]
)
def test_what_would_measure_nothing_is_refused(given: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        parsed(given)
    assert caught.value.code == 2 and given[0] in capsys.readouterr().err


def test_encoders_and_sizes_that_are_chosen() -> None:
    assert chosen_networks(parsed([])) == list(NETWORKS)
    assert chosen_networks(parsed(["--encoders", "se_resnext50_32x4d"])) == [
        *(("se_resnext50_32x4d", 512), ("se_resnext50_32x4d", 1024))
    ]
    assert chosen_networks(parsed(["--quick", "--device", "cpu"])) == [("resnet18", 64)]
