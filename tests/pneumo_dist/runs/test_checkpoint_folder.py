"""A folder of checkpoints: names, the newest, the best, and removal of old ones."""

import errno
import hashlib
import io
import os
import shutil
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from damage import empty, flip_bit, truncate
from tiny_state import save, state_of

from pneumo_dist.runs import checkpoint_folder
from pneumo_dist.runs.checkpoint import CheckpointFile, load_checkpoint
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from shards.errors import InputError


def test_name_has_step_and_digest(tmp_path: Path) -> None:
    (file,) = save(tmp_path, 1200)
    digest = hashlib.sha256(file.path.read_bytes()).hexdigest()[:16]
    assert file.path.name == f"step-00001200-{digest}.pt"
    assert file.is_whole()
    assert torch.load(file.path)["format_version"] == 1
    assert (tmp_path / "last").resolve() == file.path


def test_newest_complete_file_is_chosen_without_a_warning(tmp_path: Path) -> None:
    files = save(tmp_path, 10, 30, 20)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        found = CheckpointFolder(tmp_path).newest()
    assert found == files[1]


def test_file_has_the_bytes_that_torch_writes_to_memory(tmp_path: Path) -> None:
    """It is hashed and written in parts, and not held in memory."""
    shared = torch.rand(3000)
    state = state_of(7, model={"weight": torch.rand(400, 300), "a": shared[:10], "b": shared[10:]})
    expected = io.BytesIO()
    torch.save({"format_version": 1, **state}, expected)
    assert CheckpointFolder(tmp_path).save(7, state).path.read_bytes() == expected.getvalue()


@pytest.mark.parametrize("damage", [truncate, flip_bit, empty])
def test_damaged_newest_falls_back_with_a_warning_about_both(tmp_path: Path, damage: Any) -> None:
    before, newest = save(tmp_path, 10, 20)
    damage(newest.path)
    with pytest.warns(UserWarning) as caught:
        found = CheckpointFolder(tmp_path).newest()
    assert found == before
    (warning,) = caught
    assert newest.path.name in str(warning.message) and before.path.name in str(warning.message)
    with pytest.raises(InputError, match="damaged"):
        load_checkpoint(newest.path)


def test_only_damaged_files_are_an_input_error_and_stay(tmp_path: Path) -> None:
    files = save(tmp_path, 10, 20)
    for file in files:
        flip_bit(file.path)
    with pytest.raises(InputError, match=f"^{tmp_path}: none of the 2 checkpoints is whole"):
        CheckpointFolder(tmp_path).newest()
    assert all(file.path.exists() for file in files)


def test_empty_folder_has_no_checkpoint(tmp_path: Path) -> None:
    assert CheckpointFolder(tmp_path).newest() is None


def test_unfinished_writes_and_foreign_names_are_no_checkpoints(tmp_path: Path) -> None:
    (file,) = save(tmp_path, 5)
    (tmp_path / f".{file.path.name}.abc.tmp").write_bytes(b"part")
    (tmp_path / "step-9-x.pt").write_bytes(b"foreign")
    assert CheckpointFolder(tmp_path).files() == [file]
    CheckpointFolder(tmp_path).remove_temporaries()
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(["last", "step-9-x.pt", file.path.name])


def test_second_save_of_a_step_replaces_the_first(tmp_path: Path) -> None:
    save(tmp_path, 5)
    later = CheckpointFolder(tmp_path).save(5, state_of(6))
    assert CheckpointFolder(tmp_path).files() == [later]
    assert (tmp_path / "last").resolve() == later.path


def test_same_state_keeps_its_name(tmp_path: Path) -> None:
    assert save(tmp_path, 5) == save(tmp_path, 5)
    assert len(CheckpointFolder(tmp_path).files()) == 1


def test_keep_only_keeps_the_best_and_the_newest_two(tmp_path: Path) -> None:
    files = {file.step: file for file in save(tmp_path, 1, 2, 3, 4, 5, 6)}
    (tmp_path / "last").unlink()
    CheckpointFolder(tmp_path).keep([4, 2])
    assert [file.step for file in CheckpointFolder(tmp_path).files()] == [6, 5, 4, 2]
    assert (tmp_path / "best").resolve() == files[4].path
    assert (tmp_path / "last").resolve() == files[6].path
    CheckpointFolder(tmp_path).keep([5])
    assert [file.step for file in CheckpointFolder(tmp_path).files()] == [6, 5]
    assert (tmp_path / "best").resolve() == files[5].path


