"""What the parts of `benchmarks.trainer` share: films, launches, and the times that a run leaves behind."""

import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from benchmarks.shards import ROOT, SALT, Report, _films, _sources
from shards.build.build import build
from shards.build.options import BuildOptions

__all__ = ["ROOT", "FilmSet", "Report", "environment", "run_worker", "spread", "step_times", "torchrun", "write_config"]

Tree = Mapping[str, Any]


@dataclass(frozen=True)
class FilmSet:
    """Synthetic films of `size` x `size` pixels, stored at that size; the set depends on these values alone."""

    films: int
    size: int
    positive_rate: float
    folds: int

    def shards(self, work: Path) -> Path:
        """Return the folder of its shards; the films are made once in `work`, the shards anew in each process."""
        out = work / f"shards-{self.films}-{self.size}-{self.positive_rate}-{self.folds}"
        if out in _BUILT:
            return out
        made = _films(work, self.films, self.size, self.positive_rate, seed=1)
        shutil.rmtree(out, ignore_errors=True)
        build(_sources(made), out, BuildOptions(image_size=self.size, folds=self.folds), SALT)
        _BUILT.add(out)
        return out


_BUILT: set[Path] = set()


def environment(threads: int = 1) -> dict[str, str]:
    """Return the environment of a process that trains on the CPU with so many torch threads."""
    return {
        **os.environ,
        "OMP_NUM_THREADS": str(threads),
        "CUDA_VISIBLE_DEVICES": "",
        # Else albumentations asks the network for a newer version of itself.
        "NO_ALBUMENTATIONS_UPDATE": "1",
    }


def torchrun(ranks: int, module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module on `ranks` ranks of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, "-m", module, *map(str, arguments)]


def run_worker(part: str, ranks: int, experiment: Tree, settings: Tree) -> Any:
    """Run one part of `benchmarks.trainer_worker` on `ranks` ranks; return what its rank 0 measured."""
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "settings.json", Path(folder) / "found.json"
        config = write_config(Path(folder) / "experiment.yaml", experiment)
        paths = {"config": str(config), "folder": folder, "found": str(found)}
        given.write_text(json.dumps({**settings, **paths}))
        command = torchrun(ranks, "benchmarks.trainer_worker", part, given)
        done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the worker of {part} failed:\n{done.stdout}\n{done.stderr}")
        return json.loads(found.read_text())


def write_config(path: Path, tree: Tree) -> Path:
    """Write an experiment as YAML; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(tree)))
    return path


def step_times(stage: Path, scalar: str = "train_step/loss") -> list[float]:
    """Return when a scalar was noted, by the clock of the machine, in the stage's latest run (an events file each)."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    latest = max((stage / "tensorboard").glob("events.*"), key=lambda path: path.stat().st_mtime_ns)
    return [event.wall_time for event in EventAccumulator(str(latest)).Reload().Scalars(scalar)]


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return median, least and most of some values as text."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"
