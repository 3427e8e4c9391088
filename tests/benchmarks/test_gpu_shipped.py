"""Waits of a shipped step, by line of code, and their tables."""

import warnings
from contextlib import nullcontext
from traceback import FrameSummary
from typing import Any

import pytest

from benchmarks import gpu_shipped
from benchmarks.gpu_shipped import location_of, waits
from benchmarks.gpu_shipped_report import shipped_tables
from benchmarks.gpu_store import SHIPPED_NETWORKS, Row

CARD = "NVIDIA H100 80GB HBM3"
STEP = FrameSummary("/somewhere/pneumo_dist/train/step.py", 12, "step")
UPDATE = FrameSummary("/somewhere/pneumo_dist/train/step.py", 40, "_update")
ADAM = FrameSummary("/site/torch/optim/adam.py", 7, "_single")
BENCH = FrameSummary("/somewhere/benchmarks/gpu_shipped.py", 1, "take")


@pytest.mark.parametrize(
    ("stack", "location"),
    [
        ([BENCH, STEP, UPDATE], "pneumo_dist/train/step.py:40 _update"),
        ([BENCH, STEP, UPDATE, ADAM], "pneumo_dist/train/step.py:40 _update > torch/optim/adam.py:7 _single"),
        ([BENCH, STEP, UPDATE, FrameSummary("/lib/warnings.py", 1, "warn")], "pneumo_dist/train/step.py:40 _update"),
        ([BENCH, FrameSummary("/site/torch/cuda/__init__.py", 9, "set_sync_debug_mode")], None),
    ],
)
def test_wait_is_located_at_the_lines_that_cause_it(stack: list[FrameSummary], location: str | None) -> None:
    assert location_of(stack) == location


def test_every_wait_of_a_step_is_counted_and_other_warnings_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gpu_shipped, "sync_warnings", nullcontext)
    monkeypatch.setattr(gpu_shipped, "location_of", lambda stack: None if stack[-2].name == "quiet" else stack[-2].name)
    before = warnings.showwarning

    def quiet() -> None:
        warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)

    def take() -> None:
        for _ in range(3):
            warnings.warn("called a synchronizing CUDA operation", UserWarning, stacklevel=1)
        warnings.warn("something else", UserWarning, stacklevel=1)
        quiet()

    assert waits(take, 2) == {"take": 3}
    assert warnings.showwarning is before


def row(name: str, way: str, **values: Any) -> Row:
    task = {"device": CARD, "network": name, "size": 768, "way": way, "images_per_s": 100.0, "step_s": 0.02}
    return {**task, "batch": 2, "parts": {}, **values}


def test_tables_list_waits_and_parts() -> None:
    place = "pneumo_dist/train/step.py:40 _update"
    names = [name for name, _ in SHIPPED_NETWORKS]
    rows = [
        row(names[0], "shipped", waits={place: 2.0}, parts={"ema": {"host_ms": 3.0, "done_ms": 4.5}}, idle_share=0.25),
        row(
            names[1],
            "shipped",
            waits={place: 2.0, "torch/cuda/__init__.py:9 set_sync_debug_mode": 0.2},
            peak_memory_gb=5.0,
        ),
        row(names[0], "shipped-fused", waits={}),
    ]
    text = shipped_tables(rows)
    assert f"| {names[0]}, 768 px | as shipped | 100.0 | 20.0 | 2 | 25.0 % | 2 |  |" in text
    assert f"| {names[1]}, 768 px | as shipped | 100.0 | 20.0 | 2 |  | 2 | 5.0 GB |" in text
    assert f"| {names[0]}, 768 px | fused optimizer | 100.0 | 20.0 | 2 |  | 0 |  |" in text
    assert f"| `{place}` | 2 | 2 |" in text and "set_sync_debug_mode" not in text
    assert "| moving average | 3.00 / 4.50 |  |" in text
    assert names[2] not in text, "it has no row"


def test_without_rows_there_are_no_tables() -> None:
    assert shipped_tables([]) == ""