def test_best_is_the_best_step_with_a_file(tmp_path: Path) -> None:
    files = {file.step: file for file in save(tmp_path, 1, 2, 3, 4, 5)}
    CheckpointFolder(tmp_path).keep([9, 2])
    assert (tmp_path / "best").resolve() == files[2].path
    CheckpointFolder(tmp_path).keep([9])
    assert (tmp_path / "best").is_symlink() and [file.step for file in CheckpointFolder(tmp_path).files()] == [5, 4]
    history = [{"step": step, "score": score} for step, score in ((4, 0.2), (9, 0.9), (5, 0.3))]
    with pytest.warns(UserWarning, match=r"of step 9, is missing; using step-00000005"):
        found = CheckpointFolder(tmp_path).best(history, 2)
    assert found == [files[5], files[4]]
    with pytest.raises(InputError, match="no validated checkpoint"):
        CheckpointFolder(tmp_path).best([{"step": 9, "score": 0.9}], 1)


def test_header_of_averaged_weights_is_an_error_that_names_the_file(tmp_path: Path) -> None:
    averaged = {key: value for key, value in state_of(1).items() if key != "position"} | {"parts": ["a.pt"]}
    file = CheckpointFolder(tmp_path).save(1, averaged)
    with pytest.raises(InputError, match=f"^{file.path}: holds averaged weights"):
        CheckpointFolder(tmp_path).header()


def test_best_whole_file_is_the_best_or_an_error(tmp_path: Path) -> None:
    files = save(tmp_path, 1, 2, 3)
    history = [{"step": step, "score": score} for step, score in ((1, 0.2), (2, 0.8), (3, 0.4))]
    assert CheckpointFolder(tmp_path).best_whole(history) == files[1]
    flip_bit(files[1].path)
    with pytest.raises(InputError, match=rf"{files[1].path.name}: damaged"):
        CheckpointFolder(tmp_path).best_whole(history)


def test_recovery_removes_damaged_newer_files_and_temporaries_alone(tmp_path: Path) -> None:
    folder = tmp_path / "new/checkpoints"
    assert CheckpointFolder(folder).recover() is None and folder.is_dir()
    files = save(folder, 1, 2, 3, 4)
    for file in (files[0], files[2], files[3]):
        flip_bit(file.path)
    (folder / f".{files[3].path.name}.abc.tmp").write_bytes(b"part")
    with pytest.warns(UserWarning, match=f"{files[3].path.name} is damaged"):
        assert CheckpointFolder(folder).recover() == files[1]
    assert CheckpointFolder(folder).files() == [files[1], files[0]]
    assert not list(folder.glob(".*"))


def test_verified_file_is_not_read_again_unless_it_changes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = save(tmp_path, 1)
    folder = CheckpointFolder(tmp_path)
    assert folder.newest() == file
    with monkeypatch.context() as patched:
        patched.setattr(CheckpointFile, "is_whole", None)
        assert folder.newest() == file
    flip_bit(file.path)
    os.utime(file.path, ns=(1, 1))  # the clock of the file system may be too coarse to tell the two writes apart
    with pytest.raises(InputError, match="none of the 1 checkpoints is whole"):
        folder.newest()


def test_top_files_follow_the_newest_history(tmp_path: Path) -> None:
    history = [{"step": step, "score": score} for step, score in ((1, 0.2), (2, 0.8), (3, 0.4))]
    save(tmp_path, 1, 2)
    CheckpointFolder(tmp_path).save(3, state_of(3, history))
    assert [file.step for file in CheckpointFolder(tmp_path).top(2)] == [2, 3]
    with pytest.raises(InputError, match="no checkpoints"):
        CheckpointFolder(tmp_path / "missing").top(1)


def test_top_files_before_the_first_validation_is_an_input_error(tmp_path: Path) -> None:
    save(tmp_path, 1)
    with pytest.raises(InputError, match="no validated checkpoint"):
        CheckpointFolder(tmp_path).top(1)


def test_save_that_does_not_fit_removes_no_other_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (before,) = save(tmp_path, 1)  # its tensor has 64 bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=63))
    monkeypatch.setattr(checkpoint_folder, "atomic_named_later", None)
    with pytest.raises(OSError, match="No space left") as caught:
        save(tmp_path, 2)
    assert caught.value.errno == errno.ENOSPC and caught.value.filename == str(tmp_path)
    assert CheckpointFolder(tmp_path).files() == [before]
