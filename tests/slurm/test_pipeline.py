"""slurm/pipeline.sh on a real cluster: the chain ends in a submission and can be submitted again at any time."""

import csv
import re
import subprocess
from datetime import datetime
from pathlib import Path

import pytest
from integration.conftest import ROOT, write_config
from slurm.cluster import Cluster

pytestmark = pytest.mark.slurm

FOLDS = 3


def pipeline(cluster: Cluster, films: Path, folder: Path, *options: object) -> str:
    """Return the output of slurm/pipeline.sh."""
    config = write_config(folder / "tiny.yaml", stages=[{"name": "only", "epochs": 2}], micro_batch=2)
    return cluster.run(
        *("bash", ROOT / "slurm/pipeline.sh", "--config", config, "--shards", folder / "shards"),
        *("--runs", folder / "runs", "--folds", FOLDS, "--at-a-time", 2, "--build-tasks", 2, "--cpu", *options),
        *("--", "--dicom", films / "films/dicom-images", "--rle", films / "films/train-rle.csv"),
        *("--test-dicom", films / "test/dicom-images", "--image-size", 64, "--holdout", 0.1, "--samples-per-shard", 8),
    )


def jobs_of(printed: str) -> list[str]:
    """Return the ids after scancel in what the script prints."""
    found = re.search(r"^stop: +scancel (.*)$", printed, re.MULTILINE)
    assert found, printed
    return found[1].split()


@pytest.fixture(scope="module")
def submitted(cluster: Cluster, films: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, list[str]]:
    """A chain that was submitted twice and has finished: its folder and the ids of its jobs."""
    folder = tmp_path_factory.mktemp("pipeline")
    first = jobs_of(pipeline(cluster, films, folder))
    assert len(first) == 4, "tasks, finalize, training, prediction"
    queue = set(cluster.queue())
    again = pipeline(cluster, films, folder)
    # The shards may already exist.
    assert again.count("already in the queue") + again.count(" exists\n") == 3, again
    assert set(cluster.queue()) <= queue, "nothing is submitted twice"
    cluster.until(lambda: not cluster.queue(), 400, "the chain has ended", folder / "runs/slurm")
    return folder, first


def logs(folder: Path) -> str:
    return "\n".join(path.read_text() for path in sorted((folder / "runs/slurm").glob("*.out")))


def test_ends_in_a_submission_and_a_report(submitted: tuple[Path, list[str]]) -> None:
    folder, _ = submitted
    submission = folder / "runs/tiny/test/submission.csv"
    assert submission.exists(), logs(folder)
    rows = list(csv.reader(submission.open()))
    assert len(rows) == 6
    assert (folder / "runs/tiny/report.html").exists(), logs(folder)


def test_folds_train_two_at_a_time(cluster: Cluster, submitted: tuple[Path, list[str]]) -> None:
    _, (_, _, training, _) = submitted
    times = []
    for fold in range(FOLDS):
        facts = cluster.facts(f"{training}_{fold}")
        assert facts["JobState"] == "COMPLETED"
        times.append(tuple(datetime.fromisoformat(facts[name]) for name in ("StartTime", "EndTime")))
    at_once = [sum(start <= moment < end for start, end in times) for moment, _ in times]
    assert max(at_once) == 2


def test_chain_submitted_again_trains_nothing(cluster: Cluster, films: Path, submitted: tuple[Path, list[str]]) -> None:
    folder, _ = submitted
    before = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*.pt")}
    tars = {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("pred-*.tar")}
    printed = pipeline(cluster, films, folder)
    assert "folds 0 1 2 are trained" in printed
    (job,) = jobs_of(printed)
    cluster.until(lambda: cluster.ended(job), 240, "the prediction has ended")
    assert cluster.state(job) == "COMPLETED", logs(folder)
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("*.pt")} == before
    assert {path: path.stat().st_mtime_ns for path in (folder / "runs").rglob("pred-*.tar")} == tars


def test_jobs_after_a_failed_one_are_removed(cluster: Cluster, films: Path, tmp_path: Path) -> None:
    # One film cannot be read, and none may be rejected, so the shards are never finished.
    broken = tmp_path / "films"
    subprocess.run(["cp", "-r", films / "films", broken], check=True)
    next((broken / "dicom-images").rglob("*.dcm")).write_bytes(b"no film")
    subprocess.run(["ln", "-s", films / "test", tmp_path / "test"], check=True)
    jobs = jobs_of(pipeline(cluster, tmp_path, tmp_path))
    cluster.until(lambda: not cluster.queue(), 120, "the chain is gone")
    assert cluster.state(jobs[1]) == "FAILED", logs(tmp_path)
    assert "--max-rejects" in logs(tmp_path)
    assert cluster.state(jobs[3]) == "CANCELLED"
    assert not (tmp_path / "runs/tiny").exists()


