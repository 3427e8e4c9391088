"""Signals set a flag; nothing else happens in a handler."""

import json
import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pneumo_dist.distributed import Ranks
from pneumo_dist.preemption import MARKER, SIGNALS, StopAgreement, exit_code, write_marker


@pytest.fixture
def stop() -> Iterator[StopAgreement]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    agreement = StopAgreement(Ranks(0, 1, 0, torch.device("cpu")))
    try:
        yield agreement
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_sets_the_flag_and_the_poll_reports_it(stop: StopAgreement, number: signal.Signals) -> None:
    assert not stop.poll()
    os.kill(os.getpid(), number)  # nothing is raised here: the handler only sets the flag
    assert stop.poll()
    assert stop.poll()


def test_no_signal_is_no_stop(stop: StopAgreement) -> None:
    assert not any(stop.poll() for _ in range(5))


def test_close_restores_the_default_handlers(stop: StopAgreement) -> None:
    assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
    stop.close()
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


@pytest.mark.parametrize(("job", "restarts"), [(None, None), ("4711", "2")])
def test_marker_names_job_restart_and_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, job: str | None, restarts: str | None
) -> None:
    for name, value in (("SLURM_JOB_ID", job), ("SLURM_RESTART_COUNT", restarts)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    write_marker(tmp_path, "main", 42)
    expected = {"job_id": job, "restart_count": int(restarts or 0), "stage": "main", "step": 42}
    assert json.loads((tmp_path / MARKER).read_text()) == expected


def test_exit_code_is_75_alone_and_0_under_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCHELASTIC_RUN_ID", raising=False)
    assert exit_code() == 75
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run")
    assert exit_code() == 0
