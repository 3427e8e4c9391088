"""What options are worth: the Dice on a holdout with and without each, over three seeds. Resumable.

    python -m benchmarks.quality --work quality                  everything that is missing, then the tables
    python -m benchmarks.quality --work quality --only pseudo    the rows whose names begin so
    python -m benchmarks.quality --work quality --table          the tables of what is there, for docs/quality.md

Two sides that differ in one option train on the same films and folds, with the same seeds. Their thresholds are tuned
on out-of-fold films. Nothing is trained, chosen or tuned on the holdout: 500 phantoms, 22 % of them positive. The
interval of a gain is by patient, over the means of the seeds. The runs take about 45 GB.
"""

import argparse
import json
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.quality_films import DATASETS
from benchmarks.quality_jobs import Job, in_waves
from benchmarks.quality_rows import DISTILLATION, ROWS, Row, Side
from pneumo_dist.thresholds.worth import Estimate, estimate
from shards.arrays import Floats

SEEDS = (0, 1, 2)


@dataclass(frozen=True)
class Gain:
    """What an option adds to the mean Dice of the holdout: over all films, and over its positive films.

    `without` is the mean Dice without the option, of both. `time` is the ratio of the core-seconds of training,
    including that of teachers and members.
    """

    films: Estimate
    positives: Estimate
    without: tuple[float, float]
    time: float


def pending(rows: Iterable[Row], work: Path, seeds: Sequence[int] = SEEDS) -> list[list[Job]]:
    """Return the missing jobs of some rows in waves, each after those that it needs."""
    sides = [side for row in rows for side in (row.without, row.option)]
    jobs = [Job(each, seed, work) for seed in seeds for side in sides for each in _with_needs(side)]
    return [[job for job in wave if not job.result.exists()] for wave in in_waves(jobs)]


def _with_needs(side: Side) -> list[Side]:
    return [*(other for need in side.needs for other in _with_needs(need)), side]


def taught_splits(side: Side) -> tuple[str, ...]:
    """Return the splits whose maps by a side other sides learn from."""
    learners = [learner for row in ROWS for learner in _with_needs(row.option)]
    teachers = {"unlabelled": {each.teacher for each in learners}, "train": {each.distils for each in learners}}
    return tuple(split for split, sides in teachers.items() if side in sides)


def gain_of(row: Row, work: Path, seeds: Sequence[int] = SEEDS) -> Gain | None:
    """Return the gain of a row, None if a result is missing. The Dice of a film is the mean over the seeds."""
    pairs = [(Job(row.without, seed, work).result, Job(row.option, seed, work).result) for seed in seeds]
    if not all(path.exists() for pair in pairs for path in pair):
        return None
    before, after = ([json.loads(path.read_text()) for path in side] for side in zip(*pairs, strict=True))
    first = before[0]
    assert all(each["keys"] == first["keys"] for each in (*before, *after)), "other films"
    without, with_option = _mean_dice(before, row.rule), _mean_dice(after, row.option_rule)
    groups, positive = np.array(first["groups"]), np.array(first["positive"], bool)
    difference = with_option - without
    seconds = [sum(_seconds(side, seed, work) for seed in seeds) for side in (row.option, row.without)]
    return Gain(
        estimate(difference, groups),
        estimate(difference[positive], groups[positive]),
        (float(without.mean()), float(without[positive].mean())),
        seconds[0] / seconds[1],
    )


def _seconds(side: Side, seed: int, work: Path) -> float:
    """Return the core-seconds of training of a side and of those that it needs."""
    paths = {Job(each, seed, work).result for each in _with_needs(side)}
    return float(sum(json.loads(path.read_text())["seconds"] for path in sorted(paths)))


def _mean_dice(results: Sequence[dict[str, Any]], rule: str) -> Floats:
    return np.asarray(np.mean([each["dice"][rule] for each in results], axis=0), np.float64)


