"""Helpers shared by the benchmarks: phantom films and shards, timing, child processes, and printed figures."""

import argparse
import contextlib
import gc
import math
import multiprocessing
import os
import platform
import shutil
import signal
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import IO, Any, TypeVar

import cv2
import numpy as np
import yaml

from benchmarks import ROOT
from pneumo_dist.data.plan import FoldSplit
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles, Sources
from shards.build.labels import load_labels
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.dataset.table import Shards
from shards.parent import die_with_parent
from shards.phantom.dataset import synthesize

SALT = b"a salt for benchmarks only"
Value = TypeVar("Value")


# --- films and shards


@dataclass(frozen=True)
class FilmSet:
    """Phantom films of `size` x `size` pixels in the SIIM layout; these values alone determine the set."""

    films: int
    size: int
    positive_rate: float = 0.25
    seed: int = 5

    def folder(self, work: Path) -> Path:
        """Return the folder of the films and their labels; make them if `work` does not have them yet."""
        folder = work / f"films-{self.films}-{self.size}-{self.positive_rate}-{self.seed}"
        if not (folder / "train-rle.csv").exists():
            shutil.rmtree(folder, ignore_errors=True)
            print(f"making {self.films} films in {folder}, once", flush=True)
            synthesize(folder, images=self.films, size=self.size, positive_rate=self.positive_rate, seed=self.seed)
        return folder

    def shards(self, work: Path, image_size: int | None = None, **options: Any) -> Path:
        """Return the folder of shards with these BuildOptions; each process builds them once, so they fit the code."""
        build_options = BuildOptions(image_size=image_size or self.size, **options)
        films = self.folder(work)
        stored = "-".join(map(str, (build_options.image_size, build_options.codec, build_options.folds)))
        out = work / f"shards-{films.name.removeprefix('films-')}-{stored}"
        if out not in _BUILT:
            rebuild(films, out, build_options)
            _BUILT.add(out)
        return out


_BUILT: set[Path] = set()


def rebuild(films: Path, out: Path, options: BuildOptions) -> None:
    """Build shards of a folder of labelled films, in place of those that `out` may hold."""
    shutil.rmtree(out, ignore_errors=True)
    build(labelled_sources(films), out, options, SALT)


def labelled_sources(films: Path) -> Sources:
    """Return the sources of a folder with films and one CSV file of labels."""
    return find_sources(FilmFolders(dicom=(films,)), LabelFiles(label_file(films)))


def label_file(films: Path) -> Path:
    return next(films.glob("*.csv"))


def link_films(films: Path, folder: Path, count: int) -> Path:
    """Fill a folder with `count` links to films, each under another name, and with their labels."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    labels = load_labels(label_file(films))
    rows = []
    paths = sorted(films.rglob("*.dcm"))
    for number in range(count):
        path = paths[number % len(paths)]
        (folder / f"film{number}.dcm").symlink_to(path.resolve())
        rows += [f"film{number},{row.rle}" for row in labels[path.stem]]
    (folder / "labels.csv").write_text("\n".join(["ImageId,EncodedPixels", *rows]) + "\n")
    return folder


def train_on_all(shards: Shards) -> FoldSplit:
    """Return a split that trains on all films and validates on none."""
    rows = np.arange(len(shards), dtype=np.int64)
    positive = shards.column("has_mask").astype(bool)
    areas = shards.column("mask_area")[positive]
    return FoldSplit(rows, rows[positive], rows[~positive], rows[:0], areas)


def train_on_repeated(shards: Shards, count: int) -> FoldSplit:
    """Return a split of `count` training films, 22 % of them positive, which repeats the few that exist."""
    few, positives = train_on_all(shards), count * 2 // 9
    return FoldSplit(
        np.resize(few.train, count),
        np.resize(few.positives, positives),
        np.resize(few.negatives, count - positives),
        few.validation,
        np.resize(few.areas, positives),
    )


# --- time and memory


def median_seconds(call: Callable[[], object], repeats: int) -> float:
    """Return the median duration of a call, after one that warms up."""
    call()
    durations = []
    gc.disable()
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        durations.append(time.perf_counter() - start)
    gc.enable()
    return statistics.median(durations)


def memory_mib(name: str) -> float:
    """Return a size from this process's /proc/self/status, such as VmHWM (peak) or VmRSS, in MiB."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def step_times(stage: Path, scalar: str = "train_step/loss") -> list[float]:
    """Return the wall-clock times at which the stage's latest run logged a scalar to TensorBoard."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    latest = max((stage / "tensorboard").glob("events.*"), key=lambda path: path.stat().st_mtime_ns)
    return [event.wall_time for event in EventAccumulator(str(latest)).Reload().Scalars(scalar)]


# --- processes


def single_threaded(_worker: int = 0) -> None:
    """Keep OpenCV to the calling thread: the processes are the parallelism."""
    cv2.setNumThreads(0)


def in_fresh_process(
    call: Callable[..., Value], *arguments: object, setup: Callable[[], None] = single_threaded
) -> Value:
    """Return the result of a call in a new process, which runs `setup` first."""
    # Unlike the workers of a multiprocessing.Pool, those of an executor may have child processes.
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), _begin, (setup,)) as pool:
        return pool.submit(call, *arguments).result()


def _begin(setup: Callable[[], None]) -> None:
    die_with_parent()
    setup()


def cpu_environment(threads: int = 1) -> dict[str, str]:
    """Return the environment of a process that computes on the CPU with this number of torch threads."""
    return {**os.environ, "OMP_NUM_THREADS": str(threads), "CUDA_VISIBLE_DEVICES": ""}


def run_on_cpu(command: Sequence[str]) -> str:
    """Run a command; return its stdout. Raises RuntimeError with its output if it fails."""
    done = subprocess.run(command, cwd=ROOT, env=cpu_environment(), capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stdout}\n{done.stderr}")
    return done.stdout


def run_limited(command: Sequence[str], seconds: float | None, output: IO[str] | int) -> int | None:
    """Run a command with all its output in a file; return its exit code, None if it took longer and was killed."""
    # A new session, so that killing its process group also ends its children, such as a loader's workers.
    process = subprocess.Popen(
        command, cwd=ROOT, stdout=output, stderr=subprocess.STDOUT, text=True, start_new_session=True
    )
    try:
        return process.wait(seconds)
    except subprocess.TimeoutExpired:
        return None
    finally:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()


def torchrun(ranks: int, module: str, *arguments: object) -> list[str]:
    """Return the command that runs a module on `ranks` ranks of this machine."""
    launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks)]
    return [*launcher, "-m", module, *map(str, arguments)]


def wait_for(
    process: "subprocess.Popen[bytes]", condition: Callable[[], bool], poll: float, limit: float = math.inf
) -> None:
    """Poll a condition. Raises RuntimeError if the process ends or `limit` seconds pass before the condition holds."""
    end = time.monotonic() + limit
    while not condition():
        if process.poll() is not None:
            raise RuntimeError(f"{process.args!r} ended early with exit code {process.returncode}")
        if time.monotonic() > end:
            raise RuntimeError(f"{process.args!r} made no progress within {limit:.0f} s")
        time.sleep(poll)


def write_config(path: Path, experiment: Mapping[str, Any]) -> Path:
    """Write an experiment as YAML; return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(yaml.safe_dump(dict(experiment)))
    return path


