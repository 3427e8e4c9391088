"""The heartbeat during and after a run, and the lock that gives a fold's folder to one run."""

import json
import math
import multiprocessing
import os
import signal
import time
from multiprocessing.synchronize import Event as EventType
from pathlib import Path

import pytest

from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import Preempted
from pneumo_dist.runs import heartbeat
from pneumo_dist.runs.heartbeat import Heartbeat, hold_run_folder, is_finished, read_heartbeat
from shards.errors import InputError

ALONE = Ranks.alone()
FACTS = {"config": "c", "shards": "s"}


def told(folder: Path) -> dict[str, object]:
    found = read_heartbeat(folder)
    assert found is not None
    return found


@pytest.mark.parametrize(
    ("error", "state"),
    [(None, "done"), (Preempted(), "preempted"), (ValueError(), "failed"), (KeyboardInterrupt(), "failed")],
)
def test_state_says_how_a_run_ended(tmp_path: Path, error: BaseException | None, state: str) -> None:
    def run() -> None:
        with hold_run_folder(tmp_path / "fold0", ALONE, FACTS) as beat:
            assert told(tmp_path / "fold0")["state"] == "running"
            beat.note("main", 2, 9, 70)
            if error is not None:
                raise error

    if error is None:
        run()
    else:
        with pytest.raises(type(error)):
            run()
    found = told(tmp_path / "fold0")
    assert (found["state"], found["stage"], found["epoch"], found["epochs"], found["step"]) == (state, "main", 2, 9, 70)
    assert (found["pid"], found["world"]) == (os.getpid(), 1)


@pytest.mark.parametrize(
    ("variables", "job"),
    [
        ({}, None),
        ({"SLURM_JOB_ID": "12"}, "12"),
        ({"SLURM_JOB_ID": "15", "SLURM_ARRAY_JOB_ID": "12", "SLURM_ARRAY_TASK_ID": "3"}, "12_3"),
    ],
)
def test_job_is_named_as_in_squeue(
    variables: dict[str, str], job: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SLURM_JOB_ID", "SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    with hold_run_folder(tmp_path, ALONE, FACTS):
        assert told(tmp_path)["job_id"] == job


def test_heartbeat_is_written_without_progress(tmp_path: Path) -> None:
    beat = Heartbeat(tmp_path, FACTS, seconds=0.01)
    first = told(tmp_path)["time"]
    deadline = time.monotonic() + 10
    while told(tmp_path)["time"] == first:
        assert time.monotonic() < deadline
        time.sleep(0.01)
    beat.end("done")
    last = (tmp_path / "heartbeat.json").stat().st_mtime_ns
    time.sleep(0.05)
    assert (tmp_path / "heartbeat.json").stat().st_mtime_ns == last, "it has ended"


def test_heartbeat_without_a_folder_writes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    beat = Heartbeat(None, FACTS)
    beat.note("main", 0, 1, 1)
    beat.end("done")
    assert not list(tmp_path.iterdir())


def test_full_disk_does_not_end_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, content: str) -> None:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(heartbeat, "atomic_write", full)
    with hold_run_folder(tmp_path, ALONE, FACTS):
        pass
    assert read_heartbeat(tmp_path) is None


def _hold(folder: Path, ready: "EventType") -> None:
    with hold_run_folder(folder, ALONE, FACTS):
        ready.set()
        time.sleep(60)


def test_second_run_of_a_fold_is_refused_by_name_until_the_first_is_killed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(heartbeat, "PATIENCE_SECONDS", 0.2)
    context = multiprocessing.get_context("fork")
    ready = context.Event()
    process = context.Process(target=_hold, args=(tmp_path, ready))
    process.start()
    try:
        assert ready.wait(20)
        with (
            pytest.raises(InputError, match=rf"process {process.pid} on .* is training here") as refused,
            hold_run_folder(tmp_path, ALONE, FACTS),
        ):
            pytest.fail("two runs hold one folder")
        assert str(tmp_path) in str(refused.value)
        assert told(tmp_path)["pid"] == process.pid, "the run that holds the folder still writes"
    finally:
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    with hold_run_folder(tmp_path, ALONE, FACTS):
        assert told(tmp_path)["pid"] == os.getpid()


