"""Two runs without interruptions write equal files, as docs/files.md says."""

from pathlib import Path

import pytest
from integration.conftest import must, run_module, write_config
from tools.chaos.chain import inventory

pytestmark = pytest.mark.slow


def test_two_runs_of_two_ranks_give_equal_files(dataset: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml")
    digests = [
        inventory(whole_job(config, dataset, tmp_path / name, folds))
        for name, folds in (("one", ["--fold", "0", "--fold", "1"]), ("other", ["--folds", "all"]))
    ]
    assert digests[0] == digests[1]
    kinds = {Path(name).suffix for name in digests[0]}
    assert {".pt", ".yaml", ".tar", ".parquet", ".json", ".png", ".csv", ".html", ".bundle"} <= kinds


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
