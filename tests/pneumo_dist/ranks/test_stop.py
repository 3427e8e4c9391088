"""Signals only set a flag, and ranks agree on the most urgent request within two polls."""

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from pneumo_dist.ranks.ranks import Ranks, process_group
from pneumo_dist.ranks.stop import MARKER, SIGNALS, Request, StopAgreement, exit_code, write_marker


@pytest.fixture
def stop() -> Iterator[StopAgreement]:
    before = {number: signal.getsignal(number) for number in SIGNALS}
    # A shell that runs the tests in the background has SIGINT ignored.
    signal.signal(signal.SIGINT, signal.default_int_handler)
    agreement = StopAgreement(Ranks.alone())
    try:
        yield agreement
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_sets_the_flag_and_the_poll_reports_it(stop: StopAgreement, number: signal.Signals) -> None:
    assert stop.poll() is Request.NONE
    os.kill(os.getpid(), number)  # nothing is raised here: the handler only sets the flag
    assert stop.poll() is Request.STOP
    assert stop.poll() is Request.STOP


def test_no_signal_is_no_request(stop: StopAgreement) -> None:
    assert {stop.poll() for _ in range(5)} == {Request.NONE}


def test_request_to_save_lasts_for_one_poll_and_a_signal_overrides_it(stop: StopAgreement) -> None:
    found = [stop.poll(wants_save) for wants_save in (False, True, False, True)]
    assert found == [Request.NONE, Request.SAVE, Request.NONE, Request.SAVE]
    os.kill(os.getpid(), signal.SIGTERM)
    assert stop.poll(wants_save=True) is Request.STOP


def test_close_restores_the_default_handlers(stop: StopAgreement) -> None:
    assert signal.getsignal(signal.SIGTERM) not in (signal.SIG_DFL, signal.SIG_IGN)
    with stop:
        pass
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGUSR1) == signal.SIG_DFL
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler


def test_signal_ignored_before_does_not_kill_a_rank_that_has_saved() -> None:
    before = signal.signal(signal.SIGUSR1, signal.SIG_IGN)
    try:
        with StopAgreement(Ranks.alone()) as stop:
            os.kill(os.getpid(), signal.SIGUSR1)
            assert stop.poll() is Request.STOP
        os.kill(os.getpid(), signal.SIGUSR1)
        assert signal.getsignal(signal.SIGUSR1) == signal.SIG_IGN
    finally:
        signal.signal(signal.SIGUSR1, before)


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


# Two ranks. A scenario names the poll (from 0) at which a rank makes a request.
POLLS = 8
SCENARIOS: dict[str, dict[int, dict[int, Request]]] = {
    "nothing": {},
    "rank 0 saves": {0: {3: Request.SAVE}},
    "rank 1 saves": {1: {3: Request.SAVE}},
    "both save, one poll apart": {0: {2: Request.SAVE}, 1: {3: Request.SAVE}},
    "rank 0 stops": {0: {3: Request.STOP}},
    "rank 1 stops": {1: {3: Request.STOP}},
    "one saves, the other stops": {0: {3: Request.SAVE}, 1: {3: Request.STOP}},
    "stops at the last poll": {1: {POLLS - 1: Request.STOP}},
}


def write_polls(folder: Path) -> None:
    """On each rank: poll through all scenarios and write the results."""
    found: dict[str, list[int]] = {}
    with process_group(cpu=True) as ranks:
        for name, scenario in SCENARIOS.items():
            said = []
            with StopAgreement(ranks) as agreement:
                for poll in range(POLLS):
                    mine = scenario.get(ranks.rank, {}).get(poll, Request.NONE)
                    if mine is Request.STOP:
                        os.kill(os.getpid(), signal.SIGUSR1)
                    said.append(int(agreement.poll(wants_save=mine is Request.SAVE)))
            found[name] = said
        (folder / f"{ranks.rank}.json").write_text(json.dumps(found))


@pytest.fixture(scope="module")
def two_ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, list[int]]]:
    """The results of each rank, by scenario."""
    from integration.conftest import ROOT, environment

    folder = tmp_path_factory.mktemp("ranks")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", __file__]
    result = subprocess.run(
        [*command, str(folder)], env=environment(), cwd=ROOT, capture_output=True, text=True, timeout=120
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


@pytest.mark.slow
@pytest.mark.parametrize("name", SCENARIOS)
def test_two_ranks_agree_within_two_polls_on_the_most_urgent_request(
    two_ranks: list[dict[str, list[int]]], name: str
) -> None:
    first, second = (rank[name] for rank in two_ranks)
    assert first == second, "ranks that differ save or stop at different steps"
    asked = {poll: request for wishes in SCENARIOS[name].values() for poll, request in sorted(wishes.items())}
    stops = [poll for poll, request in asked.items() if request is Request.STOP]
    expected = [int(asked.get(poll - 1, Request.NONE)) for poll in range(POLLS)]
    for poll in stops:
        expected[poll + 1 :] = [int(Request.STOP)] * (POLLS - poll - 1)
    assert first == expected


if __name__ == "__main__":
    write_polls(Path(sys.argv[1]))