def table(work: Path) -> str:
    """Return docs/quality.md's table: a row for each option."""
    lines = [
        "| option | mean Dice without | gain | positive Dice without | gain | training time | default |",
        "| --- | --- | --- | --- | --- | --- | --- |",
    ]
    for row in ROWS:
        gain = gain_of(row, work, SEEDS)
        cells, verdict = ["not measured"] * 5, "off"
        if gain is not None:
            time = "the same" if gain.time == 1 else f"{gain.time:.2f} x"
            (films, positives), found = gain.without, (gain.films, gain.positives)
            verdict = _verdict(*found)
            cells = [f"{films:.3f}", _interval(found[0]), f"{positives:.3f}", _interval(found[1]), time]
        lines.append(f"| {row.text} | {' | '.join(cells)} | {verdict} |")
    return "\n".join(lines)


def _verdict(films: Estimate, positives: Estimate) -> str:
    """Return whether an option is on by default, and what its gain says."""
    if films.low > 0:
        return "off: gains, but has to be asked for"
    if films.high < 0:
        return "off: lowers the score"
    return "off: gains on positive films alone" if positives.low > 0 else "off: no clear gain"


def distillation_table(work: Path) -> str:
    """Return docs/quality.md's table of distillation: the student beside its teachers and beside no teacher."""
    lines = [
        "| networks | positive Dice | less than the ensemble | share of it | core-seconds a film | share of it |",
        "| --- | --- | --- | --- | --- | --- |",
    ]
    stored = [[Job(side, seed, work).result for seed in SEEDS] for side in DISTILLATION.values()]
    if not all(path.exists() for paths in stored for path in paths):
        return "\n".join([*lines, *(f"| {text} |{' not measured |' * 5}" for text in DISTILLATION)])
    results = [[json.loads(path.read_text()) for path in paths] for paths in stored]
    ensemble, first = results[0], results[0][0]
    positive = np.array(first["positive"], bool)
    groups = np.array(first["groups"])[positive]
    best = _mean_dice(ensemble, "triplet")[positive]
    cost = np.array([each["film_seconds"] for each in ensemble])
    for text, found in zip(DISTILLATION, results, strict=True):
        dices, seconds = _mean_dice(found, "triplet")[positive], np.array([each["film_seconds"] for each in found])
        cells = [
            _interval(estimate(dices, groups), sign=""),
            _interval(estimate(dices - best, groups)),
            f"{dices.mean() / best.mean():.1%}",
            f"{np.median(seconds):.4f} ({seconds.min():.4f} to {seconds.max():.4f})",
            f"{np.median(seconds / cost):.1%}",
        ]
        lines.append(f"| {text} | {' | '.join(cells)} |")
    return "\n".join(lines)


def _interval(found: Estimate, sign: str = "+") -> str:
    return f"{found.mean:{sign}.3f} ({found.low:{sign}.3f} to {found.high:{sign}.3f})"


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the missing jobs, two at a time, and print the tables."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--work", type=Path, required=True, help="folder of films, runs and results")
    parser.add_argument("--only", nargs="*", default=[""], help="beginnings of the rows' names")
    parser.add_argument("--table", action="store_true", help="print the tables, and run nothing")
    options = parser.parse_args(arguments)
    if not options.table:
        _run([row for row in ROWS if row.name.startswith(tuple(options.only))], options.work.resolve())
    print(table(options.work), distillation_table(options.work), sep="\n\n")


def _run(rows: Sequence[Row], work: Path) -> None:
    for jobs in pending(rows, work, SEEDS):
        for dataset in {job.side.dataset for job in jobs}:
            DATASETS[dataset](work)
        with ThreadPoolExecutor(2) as pool:
            done = pool.map(lambda job: job.run(taught_splits(job.side)), jobs)
            for job, _ in zip(jobs, done, strict=True):
                print(f"{job.name}: done", flush=True)


if __name__ == "__main__":
    main()
