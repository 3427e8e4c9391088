"""Checkpoints that a thread writes."""

import errno
import threading
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_state import state_of

from pneumo_dist.runs import checkpoint_folder
from pneumo_dist.runs.checkpoint import CheckpointFile, load_checkpoint
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.checkpoint_writer import CheckpointWriter


class Gate:
    """Holds a writer's thread until it is opened, and records the order of events."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.opened = threading.Event()
        self.events: list[str] = []
        real = CheckpointFolder.save

        def save_later(folder: CheckpointFolder, step: int, state: dict[str, Any]) -> CheckpointFile:
            assert self.opened.wait(30)
            self.events.append(f"begin {step}")
            threading.Event().wait(0.05)  # a next save that does not wait would come in here
            file = real(folder, step, state)
            self.events.append(f"end {step}")
            return file

        monkeypatch.setattr(CheckpointFolder, "save", save_later)


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    return Gate(monkeypatch)


def nothing() -> None:
    pass


def test_state_is_copied_at_the_call(tmp_path: Path, gate: Gate) -> None:
    weight, moment = torch.ones(3), torch.full((2,), 5.0)
    optimizer = {"state": {0: {"moment": moment}}, "groups": [{"betas": (0.9, 0.99), "params": [0]}]}
    state = state_of(3, [{"step": 3, "score": 0.5}], model={"weight": weight}, optimizer=optimizer)
    history = state["history"]
    writer = CheckpointWriter(CheckpointFolder(tmp_path))
    writer.save(3, state, nothing)
    # Training continues before the thread has started.
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


def test_saves_are_written_in_order_and_each_calls_its_callback(tmp_path: Path, gate: Gate) -> None:
    gate.opened.set()
    writer = CheckpointWriter(CheckpointFolder(tmp_path))
    for step in (1, 2, 3):

        def after(step: int = step) -> None:
            assert [file.step for file in CheckpointFolder(tmp_path).files()] == list(range(step, 0, -1))
            gate.events.append(f"after {step}")

        writer.save(step, state_of(step), after)
    assert writer.wait() is None
    assert gate.events == [f"{what} {step}" for step in (1, 2, 3) for what in ("begin", "end", "after")]


def test_one_save_waits_with_its_copy_and_the_next_one_at_the_call(tmp_path: Path, gate: Gate) -> None:
    weight = torch.ones(2)
    writer = CheckpointWriter(CheckpointFolder(tmp_path))
    for step in (1, 2):
        weight.fill_(step)
        writer.save(step, state_of(step, model={"weight": weight}), nothing)  # returns, although none is written yet
    weight.fill_(3)
    third = threading.Thread(target=writer.save, args=(3, state_of(3, model={"weight": weight}), nothing))
    third.start()
    third.join(0.2)
    assert third.is_alive() and gate.events == []
    gate.opened.set()
    third.join()
    assert writer.wait() is None
    assert gate.events == [f"{what} {step}" for step in (1, 2, 3) for what in ("begin", "end")]
    for file in CheckpointFolder(tmp_path).files():
        assert load_checkpoint(file.path)["model"]["weight"].tolist() == [file.step] * 2


def test_fault_of_the_program_is_raised_by_the_next_call_and_nothing_more_is_written(
    tmp_path: Path, gate: Gate
) -> None:
    def fault() -> None:
        raise ZeroDivisionError

    writer = CheckpointWriter(CheckpointFolder(tmp_path))
    writer.save(1, state_of(1), fault)
    writer.save(2, state_of(2), nothing)
    gate.opened.set()
    with pytest.raises(ZeroDivisionError):
        writer.wait()
    with pytest.raises(ZeroDivisionError):
        writer.save(3, state_of(3), nothing)
    assert [file.step for file in CheckpointFolder(tmp_path).files()] == [1]


def test_save_returns_before_the_file_exists_and_wait_after(tmp_path: Path, gate: Gate) -> None:
    writer = CheckpointWriter(CheckpointFolder(tmp_path))
    writer.save(1, state_of(1), nothing)
    assert CheckpointFolder(tmp_path).files() == []
    gate.opened.set()
    writer.wait()
    assert [file.step for file in CheckpointFolder(tmp_path).files()] == [1]


def test_wait_without_a_save_is_no_error(tmp_path: Path) -> None:
    assert CheckpointWriter(CheckpointFolder(tmp_path)).wait() is None


def test_save_to_a_full_disk_warns_once_and_keeps_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    writer = CheckpointWriter(CheckpointFolder(tmp_path))
    writer.save(1, state_of(1), nothing)
    assert writer.wait() is None
    before = sorted(path.name for path in tmp_path.iterdir())
    called: list[int] = []

    def full(folder: Path, prefix: str) -> None:
        raise OSError(errno.ENOSPC, "No space left on device", str(folder / prefix))

    with monkeypatch.context() as disk, pytest.warns(UserWarning) as caught:
        disk.setattr(checkpoint_folder, "atomic_named_later", full)
        writer.save(2, state_of(2), lambda: called.append(2))
        error = writer.wait()
    assert isinstance(error, OSError) and error.errno == errno.ENOSPC
    (warning,) = caught
    message = str(warning.message)
    assert str(tmp_path) in message and "step 2 is not saved (No space left on device)" in message
    assert called == [] and sorted(path.name for path in tmp_path.iterdir()) == before
    found = CheckpointFolder(tmp_path).newest()
    assert found is not None and found.step == 1
    assert writer.wait() is error, "a second wait still knows"
    writer.save(3, state_of(3), lambda: called.append(3))
    assert writer.wait() is None and called == [3]
    assert [file.step for file in CheckpointFolder(tmp_path).files()] == [3, 1]


def test_warning_says_that_only_the_callback_failed(tmp_path: Path) -> None:
    def after() -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    writer = CheckpointWriter(CheckpointFolder(tmp_path))
    with pytest.warns(UserWarning, match="of step 3 is saved, but its links and logs are not updated"):
        writer.save(3, state_of(3), after)
        assert isinstance(writer.wait(), OSError)
    assert [file.step for file in CheckpointFolder(tmp_path).files()] == [3]


def test_equal_states_give_equal_bytes_whichever_strings_they_share(tmp_path: Path) -> None:
    # Strings of a loaded state are objects of their own, such as the key that `position` and the optimizer both have.
    state = state_of(1, [{"step": 1, "score": 0.5}])
    own = {**state, "position": {"".join(list(name)): value for name, value in state["position"].items()}}
    assert own == state and any(a is not b for a, b in zip(own["position"], state["position"], strict=True))
    files = []
    for folder, each in (("shared", state), ("own", own)):
        writer = CheckpointWriter(CheckpointFolder(tmp_path / folder))
        (tmp_path / folder).mkdir()
        writer.save(1, each, after=lambda: None)
        assert writer.wait() is None
        files.append(next((tmp_path / folder).glob("step-*.pt")).read_bytes())
    assert files[0] == files[1]
