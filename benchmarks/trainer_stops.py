"""Measure how soon launch/train.sh exits after a signal, and how soon it resumes."""

import contextlib
import itertools
import random
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.common import FilmSet, Report, cpu_environment, spread, step_times, wait_for
from pneumo_dist.ranks.stop import EXIT_PREEMPTED

RANKS = 2
DEMO = FilmSet(films=240, size=128, positive_rate=0.5, seed=1)
# A large network on small films: 32 million weights to restore, but short steps.
LARGE = ("model.encoder_weights=null", "image_size=64", "global_batch=8", "micro_batch=4", "amp=auto")
POLL_SECONDS = 0.05
GIVE_UP_SECONDS = 300.0


@dataclass(frozen=True)
class Run:
    """Training of fold 0 of an experiment, always in the same folder."""

    config: str
    shards: Path
    folder: Path
    overrides: tuple[str, ...] = ()

    @property
    def stage(self) -> Path:
        """The folder of the only stage that has started."""
        return next(path.parent for path in self.folder.glob("*/fold0/*/tensorboard"))

    def command(self) -> list[str]:
        paths = ["--config", f"configs/{self.config}.yaml", "--shards", str(self.shards), "--runs", str(self.folder)]
        overrides = [word for override in self.overrides for word in ("--set", override)]
        return ["bash", "launch/train.sh", "--ranks", str(RANKS), "--cpu", "--fold", "0", *paths, *overrides]

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the run; terminate it on exit if it is still running."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        log = self.folder.with_suffix(".log")
        with log.open("ab") as output:
            process = subprocess.Popen(self.command(), cwd=ROOT, env=cpu_environment(), stdout=output, stderr=output)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            process.wait()

    def stop(self, process: subprocess.Popen[bytes]) -> float:
        """Send SIGTERM; return the seconds to the exit. Raises RuntimeError if the exit code is not EXIT_PREEMPTED."""
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        if code != EXIT_PREEMPTED:
            raise RuntimeError(f"exit code {code}, not {EXIT_PREEMPTED}; see {self.folder.with_suffix('.log')}")
        return time.monotonic() - started


def measure_stop(report: Report, work: Path, turns: int) -> None:
    """Time SIGTERM to exit at random moments of an epoch, including validation, at demo size."""
    run = Run("demo", DEMO.shards(work, folds=2), work / "stop" / "runs", ("stages.main.epochs=1000",))
    chance = random.Random(0)
    summary = run.folder / "demo/fold0/main/summary.csv"
    over, seconds, lengths = [], [], []
    for _ in range(turns):
        shutil.rmtree(run.folder, ignore_errors=True)
        with run.started() as process:
            wait_for(process, summary.exists, POLL_SECONDS, GIVE_UP_SECONDS)
            time.sleep(chance.uniform(0.0, 5.0))
            seconds.append(run.stop(process))
        times = step_times(run.stage)
        lengths.append(statistics.median(after - before for before, after in itertools.pairwise(times)))
        over.append(seconds[-1] - 2 * lengths[-1])
    report.title(f"From SIGTERM to launch/train.sh to its exit, configs/demo.yaml, {RANKS} ranks, {turns} moments")
    report.row("to the exit", f"{spread(seconds)} s")
    report.row("two steps", f"{2 * statistics.median(lengths):.2f} s")
    report.row("beyond two steps, median (minimum to maximum)", f"{spread(over)} s")
    report.row("beyond two steps, maximum", f"{max(over):.2f} s", "< 5 s", max(over) < 5)


def measure_resume(report: Report, work: Path, turns: int) -> None:
    """Time the start of a process to the end of its first step, for a new run and for the same run resumed."""
    shards = DEMO.shards(work, folds=2)
    often = ("save_every=3", "epochs=1000")
    runs = {
        "demo": Run("demo", shards, work / "resume" / "demo", often),
        "resnet50 at 64 px": Run("resnet50", shards, work / "resume" / "resnet50", (*LARGE, *often)),
    }
    report.title(f"From the start of launch/train.sh to the end of its first step, {RANKS} ranks, {turns} pairs")
    for name, run in runs.items():
        fresh, resumed = [], []
        for _ in range(turns):
            shutil.rmtree(run.folder, ignore_errors=True)
            fresh.append(_seconds_to_first_step(run))
            resumed.append(_seconds_to_first_step(run))
        late = [after - before for before, after in zip(fresh, resumed, strict=True)]
        value = statistics.median(late)
        report.row(f"{name}: new", f"{spread(fresh)} s")
        report.row(f"{name}: resumed", f"{spread(resumed)} s")
        report.row(f"{name}: resumed later by", f"{spread(late)} s", "< 2 s", value < 2)


def _seconds_to_first_step(run: Run) -> float:
    """Start a run, stop it once it has saved a checkpoint in mid-epoch, and return the seconds to its first step."""
    before = set(_checkpoints(run))
    started = time.time()
    with run.started() as process:
        wait_for(process, lambda: bool(set(_checkpoints(run)) - before), POLL_SECONDS, GIVE_UP_SECONDS)
        run.stop(process)
    return step_times(run.stage)[0] - started


def _checkpoints(run: Run) -> list[Path]:
    return list(run.folder.glob("*/fold0/*/checkpoints/step-*.pt"))
