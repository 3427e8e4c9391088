"""The judge sees what a fault leaves behind, and five rounds of the quickest commands pass."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from integration.conftest import ROOT, environment
from tools.chaos.__main__ import append, line, read, table
from tools.chaos.chain import inventory
from tools.chaos.processes import MARK, Running, marked
from tools.chaos.rounds import Verdict

BEAT = {"state": "done", "stage": "last", "epoch": 1, "epochs": 2, "step": 6}


def test_inventory_ignores_speed_and_nothing_else(tmp_path: Path) -> None:
    folder = tmp_path / "fold0"
    (folder / "tensorboard").mkdir(parents=True)
    (folder / "tensorboard/events.out").write_text("a time")
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "loss": 0.5, "images_per_s": 7.0}) + "\n")
    (folder / "summary.csv").write_text("epoch,images_per_s\n1,7.0\n")
    (folder / "heartbeat.json").write_text(json.dumps({**BEAT, "time": 1.0, "pid": 5}))
    (folder / "config.yaml").write_text("name: x\n")
    (folder / "last").symlink_to("config.yaml")
    before = inventory(tmp_path)
    assert set(before) == {
        f"fold0/{name}" for name in ("metrics.jsonl", "summary.csv", "heartbeat.json", "config.yaml", "last")
    }

    (folder / "tensorboard/more").write_text("another time")
    (folder / "metrics.jsonl").write_text(json.dumps({"epoch": 0, "loss": 0.5, "images_per_s": 9.0}) + "\n")
    (folder / "summary.csv").write_text("epoch,images_per_s\n1,9.0\n")
    (folder / "heartbeat.json").write_text(json.dumps({**BEAT, "time": 2.0, "pid": 6}))
    assert inventory(tmp_path) == before

    for name, text in (
        ("metrics.jsonl", json.dumps({"epoch": 0, "loss": 0.25, "images_per_s": 9.0}) + "\n"),
        ("summary.csv", "epoch,images_per_s\n2,9.0\n"),
        ("heartbeat.json", json.dumps({**BEAT, "epoch": 2})),
        ("config.yaml", "name: y\n"),
        (".metrics.jsonl.tmp", ""),
    ):
        old = (folder / name).read_text() if (folder / name).exists() else None
        (folder / name).write_text(text)
        changed = inventory(tmp_path)
        assert {key for key in changed if changed[key] != before.get(key)} == {f"fold0/{name}"}
        (folder / name).unlink()
        if old is not None:
            (folder / name).write_text(old)
    (folder / "empty").mkdir()
    assert set(inventory(tmp_path)) - set(before) == {"fold0/empty/"}


def test_all_processes_of_a_command_are_found_and_killed(tmp_path: Path) -> None:
    """The grandchild is in its own session, and its parent ends at once."""
    (tmp_path / "tmp").mkdir()
    code = "import subprocess, sys; subprocess.Popen(['sleep', '60'], start_new_session=True)"
    running = Running([sys.executable, "-c", code], tmp_path, "a mark", tmp_path / "log")
    running.process.wait()
    (left,) = running.wait_for_all(0.5)
    assert left.command.startswith("sleep") and left.variables[MARK] == "a mark"
    running.kill_all()
    assert marked("a mark") == []


def test_results_are_read_back_and_counted_by_fault_and_command(tmp_path: Path) -> None:
    verdicts = [
        Verdict(0, "tune", "kill main", codes=[-9, 0]),
        Verdict(1, "tune", "kill main", codes=[-9, 0], leftovers=["a.tmp"]),
        Verdict(2, "train-0", "TERM", codes=[75, 0]),
    ]
    for verdict in verdicts:
        append(tmp_path / "results.jsonl", verdict)
    assert read(tmp_path / "results.jsonl") == verdicts
    assert [verdict.passed for verdict in verdicts] == [True, False, True]
    assert line(verdicts[1]).splitlines() == [
        "1: tune, kill main at 0.0 s, exit codes -9, 0: FAILED",
        "    leftovers: a.tmp",
    ]
    assert table(verdicts).splitlines() == [
        "| fault | train-0 | tune | all |",
        "| --- | --- | --- | --- |",
        "| kill main |  | 1/2 | 1/2 |",
        "| TERM | 1/1 |  | 1/1 |",
    ]


@pytest.mark.slow
def test_rounds_of_the_quickest_commands_pass_and_are_counted(tmp_path: Path) -> None:
    """With the options of docs/faults.md and CONTRIBUTING.md."""

    def chaos(*options: str) -> str:
        command = [sys.executable, "-m", "tests.tools.chaos", *options, "--work", str(tmp_path)]
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True, timeout=600)
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    quickest = ("--commands", "build", "finalize", "append")
    assert chaos("--rounds", "4", *quickest).endswith("4 of 4 rounds passed\n")
    one = chaos("--rounds", "1", "--seed", "1000", "--only", "kill leaf", *quickest)
    assert one.startswith("1000: ") and ", kill leaf at " in one and one.endswith("1 of 1 rounds passed\n")
    counts = [line.split("|")[-2].strip() for line in chaos("--table").splitlines()[2:]]
    assert sum(int(count.split("/")[1]) for count in counts) == 5
