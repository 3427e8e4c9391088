"""The journal: claims of trials, processes that end without a word, and samples that can be repeated."""

import errno
import fcntl
import os
import threading
from collections.abc import Mapping
from pathlib import Path

import pytest
from optuna.samplers import RandomSampler
from optuna.trial import TrialState, create_trial
from sweep_runs import GRID, SAMPLED, journal_of, record_of, sweep_of

from pneumo_dist.sweep.journal import JOURNAL, LOCKS, RANDOM_TRIALS, RECORD, FileLock, Journal, begin, read_record
from pneumo_dist.sweep.space import Value
from pneumo_dist.sweep.trials import Sweep
from shards.errors import InputError


@pytest.fixture
def grid(tmp_path: Path) -> Sweep:
    return sweep_of(tmp_path, GRID)


def suggest(number: int) -> Mapping[str, Value]:
    return {"optim.lr": "0.001", "stages.s1.epochs": 1 + number % 2}


def test_a_trial_belongs_to_one_process_until_it_ends(grid: Sweep) -> None:
    first, second = journal_of(grid), journal_of(grid)
    with first.claim(2, suggest, grid.space) as one, second.claim(2, suggest, grid.space) as two:
        assert one is not None and two is not None
        assert (one.number, one.is_resumed, one.parameters) == (0, False, suggest(0))
        assert (two.number, two.is_resumed, two.parameters) == (1, False, suggest(1))
        with journal_of(grid).claim(2, suggest, grid.space) as none:
            assert none is None
        first.end(one, TrialState.COMPLETE, 0.5)
    # The second trial's process is gone, and it was not ended.
    with first.claim(2, suggest, grid.space) as again:
        assert again is not None and (again.number, again.is_resumed, again.parameters) == (1, True, suggest(1))
        assert [trial.state.name for trial in first.trials()] == ["COMPLETE", "RUNNING"]


def test_a_lost_trial_comes_before_a_new_one(grid: Sweep) -> None:
    journal = journal_of(grid)
    for _ in range(3):
        with journal.claim(9, suggest, grid.space) as trial:
            assert trial is not None and trial.number == 0
    with journal.claim(9, suggest, grid.space) as trial, journal_of(grid).claim(9, suggest, grid.space) as other:
        assert trial is not None and other is not None and (trial.number, other.number) == (0, 1)


