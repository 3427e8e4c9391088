"""Two runs without interruptions write equal files, as docs/files.md says."""

import subprocess
from pathlib import Path

import pytest
from integration.conftest import ROOT, must, run_module, write_config
from tools.chaos.chain import inventory
from tools.commands import commands_of

pytestmark = pytest.mark.slow


def test_two_runs_of_two_ranks_give_equal_files(dataset: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml")
    digests = [
        inventory(whole_job(config, dataset, tmp_path / name, folds))
        for name, folds in (("one", ["--fold", "0", "--fold", "1"]), ("other", ["--folds", "all"]))
    ]
    assert digests[0] == digests[1]
    assert listed(tmp_path / "one") == listed(tmp_path / "other")
    kinds = {Path(name).suffix for name in digests[0]}
    assert {".pt", ".yaml", ".tar", ".parquet", ".json", ".png", ".csv", ".html", ".bundle"} <= kinds


def listed(runs: Path) -> list[str]:
    """Return the digests that the line of docs/files.md prints."""
    (line,) = [each.text for each in commands_of(ROOT / "docs/files.md") if each.text.startswith("(cd RUNS")]
    done = subprocess.run(["bash", "-c", line.replace("RUNS", str(runs))], capture_output=True, text=True, check=True)
    lines = done.stdout.splitlines()
    assert len(lines) > 20 and not any("metrics.jsonl" in each or "tensorboard" in each for each in lines)
    return lines


def whole_job(config: Path, shards: Path, runs: Path, folds: list[str]) -> Path:
    """Train both folds on two ranks, predict, tune, submit, report, and write a bundle."""
    common = ("--config", config, "--runs", runs)
    must(run_module("pneumo_dist", "train", *common, "--shards", shards, *folds, "--cpu", ranks=2))
    for split in ("oof", "test"):
        must(run_module("pneumo_dist", "predict", *common, "--shards", shards, "--split", split, "--cpu", ranks=2))
    must(run_module("pneumo_dist", "tune", *common))
    must(run_module("pneumo_dist", "submit", *common))
    must(run_module("pneumo_dist", "report", *common, "--shards", shards))
    bundle = runs / "tiny" / "tiny.bundle"
    must(run_module("pneumo_dist", "average", *common, "--shards", shards, "--cpu", "--bundle", bundle))
    return runs
