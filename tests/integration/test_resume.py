"""A run that was stopped anywhere and resumed ends with the same bits as one that never was."""

import contextlib
import json
import os
import signal
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from integration.conftest import ROOT, environment, last_state, module_command, must, run_module, write_config

pytestmark = pytest.mark.slow


def train_arguments(config: Path, dataset: Path, runs: Path) -> tuple[object, ...]:
    return ("pneumo_dist", "train", "--cpu", "--config", config, "--fold", 0, "--shards", dataset, "--runs", runs)


def processes_in(folder: Path) -> list[str]:
    """Return the ids of processes with this fold's runs folder on their command line."""
    runs = str(folder.parents[1]).encode()
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if runs in path.read_bytes().split(b"\0"):
                found.append(path.parent.name)
    return found


def kill_tree_at(pattern: str, folder: Path, process: "subprocess.Popen[str]") -> None:
    """SIGKILL a launcher and all its ranks as soon as a file of that pattern stands."""
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)):
        assert process.poll() is None, "the run ended before it could be killed"
        assert time.monotonic() < deadline, f"no {pattern} in {folder}"
        time.sleep(0.005)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    while left := processes_in(folder):
        assert time.monotonic() < deadline, f"processes {left} outlived their launcher"
        time.sleep(0.05)


def same_bits(one: Any, other: Any) -> bool:
    """Compare states with tolerance 0 (and nan equal to nan)."""
    if isinstance(one, torch.Tensor):
        return torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return repr(one) == repr(other)


def assert_same_run(one: Path, other: Path) -> None:
    for stage in ("first", "second"):
        a, b = last_state(one / "tiny/fold0" / stage), last_state(other / "tiny/fold0" / stage)
        for part in ("model", "averaged", "optimizer", "schedule", "history", "position", "lineage"):
            assert same_bits(a[part], b[part]), f"{part} of stage {stage} differs"
        logged = [(run / "tiny/fold0" / stage / "summary.csv").read_text() for run in (one, other)]
        assert logged[0] == logged[1]
        lines = (other / "tiny/fold0" / stage / "metrics.jsonl").read_text().splitlines()
        epochs = [json.loads(line)["epoch"] for line in lines]
        assert epochs == list(range(len(epochs))), "a line is missing or stands twice"


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def straight(
    request: pytest.FixtureRequest, dataset: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[int, Path, Path]:
    """An undisturbed run: its ranks, config and runs folder."""
    folder = tmp_path_factory.mktemp("straight")
    config = write_config(folder / "tiny.yaml")
    must(run_module(*train_arguments(config, dataset, folder / "runs"), ranks=request.param))
    return request.param, config, folder / "runs"


def test_killed_in_mid_epoch_and_between_stages_ends_with_the_same_bits(
    straight: tuple[int, Path, Path], dataset: Path, tmp_path: Path
) -> None:
    ranks, config, runs = straight
    command = module_command(*train_arguments(config, dataset, tmp_path), ranks=ranks)
    for pattern in ("first/checkpoints/step-00000002-*.pt", "second/checkpoints/step-*.pt"):
        process = subprocess.Popen(
            command,
            env=environment(),
            cwd=ROOT,
            start_new_session=True,
            text=True,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        kill_tree_at(pattern, tmp_path / "tiny/fold0", process)
    must(run_module(*train_arguments(config, dataset, tmp_path), ranks=ranks))
    assert_same_run(runs, tmp_path)


def test_signal_saves_and_exits_75_and_the_same_command_goes_on(
    straight: tuple[int, Path, Path], dataset: Path, tmp_path: Path
) -> None:
    ranks, config, runs = straight
    command = [
        "bash",
        "launch/train.sh",
        "--ranks",
        str(ranks),
        *map(str, train_arguments(config, dataset, tmp_path)[2:]),
    ]
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, start_new_session=True, text=True)
    fold = tmp_path / "tiny/fold0"
    while not list(fold.glob("first/checkpoints/step-00000002-*.pt")):
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    marker = json.loads((fold / "preempted.json").read_text())
    state = last_state(fold / marker["stage"])
    assert isinstance(state["position"], dict)
    assert marker["step"] == state["position"]["total"]
    assert subprocess.run(command, env=environment(), cwd=ROOT, timeout=300).returncode == 0
    assert not (fold / "preempted.json").exists()
    assert_same_run(runs, tmp_path)


def test_finished_run_is_left_alone(straight: tuple[int, Path, Path], dataset: Path) -> None:
    ranks, config, runs = straight
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.pt")}
    must(run_module(*train_arguments(config, dataset, runs), ranks=ranks))
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.pt")} == before


def test_damaged_newest_checkpoint_falls_back_with_a_warning(
    straight: tuple[int, Path, Path], dataset: Path, tmp_path: Path
) -> None:
    ranks, config, runs = straight
    subprocess.run(["cp", "-a", str(runs / "tiny"), str(tmp_path)], check=True)
    newest = (tmp_path / "tiny/fold0/second/checkpoints/last").resolve()
    content = bytearray(newest.read_bytes())
    content[len(content) // 2] ^= 1
    newest.write_bytes(content)
    result = run_module(*train_arguments(config, dataset, tmp_path), ranks=ranks)
    must(result)
    assert newest.name in result.stderr
    newest.unlink(missing_ok=True)
    assert_same_run(runs, tmp_path)


def test_changed_learning_rate_is_refused_by_name(straight: tuple[int, Path, Path], dataset: Path) -> None:
    _, config, runs = straight
    resolved = (runs / "tiny/fold0/config.yaml").read_text()
    result = run_module(*train_arguments(config, dataset, runs), "--set", "optim.lr=1e-5")
    assert (runs / "tiny/fold0/config.yaml").read_text() == resolved
    assert result.returncode == 2
    assert "optim.lr" in result.stderr
    assert "Traceback" not in result.stderr
