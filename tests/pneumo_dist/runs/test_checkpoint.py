"""A checkpoint file: nothing is unpickled, and its header can be read without its tensors."""

from pathlib import Path

import pytest
import torch
from damage import Harm
from tiny_state import save, state_of

from pneumo_dist.runs.checkpoint import load_checkpoint, read_header, top_steps, weights_of
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
