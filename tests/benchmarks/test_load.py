"""The benchmark of thousands of films, on a few."""

from pathlib import Path

import numpy as np
import pytest

from benchmarks import ROOT, load
from benchmarks.load import Command, compared, digests, measure
from benchmarks.load_inputs import MAP, predicted_map


def test_maps_are_mostly_empty_and_cover_most_labels() -> None:
    truth = np.zeros((1024, 1024), np.uint8)
    truth[300:600, 100:300] = 1
    maps = [predicted_map(truth, np.random.default_rng(seed)) for seed in range(20)]
    assert {each.shape for each in maps} == {(MAP, MAP)}
    inside = [each[150:300, 50:150].mean() for each in maps]
    assert np.median(inside) > 150 and np.median([np.mean(each == 0) for each in maps]) > 0.4


def test_memory_of_a_command_and_of_its_children_is_measured(tmp_path: Path) -> None:
    (tmp_path / "child.py").write_text("import time\nblock = bytearray(60 << 20)\ntime.sleep(1)\n")
    start = f"import subprocess, sys\nsubprocess.run([sys.executable, '-m', 'child'], cwd={str(tmp_path)!r})\n"
    (tmp_path / "parent.py").write_text(start + "block = bytearray(20 << 20)\nprint('\\n' * 250)\n")
    usage = measure(Command("a parent", ["parent"]), tmp_path)
    assert usage.seconds > 1 and usage.core_seconds > 0
    assert usage.child > 60 > usage.main
    assert usage.together > usage.child


def test_failed_command_is_an_error_with_its_output(tmp_path: Path) -> None:
    (tmp_path / "failing.py").write_text("raise SystemExit('no films here')\n")
    with pytest.raises(RuntimeError, match="no films here"):
        measure(Command("a failure", ["failing"]), tmp_path)


def test_a_changed_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    paths = [tmp_path / "folder", tmp_path / "file", tmp_path / "missing"]
    (tmp_path / "folder/one").write_text("1")
    (tmp_path / "file").write_text("2")
    before = digests(paths)
    assert compared(before, digests(paths)) == "2 files equal"
    (tmp_path / "folder/one").write_text("3")
    assert compared(before, digests(paths)) == f"DIFFERENT: {tmp_path / 'folder/one'}"
    (tmp_path / "file").unlink()
    assert str(tmp_path / "file") in compared(before, digests(paths))


def test_another_checkout_is_measured_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load.main(["--only", "status", "--films", "3", "--work", str(tmp_path), "--before", str(ROOT)]) == 0
    printed = capsys.readouterr().out
    assert "| status, 3 folds | before |" in printed and "| status, 3 folds | now |" in printed


@pytest.mark.rare
@pytest.mark.slow
def test_commands_run_on_the_made_inputs(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert load.main(["--only", "build,submit,segment", "--films", "10", "--work", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    for name in ("build, 10 films", "submit, 10 films", "segment, 2 films", "segment, 10 films"):
        assert f"| {name} | now |" in printed
    assert len(list((tmp_path / "segmented").glob("*.mask.png"))) == 10
