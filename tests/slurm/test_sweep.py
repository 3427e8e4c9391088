"""slurm/sweep.sbatch on a real cluster: tasks share the trials, and one that is stopped comes back to its own."""

import re
from pathlib import Path

import pytest
from integration.conftest import ROOT, must, run_module, write_config
from slurm.cluster import Cluster

from pneumo_dist.sweep.journal import Journal

pytestmark = pytest.mark.slurm


def test_tasks_share_the_trials_and_a_requeued_one_resumes(cluster: Cluster, films: Path, tmp_path: Path) -> None:
    shards, runs = tmp_path / "shards", tmp_path / "runs"
    source = ("--dicom", films / "films/dicom-images", "--rle", films / "films/train-rle.csv")
    must(run_module("shards", "build", *source, "--out", shards, "--image-size", 64, "--folds", 2, "--workers", 1))
    model = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": [4, 4, 8], "norm": True}}
    stages = [{"name": "only", "epochs": 40, "sample_rate": 0.6}]
    config = write_config(tmp_path / "tiny.yaml", model=model, stages=stages, micro_batch=2)
    (tmp_path / "space.yaml").write_text("optim.lr: {choices: [0.001, 0.003, 0.01]}\n")
    job = cluster.run(
        *("sbatch", "--parsable", "--array=1-2", "--cpus-per-task=1", "--time=20", "--gpus-per-node=1"),
        *(f"--output={tmp_path}/%a.out", ROOT / "slurm/sweep.sbatch", "--cpu", "--config", config),
        *("--space", tmp_path / "space.yaml", "--grid", "--shards", shards, "--runs", runs),
        cwd=ROOT,
    ).strip()
    tasks = [f"{job}_1", f"{job}_2"]
    checkpoints = list(runs.glob("tiny-space-*/fold0/only/checkpoints/last"))
    cluster.until(lambda: len(list(runs.glob("tiny-space-00[01]/fold0/only/checkpoints/last"))) == 2, 120, "both train")
    assert checkpoints == []
    cluster.run("scancel", "--batch", "--signal=USR1", tasks[0])
    cluster.until(lambda: cluster.facts(tasks[0])["Restarts"] == "1", 120, "a task is requeued", tmp_path)
    cluster.until(lambda: cluster.ended(*tasks), 400, "the sweep has ended", tmp_path)
    logs = [(tmp_path / f"{number}.out").read_text() for number in (1, 2)]
    assert [cluster.state(task) for task in tasks] == ["COMPLETED", "COMPLETED"], logs
    assert "stopped by a signal; run the same command to resume" in logs[0] and ", requeued" in logs[0]
    # The other task may have taken the trial meanwhile.
    began, resumed = (sorted(re.findall(rf"trial (\d) {verb}", "".join(logs))) for verb in ("begins", "resumes"))
    assert began == ["0", "1", "2"] and len(resumed) == 1, logs
    trials = Journal(runs / "tiny-space", "tiny-space").trials()
    assert [trial.state.name for trial in trials] == ["COMPLETE"] * 3
    assert [len(trial.intermediate_values) for trial in trials] == [40] * 3
