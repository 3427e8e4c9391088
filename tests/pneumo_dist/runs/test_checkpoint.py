"""Checkpoints: digests in names, falling back, keeping the best, nothing unpickled, written from a thread."""

import errno
import hashlib
import threading
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from damage import empty, flip_bit, truncate
from tiny_state import state_of

from pneumo_dist.runs import checkpoint
from pneumo_dist.runs.checkpoint import (
    CheckpointFile,
    CheckpointWriter,
    best_files,
    is_whole,
    keep_only,
    keys_digest,
    list_checkpoints,
    load_checkpoint,
    newest_good,
    remove_stale_temporaries,
    save_checkpoint,
    top_files,
    top_steps,
    weights_of,
)
from shards.errors import InputError


def save(folder: Path, *steps: int) -> list[CheckpointFile]:
    return [save_checkpoint(folder, step, state_of(step)) for step in steps]


def test_name_carries_step_and_digest(tmp_path: Path) -> None:
    (file,) = save(tmp_path, 1200)
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()[:16]
    assert file.path.name == f"step-00001200-{digest}.pt"
    assert is_whole(file)
    assert (tmp_path / "last").resolve() == file.path


def test_load_gives_back_tensors_and_plain_types(tmp_path: Path) -> None:
    (file,) = save(tmp_path, 3)
    for path in (file.path, tmp_path / "last"):
        state = load_checkpoint(path)
        assert torch.equal(state["model"]["weight"], torch.full((4, 4), 3.0))
        assert state == {"format_version": 1, **state_of(3), "model": state["model"]}


class Harm:
    """What a pickle could make of itself."""

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return print, ("unpickled",)


