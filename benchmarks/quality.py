"""What options are worth: the Dice on a holdout with and without each, over three seeds. Resumable.

    python -m benchmarks.quality --work quality                  everything that is missing, then the table
    python -m benchmarks.quality --work quality --only pseudo    the rows whose names begin so
    python -m benchmarks.quality --work quality --table          the table of what is there, for docs/quality.md

Two sides that differ in one option train on the same films and folds, with the same seeds. Their thresholds are tuned
on out-of-fold films. Nothing is trained, chosen or tuned on the holdout: 500 phantoms, 22 % of them positive. The
interval of a gain is by patient, over the means of the seeds.
"""

import argparse
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import ROOT
from benchmarks.quality_films import DATASETS
from benchmarks.quality_rows import ROWS, SIDES, Row, Side
from pneumo_dist.config.rules import RuleName
from pneumo_dist.maps.store import Predictions
from pneumo_dist.report.evaluate import evaluate
from pneumo_dist.thresholds.choose import run_thresholds
from pneumo_dist.thresholds.worth import Estimate, estimate
from shards.arrays import Floats
from shards.files import write_json

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Job:
    """A side with one seed."""

    side: Side
    seed: int

    @property
    def name(self) -> str:
        return f"{self.side.name}-{self.seed}"

    def result(self, work: Path) -> Path:
        return work / "results" / f"{self.name}.json"


def run_job(job: Job, work: Path) -> None:
    """Train both folds, tune on their out-of-fold films, and write the Dice of each film of the holdout."""
    side, runs, shards = job.side, work / "runs", DATASETS[job.side.dataset](work)
    common = ["--shards", str(shards), "--runs", str(runs)]
    config = ["--config", side.config, *_sets(job)]
    seconds = _command(work, job, "train", *config, *common, "--folds", "all", "--cpu")
    chosen = [*config, *common, "--cpu"]
    if any(other.teacher == side.name for other in SIDES.values()):
        _command(work, job, "predict", *chosen, "--split", "unlabelled")
    for split in ("oof", "holdout"):
        _command(work, job, "predict", *chosen, "--split", split)
    _command(work, job, "tune", *config, "--runs", str(runs), *side.tune)
    write_json(job.result(work), {"seconds": seconds, **holdout_dice(runs / job.name, side.rule)})


def holdout_dice(run: Path, rule: RuleName) -> dict[str, Any]:
    """Return the Dice of each film of a run's holdout under a rule that was tuned on its out-of-fold films."""
    predictions = Predictions(run / "holdout/predictions")
    found = evaluate(predictions, run_thresholds(run).rule(rule).rule)
    return {
        "keys": [row["key"] for row in predictions.rows],
        "groups": [str(row["group"]) for row in predictions.rows],
        "positive": found.counts.positive.tolist(),
        "dice": found.counts.dice.tolist(),
    }


def _sets(job: Job) -> list[str]:
    settings = [f"name={job.name}", f"seed={job.seed}", *job.side.settings]
    if job.side.teacher is not None:
        settings.append(f"unlabelled.from={job.side.teacher}-{job.seed}/main")
    return [word for setting in settings for word in ("--set", setting)]


def _command(work: Path, job: Job, *words: str) -> float:
    """Run a command of pneumo_dist on one core and return its seconds. Raises CalledProcessError, with its log."""
    log = work / "logs" / f"{job.name}.log"
    log.parent.mkdir(parents=True, exist_ok=True)
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", "PYTHONPATH": str(ROOT)}
    start = time.perf_counter()
    with log.open("ab") as stream:
        done = subprocess.run(
            [sys.executable, "-m", "pneumo_dist", *words], cwd=ROOT, env=environment, stdout=stream, stderr=stream
        )
    if done.returncode:
        raise RuntimeError(f"{job.name}: {words[0]} ended with {done.returncode}; see {log}")
    return time.perf_counter() - start


def pending(rows: Iterable[Row], work: Path) -> list[list[Job]]:
    """Return the missing jobs of some rows: first those that others learn from, then the rest."""
    sides = [side for row in rows for side in (row.without, row.option)]
    teachers = [SIDES[side.teacher] for side in sides if side.teacher is not None]
    groups = [dict.fromkeys(teachers), dict.fromkeys(side for side in sides if side not in teachers)]
    jobs = [[Job(side, seed) for seed in SEEDS for side in group] for group in groups]
    return [[job for job in group if not job.result(work).exists()] for group in jobs]


def gains(row: Row, work: Path) -> tuple[Estimate, Estimate, float] | None:
    """Return the gain in mean Dice over all films and over positive films, and the ratio of the training times.

    None if a result is missing. The gain of a film is the mean over the seeds.
    """
    paths = [(Job(row.without, seed).result(work), Job(row.option, seed).result(work)) for seed in SEEDS]
    if not all(path.exists() for pair in paths for path in pair):
        return None
    results = [tuple(json.loads(path.read_text()) for path in pair) for pair in paths]
    keys = results[0][0]["keys"]
    assert all(each["keys"] == keys for pair in results for each in pair), "other films"
    gain: Floats = np.mean([np.subtract(with_["dice"], without["dice"]) for without, with_ in results], axis=0)
    first = results[0][0]
    groups, positive = np.array(first["groups"]), np.array(first["positive"], bool)
    seconds = [sum(each["seconds"] for each in side) for side in zip(*results, strict=True)]
    return estimate(gain, groups), estimate(gain[positive], groups[positive]), seconds[1] / seconds[0]


def table(work: Path) -> str:
    """Return docs/quality.md's table: a row for each option."""
    lines = [
        "| option | gain in mean Dice | gain on positive films | training time | default |",
        "| --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        found = gains(row, work)
        cells = ["not measured"] * 3
        if found is not None:
            cells = [*map(_interval, found[:2]), f"{found[2]:.2f} x"]
        lines.append(f"| {row.text} | {' | '.join(cells)} | {row.default} |")
    return "\n".join(lines)


def _interval(gain: Estimate) -> str:
    return f"{gain.mean:+.3f} ({gain.low:+.3f} to {gain.high:+.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing jobs, two at a time, and print the table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of films, runs and results")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of the rows' names")
    parser.add_argument("--table", action="store_true", help="print the table, and run nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        rows = [row for row in ROWS if row.name.startswith(tuple(options.only))]
        for jobs in pending(rows, options.work):
            for dataset in {job.side.dataset for job in jobs}:
                DATASETS[dataset](options.work)
            with ThreadPoolExecutor(2) as pool:
                for job, _ in zip(jobs, pool.map(lambda job: run_job(job, options.work), jobs), strict=True):
                    print(f"{job.name}: done", flush=True)
    print(table(options.work))


if __name__ == "__main__":
    main()
