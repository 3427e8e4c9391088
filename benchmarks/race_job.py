"""One side of benchmarks.race with one seed, and how its processes are run."""

import os
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.common import cpu_environment
from shards.parent import die_with_parent

CORES = 2


@dataclass(frozen=True)
class Job:
    """A side with one seed.

    Attributes:
        side: Name of the side.
        seed: Its seed.
        work: Folder of the race.
        cap: Maximum seconds of training.
        goal: The Dice of positive films to reach.
        trial: Run for two epochs only.
    """

    side: str
    seed: int
    work: Path
    cap: float
    goal: float
    trial: bool = False

    @property
    def name(self) -> str:
        return f"{self.side}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.work / "results" / f"{self.name}.json"

    @property
    def folder(self) -> Path:
        """Where the side works. It is removed once the result is there."""
        return self.work / "sides" / self.name

    @property
    def log(self) -> Path:
        return self.work / "logs" / f"{self.name}.log"


def run_logged(
    command: Sequence[object],
    log: Path,
    variables: Mapping[str, str] | None = None,
    threads: int = 1,
    limit: float | None = None,
) -> None:
    """Run a command that ends with this process, its output appended to a log.

    Args:
        command: The program and its arguments.
        log: Path of the log.
        variables: Variables to add to the environment.
        threads: Number of torch threads.
        limit: Seconds after which the command is killed, which is no error.

    Raises:
        RuntimeError: The command failed.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    words = list(map(str, command))
    parent = os.getpid()
    with log.open("ab") as stream:
        try:
            done = subprocess.run(
                words,
                cwd=ROOT,
                env={**cpu_environment(threads), **(variables or {})},
                stdout=stream,
                stderr=stream,
                timeout=limit,
                preexec_fn=lambda: die_with_parent(parent),
            )
        except subprocess.TimeoutExpired:
            return
    if done.returncode:
        raise RuntimeError(f"{' '.join(words)} ended with {done.returncode}; see {log}")