def test_nothing_is_unpickled(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    torch.save({"model": Harm()}, tmp_path / "harm.pt")
    with pytest.raises(InputError, match=r"harm\.pt: not a readable checkpoint"):
        load_checkpoint(tmp_path / "harm.pt")
    assert "unpickled" not in capsys.readouterr().out


def test_file_without_a_model_and_missing_file_are_input_errors(tmp_path: Path) -> None:
    torch.save({"other": 1}, tmp_path / "other.pt")
    with pytest.raises(InputError, match="no model"):
        load_checkpoint(tmp_path / "other.pt")
    with pytest.raises(InputError, match="no such checkpoint"):
        load_checkpoint(tmp_path / "last")


@pytest.mark.parametrize(("noted", "wrote"), [({"version": "9.0.0"}, "9.0.0"), ({}, "version not noted")])
def test_other_format_is_refused_with_who_wrote_it(tmp_path: Path, noted: dict[str, str], wrote: str) -> None:
    torch.save({"format_version": 2, "model": {}, **noted}, tmp_path / "new.pt")
    with pytest.raises(
        InputError, match=rf"new\.pt: a checkpoint of format version 2, .* reads version 1; .*\({wrote}\)"
    ):
        load_checkpoint(tmp_path / "new.pt")


def test_format_is_noted_and_its_absence_is_version_1(tmp_path: Path) -> None:
    assert load_checkpoint(save_checkpoint(tmp_path, 1, state_of(1)).path)["format_version"] == 1
    torch.save(state_of(1), tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt").keys() == state_of(1).keys()


def test_newest_whole_file_is_taken_without_a_warning(tmp_path: Path) -> None:
    files = save(tmp_path, 10, 30, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = newest_good(tmp_path)
    assert found == files[1]


@pytest.mark.parametrize("damage", [truncate, flip_bit, empty])
def test_damaged_newest_falls_back_with_a_warning_that_names_both(tmp_path: Path, damage: Any) -> None:
    before, newest = save(tmp_path, 10, 20)
    damage(newest.path)
    with pytest.warns(UserWarning) as caught:
        found = newest_good(tmp_path)
    assert found == before
    (warning,) = caught
    assert newest.path.name in str(warning.message) and before.path.name in str(warning.message)
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(newest.path)


def test_all_damaged_is_an_input_error_and_removes_nothing(tmp_path: Path) -> None:
    files = save(tmp_path, 10, 20)
    for file in files:
        flip_bit(file.path)
    with pytest.raises(InputError, match="none of the 2 checkpoints is whole"):
        newest_good(tmp_path)
    assert all(file.path.exists() for file in files)


def test_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert newest_good(tmp_path) is None


def test_unfinished_writes_and_foreign_names_are_no_checkpoints(tmp_path: Path) -> None:
    (file,) = save(tmp_path, 5)
    (tmp_path / f".{file.path.name}.abc.tmp").write_bytes(b"part")
    (tmp_path / "step-9-x.pt").write_bytes(b"foreign")
    assert list_checkpoints(tmp_path) == [file]
    remove_stale_temporaries(tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["last", "step-9-x.pt", file.path.name])


def test_second_save_of_a_step_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, 5)
    later = save_checkpoint(tmp_path, 5, state_of(6))
    assert list_checkpoints(tmp_path) == [later]
    assert (tmp_path / "last").resolve() == later.path


def test_same_state_keeps_its_name(tmp_path: Path) -> None:
    assert save(tmp_path, 5) == save(tmp_path, 5)
    assert len(list_checkpoints(tmp_path)) == 1


def test_keep_only_keeps_the_best_and_the_newest_two(tmp_path: Path) -> None:
    files = {file.step: file for file in save(tmp_path, 1, 2, 3, 4, 5, 6)}
    (tmp_path / "last").unlink()
    keep_only(tmp_path, [4, 2])
    assert [file.step for file in list_checkpoints(tmp_path)] == [6, 5, 4, 2]
    assert (tmp_path / "best").resolve() == files[4].path
    assert (tmp_path / "last").resolve() == files[6].path
    keep_only(tmp_path, [5])
    assert [file.step for file in list_checkpoints(tmp_path)] == [6, 5]
    assert (tmp_path / "best").resolve() == files[5].path


def test_best_is_the_best_that_has_a_file(tmp_path: Path) -> None:
    files = {file.step: file for file in save(tmp_path, 1, 2, 3, 4, 5)}
    keep_only(tmp_path, [9, 2])
    assert (tmp_path / "best").resolve() == files[2].path
    keep_only(tmp_path, [9])
    assert (tmp_path / "best").is_symlink() and [file.step for file in list_checkpoints(tmp_path)] == [5, 4]
    history = [{"step": step, "score": score} for step, score in ((4, 0.2), (9, 0.9), (5, 0.3))]
    with pytest.warns(UserWarning, match=r"of step 9, is missing; taking step-00000005"):
        found = best_files(tmp_path, history, 2)
    assert found == [files[5], files[4]]
    with pytest.raises(InputError, match="no validated checkpoint"):
        best_files(tmp_path, [{"step": 9, "score": 0.9}], 1)


def test_top_steps_are_best_first_and_the_earlier_of_equals() -> None:
    history = [{"step": step, "score": score} for step, score in ((30, 0.5), (10, 0.5), (20, 0.9), (40, 0.1))]
    assert top_steps(history, 3) == [20, 10, 30]
    assert top_steps(history, 9) == [20, 10, 30, 40]
    assert top_steps([], 1) == []


def test_top_files_follow_the_newest_history(tmp_path: Path) -> None:
    history = [{"step": step, "score": score} for step, score in ((1, 0.2), (2, 0.8), (3, 0.4))]
    save(tmp_path, 1, 2)
    save_checkpoint(tmp_path, 3, state_of(3, history))
    assert [file.step for file in top_files(tmp_path, 2)] == [2, 3]
    with pytest.raises(InputError, match="no checkpoints"):
        top_files(tmp_path / "missing", 1)


def test_top_files_before_the_first_validation_is_an_input_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError, match="no validated checkpoint"):
        top_files(tmp_path, 1)


def test_digest_of_keys_ignores_order_and_notices_every_key() -> None:
    assert keys_digest(["a", "b"]) == keys_digest(["b", "a"])
    assert len({keys_digest(keys) for keys in (["a"], ["a", "b"], ["ab"], [])}) == 4


def test_weights_are_the_average_where_there_is_one() -> None:
    state = state_of(1)
    average = {"weight": torch.zeros(4, 4)}
    assert weights_of({**state, "averaged": average}) is average
    assert weights_of({**state, "averaged": None}) is state["model"]


# Writing from a thread


class Gate:
    """Lets a writer's thread reach the disk only once it is opened, and notes what happens when."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.events: list[str] = []
        real = checkpoint.save_checkpoint

        def save_later(folder: Path, step: int, state: dict[str, Any]) -> CheckpointFile:
            assert self.opened.wait(30)
            self.events.append(f"begin {step}")
            threading.Event().wait(0.05)  # a next save that does not wait would come in between
            file = real(folder, step, state)
            self.events.append(f"end {step}")
            return file

        monkeypatch.setattr(checkpoint, "save_checkpoint", save_later)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def nothing() -> None:
    pass


def test_state_is_copied_when_it_is_handed_over(tmp_path: Path, gate: Gate) -> None:
    weight, moment = torch.ones(3), torch.full((2,), 5.0)
    optimizer = {"state": {0: {"moment": moment}}, "groups": [{"betas": (0.9, 0.99), "params": [0]}]}
    state = state_of(3, [{"step": 3, "score": 0.5}], model={"weight": weight}, optimizer=optimizer)
    history = state["history"]
    writer = CheckpointWriter(tmp_path)
    writer.save(3, state, nothing)
    # Training goes on while the thread has not even begun.
    weight.mul_(7)
    moment.zero_()
    history.append({"score": 0.9})
    history[0]["score"] = 0.1
    state["position"]["step"] = 4
    gate.opened.set()
    assert writer.wait() is None
    found = load_checkpoint(tmp_path / "last")
    assert torch.equal(found["model"]["weight"], torch.ones(3))
    assert torch.equal(found["optimizer"]["state"][0]["moment"], torch.full((2,), 5.0))
    assert found["optimizer"]["groups"] == [{"betas": (0.9, 0.99), "params": [0]}]
    assert found["history"] == [{"epoch": 0, "step": 3, "score": 0.5}] and found["position"]["step"] == 0


def test_saves_are_written_in_turn_and_each_is_followed_by_its_after(tmp_path: Path, gate: Gate) -> None:
    gate.opened.set()
    writer = CheckpointWriter(tmp_path)
    for step in (1, 2, 3):

        def after(step: int = step) -> None:
            assert [file.step for file in list_checkpoints(tmp_path)] == list(range(step, 0, -1))
            gate.events.append(f"after {step}")

        writer.save(step, state_of(step), after)
    assert writer.wait() is None
    assert gate.events == [f"{what} {step}" for step in (1, 2, 3) for what in ("begin", "end", "after")]


def test_save_returns_before_the_file_stands_and_wait_after(tmp_path: Path, gate: Gate) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.save(1, state_of(1), nothing)
    assert list_checkpoints(tmp_path) == []
    gate.opened.set()
    writer.wait()
    assert [file.step for file in list_checkpoints(tmp_path)] == [1]


def test_wait_without_a_save_is_no_error(tmp_path: Path) -> None:
    assert CheckpointWriter(tmp_path).wait() is None


def test_save_onto_a_full_disk_warns_once_and_leaves_what_stands(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    writer = CheckpointWriter(tmp_path)
    writer.save(1, state_of(1), nothing)
    assert writer.wait() is None
    before = sorted(path.name for path in tmp_path.iterdir())
    called: list[int] = []

    def full(path: Path, content: bytes) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(path))

    with monkeypatch.context() as disk, pytest.warns(UserWarning) as caught:
        disk.setattr(checkpoint, "atomic_write", full)
        writer.save(2, state_of(2), lambda: called.append(2))
        error = writer.wait()
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC
    (warning,) = caught
    message = str(warning.message)
    assert str(tmp_path) in message and "step 2 is not saved (No space left on device)" in message
    assert called == [] and sorted(path.name for path in tmp_path.iterdir()) == before
    found = newest_good(tmp_path)
    assert found is not None and found.step == 1
    assert writer.wait() is error, "a second wait still knows"
    writer.save(3, state_of(3), lambda: called.append(3))
    assert writer.wait() is None and called == [3]
    assert [file.step for file in list_checkpoints(tmp_path)] == [3, 1]


def test_save_that_does_not_fit_takes_no_room_from_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = save(tmp_path, 1)
    monkeypatch.setattr(checkpoint.shutil, "disk_usage", lambda path: SimpleNamespace(free=100))
    monkeypatch.setattr(checkpoint, "atomic_write", None)
    with pytest.raises(OSError, match="No space left") as caught:
        save(tmp_path, 2)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    assert list_checkpoints(tmp_path) == [before]


def test_warning_says_when_only_what_follows_a_save_failed(tmp_path: Path) -> None:
    def after() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = CheckpointWriter(tmp_path)
    with pytest.warns(UserWarning, match="of step 3 is saved, but not what goes with it"):
        writer.save(3, state_of(3), after)
        assert isinstance(writer.wait(), OSError)
    assert [file.step for file in list_checkpoints(tmp_path)] == [3]