def test_bad_input_is_found_before_anything_is_submitted(
    cluster: Cluster, films: Path, submitted: tuple[Path, list[str]], tmp_path: Path
) -> None:
    folder, _ = submitted
    config = write_config(tmp_path / "tiny.yaml", micro_batch=3)
    done = subprocess.run(
        [
            *("bash", ROOT / "slurm/pipeline.sh", "--config", config, "--shards", folder / "shards"),
            *("--runs", tmp_path, "--folds", str(FOLDS)),
        ],
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    lines = done.stderr.splitlines()
    assert len(lines) == 2 and all("global_batch 4 is not a multiple" in line for line in lines), (
        "a line for each stage"
    )
    assert not cluster.queue()


def several(cluster: Cluster, folder: Path, runs: Path, *experiments: str) -> str:
    """Return the output of slurm/pipeline.sh for experiments whose configs lie beside the runs, on finished shards."""
    configs = [word for name in experiments for word in ("--config", runs.parent / f"{name}.yaml")]
    return cluster.run(
        *("bash", ROOT / "slurm/pipeline.sh", *configs, "--shards", folder / "shards", "--runs", runs),
        *("--folds", FOLDS, "--at-a-time", 4, "--cpu", "--set", "epochs=1"),
    )


@pytest.fixture(scope="module")
def two_experiments(
    cluster: Cluster, submitted: tuple[Path, list[str]], tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, list[str], list[str]]:
    """Two experiments in one go, submitted twice, then one alone: the runs, the jobs, the output."""
    folder, _ = submitted
    runs = tmp_path_factory.mktemp("two") / "runs"
    for name in ("one", "two"):
        write_config(runs.parent / f"{name}.yaml", name=name, stages=[{"name": "only"}], micro_batch=2)
    first = several(cluster, folder, runs, "one", "two")
    queue = cluster.queue()
    again = several(cluster, folder, runs, "one", "two")
    alone = several(cluster, folder, runs, "one")
    assert set(cluster.queue()) <= set(queue), "nothing is submitted twice"
    cluster.until(lambda: not cluster.queue(), 400, "both experiments have ended", runs / "slurm")
    return runs, jobs_of(first), [first, again, alone]


def test_several_experiments_train_in_one_array(
    cluster: Cluster, two_experiments: tuple[Path, list[str], list[str]]
) -> None:
    runs, jobs, (first, again, alone) = two_experiments
    assert len(jobs) == 3, "training, and a prediction for each experiment"
    assert [f"training      job {jobs[0]}, folds 0 1 2 of {name}\n" in first for name in ("one", "two")] == [True] * 2
    for name, prediction in zip(("one", "two"), jobs[1:], strict=True):
        assert (runs / name / "test/submission.csv").exists() and (runs / name / "report.html").exists(), logs(
            runs / ".."
        )
        assert f"prediction    job {prediction} of {name}, already in the queue" in again
        for fold in range(FOLDS):
            (line,) = (runs / name / f"fold{fold}/only/metrics.jsonl").read_text().splitlines()
            assert '"epoch": 0' in line, "--set reaches each experiment"
    assert {cluster.state(f"{jobs[0]}_{task}") for task in range(2 * FOLDS)} == {"COMPLETED"}
    assert "training      job " not in again + alone and "prediction    job " + jobs[1] + ", already" in alone


def test_two_experiments_of_one_name_are_refused(cluster: Cluster, tmp_path: Path) -> None:
    configs = [write_config(tmp_path / f"{name}.yaml") for name in ("a", "b")]
    done = subprocess.run(
        [
            *("bash", ROOT / "slurm/pipeline.sh", "--config", configs[0], "--config", configs[1], "--shards", tmp_path),
            *("--runs", tmp_path / "runs", "--cpu", "--", "--dicom", tmp_path),
        ],
        env=cluster.environment,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == "error: tiny: two configs have this name, and would train in one folder\n"
    assert not cluster.queue() and not (tmp_path / "runs").exists()
