"""The trace of a few steps: its content, epochs that are too short, and faults that do not end a run."""

import json
from pathlib import Path

import pytest
import torch

from pneumo_dist.train.profiling import TRACE, StepTrace


def train(trace: StepTrace, steps: int) -> None:
    trace.start()
    for _ in range(steps):
        torch.ones(4).add(1)
        trace.step()
    trace.stop()


def steps_in(path: Path) -> list[str]:
    """The optimizer steps of a trace, each with its operations."""
    events = json.loads(path.read_text())["traceEvents"]
    assert any(event.get("name") == "aten::add" for event in events)
    return sorted({event["name"] for event in events if str(event.get("name")).startswith("ProfilerStep#")})


@pytest.mark.parametrize(("steps", "last"), [(15, 9), (10, 9), (7, 7)])
def test_trace_has_six_steps_after_four_or_as_many_as_there_are(tmp_path: Path, steps: int, last: int) -> None:
    trace = StepTrace(tmp_path / "stage" / TRACE)
    train(trace, steps)
    made = tmp_path / "stage" / TRACE
    assert steps_in(made) == [f"ProfilerStep#{step}" for step in range(4, last + 1)]
    before = made.stat().st_mtime_ns
    train(trace, 12)  # the next epoch
    assert made.stat().st_mtime_ns == before
    assert [path.name for path in made.parent.iterdir()] == [TRACE]


def test_epoch_that_is_too_short_is_reported_and_the_next_is_not_traced(tmp_path: Path) -> None:
    trace = StepTrace(tmp_path / TRACE)
    with pytest.warns(UserWarning, match="is not written: an epoch needs more than 4 steps"):
        train(trace, 3)
    train(trace, 12)
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_traced_without_a_path() -> None:
    train(StepTrace(None), 12)


def test_trace_that_cannot_be_written_is_a_warning(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.warns(UserWarning, match="is not written .* training continues"):
        train(StepTrace(tmp_path / "file" / TRACE), 12)
