"""A checkpoint file: nothing is unpickled, and its header can be read without its tensors."""

import os
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from damage import Harm
from tiny_state import save, state_of

from pneumo_dist.runs import checkpoint
from pneumo_dist.runs.checkpoint import load_checkpoint, map_checkpoint, read_header, top_steps, weights_of
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from shards.errors import InputError


def test_load_returns_tensors_and_plain_types(tmp_path: Path) -> None:
    (file,) = save(tmp_path, 3)
    for path in (file.path, tmp_path / "last"):
        state = load_checkpoint(path)
        assert torch.equal(state["model"]["weight"], torch.full((4, 4), 3.0))
        assert state == {"format_version": 1, **state_of(3), "model": state["model"]}


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
def test_other_format_is_refused_with_the_version_that_wrote_it(
    tmp_path: Path, noted: dict[str, str], wrote: str
) -> None:
    torch.save({"format_version": 2, "model": {}, **noted}, tmp_path / "new.pt")
    with pytest.raises(
        InputError, match=rf"new\.pt: a checkpoint of format version 2, .* reads version 1; .*\({wrote}\)"
    ):
        load_checkpoint(tmp_path / "new.pt")


def test_format_is_stored_and_a_missing_one_is_version_1(tmp_path: Path) -> None:
    assert load_checkpoint(CheckpointFolder(tmp_path).save(1, state_of(1)).path)["format_version"] == 1
    torch.save(state_of(1), tmp_path / "old.pt")
    assert load_checkpoint(tmp_path / "old.pt").keys() == state_of(1).keys()


def test_top_steps_are_best_first_and_the_earlier_of_equals() -> None:
    history = [{"step": step, "score": score} for step, score in ((30, 0.5), (10, 0.5), (20, 0.9), (40, 0.1))]
    assert top_steps(history, 3) == [20, 10, 30]
    assert top_steps(history, 9) == [20, 10, 30, 40]
    assert top_steps([], 1) == []


def test_weights_are_the_average_if_there_is_one() -> None:
    state = state_of(1)
    average = {"weight": torch.zeros(4, 4)}
    assert weights_of({**state, "averaged": average}) is average
    assert weights_of({**state, "averaged": None}) is state["model"]


def test_header_is_the_state_without_its_tensors(tmp_path: Path) -> None:
    model = {"weight": torch.rand(2048, 2048)}
    (path,) = (CheckpointFolder(tmp_path).save(3, state_of(3, [{"step": 3, "score": 0.5}], model=model)).path,)

    def bytes_read() -> int:
        return int(Path("/proc/self/io").read_text().split()[1])

    before = bytes_read()
    header = read_header(path)
    assert bytes_read() - before < 100_000 < path.stat().st_size
    state = load_checkpoint(path)
    assert bytes_read() - before > path.stat().st_size
    assert header.keys() == state.keys() and header["model"]["weight"].shape == (2048, 2048)
    assert all(header[name] == state[name] for name in state if name != "model")


def test_damaged_header_is_refused_like_the_whole_file(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(3, {**state_of(3), "lineage": []}).path
    for read in (read_header, load_checkpoint):
        with pytest.raises(InputError, match="damaged at lineage"):
            read(path)


class Bytes:
    """Many bytes in a few of a file: torch lets a state name them."""

    def __reduce__(self) -> tuple[type[bytearray], tuple[int]]:
        return bytearray, (1 << 40,)


def renamed(path: Path, old: str, new: str) -> None:
    """Rename a member of an archive."""
    with zipfile.ZipFile(path) as archive:
        members = {each.filename.replace(old, new): archive.read(each) for each in archive.infolist()}
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content)


@pytest.mark.parametrize("case", ["data.pkl", "DATA.PKL"])
@pytest.mark.parametrize("read", [load_checkpoint, read_header, map_checkpoint])
def test_state_names_nothing_but_tensors_and_plain_types(tmp_path: Path, read: Any, case: str) -> None:
    torch.save({**state_of(1), "optimizer": {"x": Bytes()}}, tmp_path / "x.pt")
    renamed(tmp_path / "x.pt", "data.pkl", case)
    with pytest.raises(InputError, match=r"x\.pt: not a readable checkpoint \(holds '\w+ bytearray', not a plain"):
        read(tmp_path / "x.pt")


def test_state_that_takes_forever_to_walk_is_read_at_once(tmp_path: Path) -> None:
    endless: list[Any] = [torch.ones(1)]
    for _ in range(60):
        endless = [endless, endless]
    torch.save({**state_of(1), "optimizer": {"x": endless}}, tmp_path / "x.pt")
    assert load_checkpoint(tmp_path / "x.pt")["position"]["total"] == 1


def test_description_of_a_state_has_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (file,) = save(tmp_path, 3)
    monkeypatch.setattr(checkpoint, "_MOST_DESCRIPTION", 100)
    with pytest.raises(InputError, match="describes more than a checkpoint holds"):
        load_checkpoint(file.path)


@pytest.mark.parametrize("read", [load_checkpoint, read_header, map_checkpoint])
def test_pipe_is_no_checkpoint(tmp_path: Path, read: Any) -> None:
    os.mkfifo(tmp_path / "x.pt")
    with pytest.raises(InputError, match="is a pipe, a socket or a device"):
        read(tmp_path / "x.pt")
