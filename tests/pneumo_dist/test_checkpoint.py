"""Checkpoints: digests in names, falling back, keeping the best, nothing unpickled."""

import hashlib
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from pneumo_dist.checkpoint import (
    CheckpointFile,
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
)
from shards.errors import InputError

State = dict[str, Any]


def state_of(step: int, history: list[State] | None = None) -> State:
    return {"model": {"weight": torch.full((4, 4), float(step))}, "history": history or [], "position": {"step": step}}


def save(folder: Path, *steps: int) -> list[CheckpointFile]:
    return [save_checkpoint(folder, step, state_of(step)) for step in steps]


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-100])


def flip_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def empty(path: Path) -> None:
    path.write_bytes(b"")


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
        assert state["position"] == {"step": 3}


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