def test_finished_means_this_config_these_shards_and_all_checkpoints(tmp_path: Path) -> None:
    for stage in ("first", "second"):
        (tmp_path / stage / "checkpoints").mkdir(parents=True)
        (tmp_path / stage / "checkpoints/step-1.pt").touch()
        (tmp_path / stage / "checkpoints/last").symlink_to("step-1.pt")
    stages = ["first", "second"]
    assert not is_finished(tmp_path, FACTS, stages)
    with hold_run_folder(tmp_path, ALONE, {**FACTS, "code": "1"}):
        assert not is_finished(tmp_path, FACTS, stages)
    assert is_finished(tmp_path, FACTS, stages)
    assert not is_finished(tmp_path, {**FACTS, "config": "other"}, stages)
    assert not is_finished(tmp_path, {**FACTS, "another": "fact"}, stages)
    assert not is_finished(tmp_path, FACTS, [*stages, "third"])
    (tmp_path / "first/checkpoints/step-1.pt").unlink()
    assert not is_finished(tmp_path, FACTS, stages)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff\xfe"])
def test_damaged_file_is_no_heartbeat(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "heartbeat.json").write_bytes(content)
    assert read_heartbeat(tmp_path) is None
    assert not is_finished(tmp_path, {}, [])


def test_file_is_plain_json(tmp_path: Path) -> None:
    with hold_run_folder(tmp_path, ALONE, FACTS):
        pass
    assert json.loads((tmp_path / "heartbeat.json").read_text())["config"] == "c"


@pytest.mark.parametrize("before", ["done", "preempted", "failed"])
@pytest.mark.parametrize("steps", [[], [70], [70, 71]])
def test_command_that_fails_before_its_first_step_keeps_the_previous_state(
    tmp_path: Path, before: str, steps: list[int]
) -> None:
    (tmp_path / "heartbeat.json").write_text(json.dumps({"state": before, "time": 5.0, "stage": "main", "step": 70}))
    with pytest.raises(ValueError), hold_run_folder(tmp_path, ALONE, FACTS) as beat:
        for step in steps:
            beat.note("main", 2, 9, step)
        raise ValueError
    found = told(tmp_path)
    moved = len(steps) > 1
    assert (found["state"], found["step"]) == (("failed", 71) if moved else (before, 70))
    assert (found["time"] == 5.0) is not moved


def test_finished_fold_is_done_until_it_trains_again(tmp_path: Path) -> None:
    (tmp_path / "heartbeat.json").write_text(json.dumps({"state": "done", "time": 5.0}))
    beat = Heartbeat(tmp_path, FACTS, seconds=0.01)
    beat.note("main", 2, 9, 70)
    time.sleep(0.05)
    assert told(tmp_path)["state"] == "done"
    beat.note("main", 2, 9, 71)
    deadline = time.monotonic() + 10
    while told(tmp_path)["state"] == "done":
        assert time.monotonic() < deadline
        time.sleep(0.01)
    assert told(tmp_path)["state"] == "running"
    beat.end("done")


@pytest.mark.parametrize(
    "changes",
    [
        {"time": "now"},
        {"time": math.nan},
        {"epoch": -1},
        {"stage": "../up"},
        {"stage": 5},
        {"state": None},
        {"step": 1.5},
    ],
    ids=str,
)
def test_values_that_no_run_writes_are_no_heartbeat(tmp_path: Path, changes: dict[str, object]) -> None:
    with hold_run_folder(tmp_path, ALONE, FACTS) as beat:
        beat.note("main", 2, 9, 70)
    content = told(tmp_path)
    (tmp_path / "heartbeat.json").write_text(json.dumps({**content, **changes}))
    assert read_heartbeat(tmp_path) is None
    (tmp_path / "heartbeat.json").write_text("[" * 100_000)
    assert read_heartbeat(tmp_path) is None


def test_lock_is_not_written_through_a_link(tmp_path: Path) -> None:
    (tmp_path / "fold0").mkdir()
    (tmp_path / "fold0/lock").symlink_to(tmp_path / "other")
    with pytest.raises(InputError, match="lock: is a symbolic link"), hold_run_folder(tmp_path / "fold0", ALONE, FACTS):
        pass
    assert not (tmp_path / "other").exists()
