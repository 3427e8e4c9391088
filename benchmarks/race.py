"""A race on the demo's films: nnU-Net, Lightning, the demo and a plain loop, on the same two cores. Resumable.

    python -m benchmarks.race --work /tmp/race                        everything that is missing, then the tables
    python -m benchmarks.race --work /tmp/race --only ours,plain      these sides
    python -m benchmarks.race --work /tmp/race --table                the tables of what is there, for docs/quality.md
    python -m benchmarks.race --work /tmp/race --plot curves.png      the curves of what is there

Each side trains on fold 0's training films for its own length, up to the cap, one side after the other. The other tools
have environments of their own in the work folder. A finished seed of a side is kept. An interrupted nnU-Net goes on
from its last epoch, the others start again. How time and scores are measured: race_clock and race_score.
"""

import os
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from benchmarks.common import parser_of
from benchmarks.curves import seconds_to
from benchmarks.race_films import shards_of
from benchmarks.race_job import CORES, Job
from benchmarks.race_plot import plot
from benchmarks.race_score import results_of, save
from benchmarks.race_sides import SIDES
from benchmarks.race_table import minutes, tables


def main(arguments: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__, "race", tuple(SIDES))
    parser.add_argument(
        "--seeds", type=int, help="seeds of each side (default: 1 of lightning and nnunet, 3 of the others)"
    )
    parser.add_argument("--hours", type=float, default=3.0, help="hours of training at most (default 3)")
    parser.add_argument("--goal", type=float, default=0.6, help="positive Dice to reach (default 0.6)")
    parser.add_argument("--trial", action="store_true", help="two epochs of each side, to try them in another folder")
    parser.add_argument("--table", action="store_true", help="print the tables, and run nothing")
    parser.add_argument("--plot", type=Path, help="draw the curves to this file, and run nothing")
    options = parser.parse_args(arguments)
    work, cap = options.work.resolve(), options.hours * 3600
    if not options.table and options.plot is None:
        jobs = [
            Job(name, seed, work, cap, options.goal, options.trial)
            for name in options.only
            for seed in range(options.seeds or SIDES[name].seeds)
        ]
        with limited_to(CORES):
            run(jobs)
    if options.plot is not None:
        plot({name: results_of(work, name) for name in SIDES}, options.goal, options.plot)
        print(options.plot)
    else:
        print(tables(work, options.goal, cap))
    return 0


@contextmanager
def limited_to(cores: int) -> Iterator[None]:
    """Keep this process, and those that it starts meanwhile, to the first cores that it may use."""
    allowed = os.sched_getaffinity(0)
    os.sched_setaffinity(0, sorted(allowed)[:cores])
    try:
        yield
    finally:
        os.sched_setaffinity(0, allowed)


def run(jobs: Sequence[Job]) -> None:
    """Run the jobs without a result, one after the other."""
    for job in jobs:
        if job.result.exists():
            continue
        shards_of(job.work)
        result = SIDES[job.side].run(job)
        save(job.result, result, job.goal, job.cap)
        shutil.rmtree(job.folder)
        seconds = seconds_to(result.curve, job.goal, job.cap)
        print(f"{job.name}: goal {minutes(seconds)}, best {result.best.positive_dice:.3f}", flush=True)


if __name__ == "__main__":
    sys.exit(main())
