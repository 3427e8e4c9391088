"""A fold on two nodes meets all faults of a cluster, and ends with the same bits as one without faults."""

import contextlib
import json
import os
import re
import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from integration.conftest import ROOT, last_state, must, run_module, write_config
from slurm.cluster import Cluster
from tools.equality import run_differences

from pneumo_dist.runs.status import read_status

pytestmark = pytest.mark.slurm

SAVE_EVERY = 5
MARK = "PNEUMO_TEST_RUN"


@pytest.fixture(scope="module")
def shards(films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("shards") / "shards"
    must(
        run_module(
            *("shards", "build", "--dicom", films / "films/dicom-images", "--rle", films / "films/train-rle.csv"),
            *("--out", out, "--image-size", 64, "--folds", 2, "--workers", 1),
        )
    )
    return out


class Fold:
    """Fold 0 of the tiny experiment, trained by slurm/train_folds.sbatch on two nodes with a rank each."""

    def __init__(self, cluster: Cluster, shards: Path, folder: Path) -> None:
        self.cluster, self.shards, self.runs = cluster, shards, folder / "runs"
        # Long enough for all faults, and cheap.
        model = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": [4, 4, 8], "norm": True}}
        stages = [{"name": "only", "epochs": 100, "sample_rate": 0.6}]
        options = {"model": model, "stages": stages, "save_every": SAVE_EVERY, "micro_batch": 2}
        self.config = write_config(folder / "tiny.yaml", **options)
        self.folder = self.runs / "tiny/fold0"
        self.log = folder / "log"

    def submit(self) -> str:
        options = ("--parsable", "--array=0", "--nodes=2", "--cpus-per-task=1", "--time=20", "--gpus-per-node=1")
        script = (f"--output={self.log}", ROOT / "slurm/train_folds.sbatch", "--cpu", "--config", self.config)
        paths = ("--shards", self.shards, "--runs", self.runs)
        # Every process of the run inherits a variable that identifies it.
        marked = ("env", f"{MARK}={self.runs}", "sbatch")
        return f"{self.cluster.run(*marked, *options, *script, *paths, cwd=ROOT).strip()}_0"

    @property
    def step(self) -> int:
        """The newest checkpoint's step, or 0."""
        found = [int(path.name[5:13]) for path in self.folder.glob("only/checkpoints/step-*.pt")]
        return max(found, default=0)

    @property
    def resumed(self) -> list[int]:
        """The steps at which the run has resumed so far."""
        text = self.log.read_text() if self.log.exists() else ""
        return [int(step) for step in re.findall(r"only resumes after step (\d+)", text)]

    @property
    def state(self) -> str:
        """The state that `status` shows."""
        (found,) = read_status(self.runs, time.time())
        return found.state

    def until(self, is_so: Callable[[], object], seconds: float, what: str) -> None:
        self.cluster.until(is_so, seconds, what, self.log)

    def reach(self, step: int) -> None:
        """Wait for a checkpoint of this step or a later one."""
        self.until(lambda: self.step >= step, 240, f"step {step} is saved")

    def processes(self) -> list[int]:
        """All processes of this run."""
        found = []
        for path in Path("/proc").glob("[0-9]*/environ"):
            with contextlib.suppress(OSError):
                if f"{MARK}={self.runs}".encode() in path.read_bytes().split(b"\0"):
                    found.append(int(path.parent.name))
        return found

    def no_orphans(self) -> None:
        self.until(lambda: not self.processes(), 30, "no process of the run is left")

    def comes_back(self, job: str, disturb: Callable[[], object]) -> int:
        """Disturb the run and wait until it resumes. Returns the number of saved steps that it lost."""
        saved, times = self.step, len(self.resumed)
        disturb()
        self.until(lambda: len(self.resumed) > times, 240, "the run goes on")
        return saved - self.resumed[-1]


@pytest.fixture(scope="module")
def undisturbed(cluster: Cluster, shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Fold:
    fold = Fold(cluster, shards, tmp_path_factory.mktemp("undisturbed"))
    job = fold.submit()
    fold.until(lambda: cluster.ended(job), 200, "the run has ended")
    assert cluster.state(job) == "COMPLETED", fold.log.read_text()
    return fold


@pytest.fixture
def on_all_nodes(cluster: Cluster) -> Iterator[None]:
    """Put every node back into service afterwards."""
    yield
    for node in ("n0", "n1"):
        with contextlib.suppress(AssertionError):  # it is in service
            cluster.run("scontrol", "update", f"nodename={node}", "state=RESUME")


@pytest.mark.usefixtures("on_all_nodes")
def test_run_with_every_fault_ends_with_the_same_bits(
    cluster: Cluster, shards: Path, undisturbed: Fold, tmp_path: Path
) -> None:
    fold = Fold(cluster, shards, tmp_path)
    job = fold.submit()

    fold.reach(SAVE_EVERY)
    assert fold.state == "running"

    # The signal before the time limit: the job saves at the end of a step, requeues itself and resumes there.
    lost = fold.comes_back(job, lambda: cluster.run("scancel", "--batch", "--signal=USR1", job))
    assert lost <= 0, "no saved step is lost"
    assert cluster.facts(job)["Restarts"] == "1"
    assert ", requeued" in fold.log.read_text()

    # A job of a partition with higher priority takes both nodes.
    fold.reach(fold.resumed[-1] + SAVE_EVERY)
    sleep = ("sbatch", "--parsable", "--partition=urgent", "--nodes=2", "--exclusive", "--output=/dev/null")
    assert fold.comes_back(job, lambda: cluster.run(*sleep, "--wrap=sleep 3")) <= 0
    assert cluster.facts(job)["Restarts"] == "2"

    # A node fails without a warning: steps after the last checkpoint are computed again.
    fold.reach(fold.resumed[-1] + SAVE_EVERY)

    def lose_a_node() -> None:
        cluster.run("scontrol", "update", "nodename=n1", "state=DOWN", "reason=test")
        fold.until(lambda: cluster.facts(job)["Restarts"] == "3", 60, "SLURM requeues the job")
        fold.no_orphans()
        cluster.run("scontrol", "update", "nodename=n1", "state=RESUME")

    assert fold.comes_back(job, lose_a_node) <= 0

    # A rank dies, for example out of memory: torchrun restarts all ranks within the job.
    fold.reach(fold.resumed[-1] + SAVE_EVERY)
    assert fold.comes_back(job, lambda: os.kill(a_rank(fold), signal.SIGKILL)) <= 0
    assert cluster.facts(job)["Restarts"] == "3"

    # Cancelled by its owner: it saves, and is gone until it is submitted again.
    fold.reach(fold.resumed[-1] + SAVE_EVERY)
    cluster.run("scancel", job)
    fold.until(lambda: cluster.ended(job), 60, "the job is gone")
    assert cluster.state(job) == "CANCELLED"
    fold.no_orphans()
    marker = json.loads((fold.folder / "preempted.json").read_text())
    assert marker["step"] == fold.step
    assert fold.state == "preempted"

    job = fold.submit()
    fold.until(lambda: cluster.ended(job), 200, "the run has ended")
    assert cluster.state(job) == "COMPLETED", fold.log.read_text()
    assert fold.resumed[-1] == marker["step"]
    fold.no_orphans()
    assert fold.state == "done"
    assert run_differences(undisturbed.folder, fold.folder) == []
    assert last_state(fold.folder / "only")["world"] == 2


def a_rank(fold: Fold) -> int:
    """Return the process of rank 1."""
    ranks = []
    for process in fold.processes():
        with contextlib.suppress(OSError):
            variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
            if b"RANK=1" in variables and b"LOCAL_RANK=0" in variables:
                ranks.append(process)
    # Its loader's workers inherit its variables, but are started later.
    return min(ranks)


def test_trained_fold_submitted_again_ends_at_once(cluster: Cluster, undisturbed: Fold) -> None:
    before = {path: path.stat().st_mtime_ns for path in undisturbed.folder.rglob("*.pt")}
    job = undisturbed.submit()
    undisturbed.until(lambda: cluster.ended(job), 60, "the job has ended")
    assert cluster.state(job) == "COMPLETED"
    assert "already trained" in undisturbed.log.read_text()
    assert {path: path.stat().st_mtime_ns for path in undisturbed.folder.rglob("*.pt")} == before


def test_job_that_requeues_without_a_step_ends(cluster: Cluster, tmp_path: Path) -> None:
    """A job that requeues too often at one step would never end. Requeues at new steps do not count."""
    script = tmp_path / "job.sbatch"
    script.write_text(
        f"#!/usr/bin/env bash\ncd {ROOT} && source slurm/job.sh\n"
        f'requeue_from "step $((SLURM_RESTART_COUNT < 2 ? SLURM_RESTART_COUNT : 2))" {tmp_path}/requeues\nexit 75\n'
    )
    options = ("--parsable", "--requeue", "--open-mode=append", f"--output={tmp_path}/log", "--time=5")
    job = cluster.run("sbatch", *options, script).strip()
    cluster.until(lambda: cluster.ended(job), 150, "the job has ended", tmp_path / "log")
    assert cluster.state(job) == "FAILED"
    text = (tmp_path / "log").read_text()
    assert "stopped 3 times at step 2 without a step" in text
    assert [line.rsplit(" ", 1)[1] for line in (tmp_path / "requeues").read_text().splitlines()] == list("01222")
