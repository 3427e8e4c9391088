"""`benchmarks.gpu` as a user runs it, on the CPU: rows appear one by one, and an interrupted run resumes."""

import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_report import by_card
from benchmarks.gpu_store import read_rows

ROOT = Path(__file__).parents[2]


def run(*arguments: object) -> "subprocess.CompletedProcess[str]":
    command = [sys.executable, "-m", "benchmarks.gpu", *map(str, arguments)]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)


@pytest.mark.slow
def test_time_limit_drops_one_row_and_missing_dali_skips_rows(tmp_path: Path) -> None:
    hidden = "import benchmarks.gpu as gpu, sys; gpu.dali_version = lambda: None; sys.exit(gpu.main())"
    options = ["--work", str(tmp_path), "--quick", "--device", "cpu", "--rows", "bf16,channels_last,dali-png,dali-jpeg"]
    command = [sys.executable, "-c", hidden, *options]
    cut = subprocess.run([*command, "--minutes", "0.0001"], cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert "dropped at the time limit" in cut.stdout and "1 rows remain" in cut.stdout and cut.returncode == 1
    whole = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert whole.returncode == 0 and "DALI is not installed" in whole.stdout
    rows = read_rows(tmp_path / "quick-rows.jsonl")
    assert [row["way"] for row in rows] == ["bf16", "channels_last"]
    assert all(row["dali"] is None for row in rows)


@pytest.mark.rare
@pytest.mark.slow
def test_parts_of_a_shipped_step_are_timed(tmp_path: Path) -> None:
    done = run("--work", tmp_path, "--quick", "--device", "cpu", "--rows", "shipped")
    assert done.returncode == 0, done.stderr[-3000:]
    rows = read_rows(tmp_path / "quick-rows.jsonl")
    assert [row["way"] for row in rows][:1] == ["shipped"] and rows[0]["network"] == "heavy_se_resnext50"
    parts = rows[0]["parts"]
    assert {"ema", "copies of buffers", "clipping", "optimizer", "optimizer, fused"} <= set(parts)
    assert all(0 < part["host_ms"] <= part["done_ms"] for part in parts.values())


@pytest.mark.rare
@pytest.mark.slow
def test_interrupted_quick_run_on_the_cpu_resumes(tmp_path: Path) -> None:
    options = ("--work", tmp_path, "--quick", "--device", "cpu", "--rows", "plain,bf16,channels_last")
    first = run(*options)
    assert first.returncode == 0, first.stderr[-3000:]
    path = tmp_path / "quick-rows.jsonl"
    rows = read_rows(path)
    assert [row["way"] for row in rows] == ["bf16", "channels_last", "plain"]
    for row in rows:
        assert row["device"].startswith("CPU") and row["device_type"] == "cpu" and row["date"]
        assert row["images_per_s"] > 0 and row["batch"] == 2 and row["operators"] > 400
        assert "roofline_images_per_s" not in row, "a CPU has no row in the table of cards"
    # A step's products do not depend on layout and precision.
    assert rows[0]["gflop_per_image"] == rows[1]["gflop_per_image"] == rows[2]["gflop_per_image"] > 1
    assert rows[0]["gb_per_image"] < rows[2]["gb_per_image"]
    assert by_card(rows) == []
    path.write_bytes(path.read_bytes()[:-100])
    again = run(*options)
    assert again.returncode == 0 and "2 of 3 rows exist" in again.stdout
    assert [row["way"] for row in read_rows(path)] == ["bf16", "channels_last", "plain"]
    assert read_rows(path)[:2] == rows[:2]


@pytest.mark.slow
def test_without_a_device_nothing_is_measured(tmp_path: Path) -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = run("--work", tmp_path, "--out", tmp_path / "rows.jsonl")
    assert done.returncode == 2 and "no CUDA device" in done.stderr
    assert not (tmp_path / "rows.jsonl").exists()