def test_a_trial_that_ends_while_another_process_looks_for_lost_ones_is_not_resumed(
    grid: Sweep, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = journal_of(grid)
    with journal.claim(1, suggest, grid.space) as trial:
        assert trial is not None
        late = journal_of(grid)
        read_before = late.trials()
        journal.end(trial, TrialState.COMPLETE, 0.5)
    assert [each.state.name for each in read_before] == ["RUNNING"]
    monkeypatch.setattr(late, "trials", lambda: read_before)
    with late.claim(1, suggest, grid.space) as none:
        assert none is None


def test_processes_at_once_never_claim_the_same_trial(grid: Sweep) -> None:
    """File locks exclude open files, so threads with journals of their own are like processes."""
    claimed: list[int] = []
    journals = [journal_of(grid) for _ in range(3)]

    def work(journal: Journal) -> None:
        while True:
            with journal.claim(12, suggest, grid.space) as trial:
                if trial is None:
                    return
                claimed.append(trial.number)
                journal.end(trial, TrialState.COMPLETE, 0.5)

    threads = [threading.Thread(target=work, args=(journal,)) for journal in journals]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(claimed) == list(range(12))
    assert [trial.number for trial in journals[0].trials()] == list(range(12))


def test_half_a_line_of_a_killed_process_is_removed(grid: Sweep) -> None:
    journal = journal_of(grid)
    with journal.claim(1, suggest, grid.space) as trial:
        assert trial is not None
        path = grid.folder / JOURNAL
        whole = path.read_bytes()
        path.write_bytes(whole + b'{"op_code":7,"worker')
        reopened = journal_of(grid)
        assert len(reopened.trials()) == 1
        reopened.report(trial, [0.25])
        assert path.read_bytes().startswith(whole + b'{"op_code":7')
        assert journal.trials()[0].intermediate_values == {0: 0.25}


def test_the_journals_lock_waits_for_the_process_that_writes(tmp_path: Path) -> None:
    path = tmp_path / "journal"
    path.write_bytes(b"")
    one, other = FileLock(path), FileLock(path)
    one.acquire()
    waiter = threading.Thread(target=other.acquire)
    waiter.start()
    waiter.join(0.1)
    assert waiter.is_alive()
    one.release()
    waiter.join()
    other.release()


def test_scores_are_reported_once(grid: Sweep) -> None:
    journal = journal_of(grid)
    with journal.claim(1, suggest, grid.space) as trial:
        assert trial is not None
        journal.report(trial, [0.1])
        size = (grid.folder / JOURNAL).stat().st_size
        assert journal.report(trial, [0.1]).intermediate_values == {0: 0.1}
        assert (grid.folder / JOURNAL).stat().st_size == size
        assert journal.report(trial, [0.1, 0.2, 0.3]).intermediate_values == {0: 0.1, 1: 0.2, 2: 0.3}


def ended(sweep: Sweep, count: int, sign: int = 1) -> Journal:
    """Return a journal with trials that are done, whose scores rise with optim.lr, or fall."""
    journal = journal_of(sweep)
    for _ in range(count):
        with journal.claim(count, lambda number: journal.sample(number, sweep.space, 3), sweep.space) as trial:
            assert trial is not None
            journal.end(trial, TrialState.COMPLETE, sign * float(trial.parameters["optim.lr"]))
    return journal


def test_the_first_samples_depend_on_number_and_seed_alone(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, SAMPLED)
    empty = journal_of(sweep)
    before = [empty.sample(number, sweep.space, 3) for number in range(RANDOM_TRIALS)]
    full = ended(sweep, RANDOM_TRIALS + 2)
    assert [full.sample(number, sweep.space, 3) for number in reversed(range(RANDOM_TRIALS))] == before[::-1]
    assert [dict(trial.params) for trial in full.trials()[:RANDOM_TRIALS]] == before
    assert len({str(sample) for sample in before}) == RANDOM_TRIALS
    assert before[0] != empty.sample(0, sweep.space, 4)
    for sample in before:
        assert 1e-4 <= float(sample["optim.lr"]) <= 1e-1 and sample["loss"] in ("{bce: 1}", "{dice: 1}")
    plain = RandomSampler(seed=1).sample_independent(
        empty.study, create_trial(state=TrialState.RUNNING), "loss", sweep.space.parameters["loss"].distribution
    )
    assert plain in sweep.space.parameters["loss"].texts


def test_later_samples_follow_the_scores_and_can_be_repeated(tmp_path: Path) -> None:
    numbers = range(RANDOM_TRIALS, RANDOM_TRIALS + 10)
    samples = []
    for name, sign in (("rises", 1), ("again", 1), ("falls", -1)):
        (tmp_path / name).mkdir()
        sweep = sweep_of(tmp_path / name, SAMPLED)
        journal = ended(sweep, RANDOM_TRIALS, sign)
        samples.append([journal.sample(number, sweep.space, 3) for number in numbers])
    rising, again, falling = ([float(sample["optim.lr"]) for sample in each] for each in samples)
    assert samples[0] == samples[1] and rising == again
    assert len(set(rising)) == len(numbers)
    # The interval ends at 0.1, and its logarithmic middle is 0.003.
    assert max(rising) > 0.05 > max(falling)
    assert sum(rate < 0.003 for rate in falling) > sum(rate < 0.003 for rate in rising)


def test_a_sweep_goes_on_with_its_own_settings_only(grid: Sweep) -> None:
    journal_of(grid)
    record = record_of(grid)
    begin(grid.folder, record)
    for change, words in (
        ({"config": "0"}, "another config or other values of --set"),
        ({"shards": "0"}, "other shards"),
        ({"space": {}}, "other values in --space"),
        ({"grid": False}, "--grid, or without it"),
        ({"folds": [0, 1]}, "other folds"),
        ({"seed": 1}, "another seed"),
        ({"prune": 1}, "another --prune"),
    ):
        with pytest.raises(InputError, match=f"{RECORD}: this sweep was begun with {words}; begin another with --name"):
            begin(grid.folder, record.model_copy(update=change))


def test_a_folder_without_a_sweep_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="nothing: holds no sweep; begin one with --config, --space and --shards"):
        read_record(tmp_path / "nothing")
    (tmp_path / RECORD).write_text("{}")
    with pytest.raises(InputError, match=f"{RECORD}: damaged at format"):
        read_record(tmp_path)


def test_a_held_lock_without_a_trial_is_refused(grid: Sweep) -> None:
    with journal_of(grid).claim(9, suggest, grid.space) as trial:
        assert trial is not None and (grid.folder / LOCKS / "000").exists()
        (grid.folder / JOURNAL).unlink()
        claim = journal_of(grid).claim(9, suggest, grid.space)
        with pytest.raises(InputError, match="the lock of trial 0 is held, but the trial does not exist"), claim:
            pass


def test_a_file_system_without_locks_is_refused(grid: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", refuse)
    with pytest.raises(InputError, match=r"this file system has no file locks \(No locks available\).* put --runs on"):
        journal_of(grid)


def test_a_damaged_journal_is_named(grid: Sweep) -> None:
    journal_of(grid)
    whole = (grid.folder / JOURNAL).read_text()
    for damage in ("{\n" + whole, "{}\n", "[]\n", '{"op_code":7,"worker_id":"0"}\n'):
        (grid.folder / JOURNAL).write_text(damage)
        with pytest.raises(InputError, match=rf"{JOURNAL}: damaged \(.*\); restore it from a copy"):
            journal_of(grid)


def test_a_journal_is_read_without_writing(grid: Sweep) -> None:
    journal_of(grid)
    content = (grid.folder / JOURNAL).read_bytes()
    assert journal_of(grid).trials() == [] and (grid.folder / JOURNAL).read_bytes() == content
