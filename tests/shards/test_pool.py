"""Worker processes that are fed over pipes."""

import os
import signal
import time
from multiprocessing import synchronize
from pathlib import Path

import pytest

from shards.errors import InputError
from shards.pool import WorkerDied, each_done
from shards.workers import fork_server


def write_name(path: Path) -> None:
    path.write_text(str(os.getpid()))


def fail_on_b(path: Path) -> None:
    if path.name == "b":
        while len(list(path.parent.iterdir())) < 2:
            time.sleep(0.01)
        raise InputError(f"{path.name}: is refused")
    wait_with_a_temporary(path)


def wait_with_a_temporary(path: Path) -> None:
    try:
        path.touch()
        time.sleep(60)
    finally:
        path.unlink(missing_ok=True)


def kill_itself(path: Path) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def test_each_job_is_done_once_and_by_several_workers(tmp_path: Path) -> None:
    jobs = [tmp_path / str(number) for number in range(20)]
    done = list(each_done(fork_server("shards.locks"), write_name, jobs, 3))
    assert sorted(done) == sorted(jobs)
    workers = {job.read_text() for job in jobs}
    assert 1 < len(workers) <= 3 and str(os.getpid()) not in workers


def test_no_jobs_need_no_workers() -> None:
    assert list(each_done(None, write_name, [], 3)) == []


def test_pool_names_nothing_in_shared_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("a semaphore was made")

    monkeypatch.setattr(synchronize.SemLock, "__init__", refuse)
    jobs = [tmp_path / "a", tmp_path / "b"]
    assert sorted(each_done(fork_server("shards.locks"), write_name, jobs, 2)) == jobs


def test_first_error_is_raised_with_its_traceback_and_ends_the_other_jobs(tmp_path: Path) -> None:
    jobs = [tmp_path / name for name in "abc"]
    begun = time.monotonic()
    with pytest.raises(InputError) as caught:
        list(each_done(fork_server("shards.locks"), fail_on_b, jobs, 3))
    assert str(caught.value) == "b: is refused"
    assert "in fail_on_b" in "".join(caught.value.__notes__)
    assert time.monotonic() - begun < 30, "the other workers were waited for"
    assert list(tmp_path.iterdir()) == [], "an ended worker removes its temporary files"


def test_a_killed_worker_is_noticed(tmp_path: Path) -> None:
    with pytest.raises(WorkerDied):
        list(each_done(fork_server("shards.locks"), kill_itself, [tmp_path / "a", tmp_path / "b"], 2))


def test_jobs_that_are_no_longer_wanted_are_ended(tmp_path: Path) -> None:
    running = each_done(fork_server("shards.locks"), write_name, [tmp_path / str(number) for number in range(9)], 2)
    next(running)
    del running  # closes the generator
    assert len(list(tmp_path.iterdir())) < 9
