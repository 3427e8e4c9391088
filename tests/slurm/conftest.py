"""The cluster of these tests, and their films."""

import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.conftest import ROOT, must, run_module
from slurm.cluster import Cluster, cluster_environment, why_not


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    """Two nodes with four fake GPUs each. Jobs use this Python and start one rank per node."""
    reason = why_not()
    if reason is not None:
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("cluster")
    site = {
        "PNEUMO_HOME": str(ROOT),
        "PNEUMO_SETUP": f"export PATH={Path(sys.executable).parent}:$PATH",
        "PNEUMO_SBATCH": "--cpus-per-task=1 --time=20",
        "PNEUMO_GPU_SBATCH": "--gpus-per-node=1",
        "PNEUMO_RANKS_PER_NODE": "1",
        "CUDA_VISIBLE_DEVICES": "",
    }
    made = Cluster(folder, cluster_environment(folder, site))
    try:
        made.start()
        yield made
    finally:
        made.stop()


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Twenty-four labelled films in films/, five without labels in test/."""
    folder = tmp_path_factory.mktemp("films")
    for name, count, seed in (("films", 24, 1), ("test", 5, 2)):
        what = ("--images", count, "--size", 96, "--positive-rate", 0.5, "--seed", seed)
        must(run_module("shards", "synth", folder / name, *what))
    return folder