# --- the command line and what it prints


def parser_of(description: str | None, name: str, parts: Sequence[str] = ()) -> argparse.ArgumentParser:
    """Return a parser with --work, by default a folder of the benchmark's name, and --only if there are parts."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--work", type=Path, default=Path(f"/tmp/{name}-benchmark"), help="folder for films and results"
    )
    if parts:
        text = f"parts to measure, of {','.join(parts)} (default all)"
        parser.add_argument("--only", type=one_of(parts), default=[*parts], help=text)
    return parser


def one_of(names: Sequence[str]) -> Callable[[str], list[str]]:
    """Return an argparse type: a comma-separated list of some of these names."""

    def parsed(text: str) -> list[str]:
        values = text.split(",")
        if unknown := sorted({*values} - {*names}):
            raise argparse.ArgumentTypeError(f"{','.join(unknown)}: choose from {','.join(names)}")
        return values

    return parsed


def machine(*modules: ModuleType) -> str:
    """Return the versions of Python and of these modules, the processor and the number of cores as text."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    processor = next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), "")
    versions = [f"{module.__name__} {module.__version__}" for module in modules]
    return ", ".join(
        [f"Python {platform.python_version()}", *versions, processor or platform.machine(), f"{os.cpu_count()} cores"]
    )


def spread(values: Sequence[float], form: str = ".2f") -> str:
    """Return the median, minimum and maximum of some values as text."""
    return f"{statistics.median(values):{form}} ({min(values):{form}} to {max(values):{form}})"


class Report:
    """Prints figures next to their targets, and counts the targets that are missed."""

    def __init__(self) -> None:
        self._missed: list[str] = []

    def title(self, text: str) -> None:
        print(f"\n{text}")

    def row(self, name: str, value: str, target: str = "", met: bool | None = None) -> None:
        verdict = "" if met is None else "met" if met else "MISSED"
        if met is False:
            self._missed.append(name)
        print(f"  {name:<52}{value:>28}  {target:<12}{verdict}".rstrip(), flush=True)

    def finish(self) -> None:
        """Print which targets were missed."""
        print(f"\n{len(self._missed)} targets missed{': ' if self._missed else ''}{'; '.join(self._missed)}")


def cpu_seconds() -> float:
    """Return the CPU time used so far by this process and its workers."""
    workers = [worker.pid for worker in multiprocessing.active_children()]
    ticks = 0
    for number in (os.getpid(), *workers):
        fields = Path(f"/proc/{number}/stat").read_text().rpartition(")")[2].split()
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")
