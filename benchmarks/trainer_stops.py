"""How soon a signalled run ends, and how soon it goes on: launch/train.sh as a person types it."""

import contextlib
import itertools
import random
import shutil
import signal
import statistics
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from benchmarks.trainer_shared import ROOT, FilmSet, Report, environment, spread, step_times
from pneumo_dist.ranks.stop import EXIT_PREEMPTED

RANKS = 2
DEMO = FilmSet(films=240, size=128, positive_rate=0.5, folds=2)
# A large network on a small input: 32 million weights are restored, while a step stays short.
LARGE = ("model.encoder_weights=null", "image_size=64", "global_batch=8", "micro_batch=4", "amp=auto")
POLL_SECONDS = 0.05
GIVE_UP_SECONDS = 300.0


@dataclass(frozen=True)
class Run:
    """One fold of an experiment, always in the same folder."""

    config: str
    shards: Path
    folder: Path
    overrides: tuple[str, ...] = ()

    @property
    def stage(self) -> Path:
        """The folder of the fold's only stage that was begun."""
        return next(path.parent for path in self.folder.glob("*/fold0/*/tensorboard"))

    def command(self) -> list[str]:
        where = ["--config", f"configs/{self.config}.yaml", "--fold", "0"]
        where += ["--shards", str(self.shards), "--runs", str(self.folder)]
        overrides = [word for override in self.overrides for word in ("--set", override)]
        return ["bash", "launch/train.sh", "--ranks", str(RANKS), "--cpu", *where, *overrides]

    @contextmanager
    def started(self) -> Iterator[subprocess.Popen[bytes]]:
        """Start the run, and end it by a signal where the caller has not."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        log = self.folder.with_suffix(".log")
        with log.open("ab") as output:
            process = subprocess.Popen(self.command(), cwd=ROOT, env=environment(), stdout=output, stderr=output)
        try:
            yield process
        finally:
            with contextlib.suppress(ProcessLookupError):
                process.terminate()
            process.wait()

    def stop(self, process: subprocess.Popen[bytes]) -> float:
        """Send SIGTERM; return the seconds to the exit. Raises RuntimeError where the run did not stop but ended."""
        started = time.monotonic()
        process.send_signal(signal.SIGTERM)
        code = process.wait()
        if code != EXIT_PREEMPTED:
            raise RuntimeError(f"exit code {code}, not {EXIT_PREEMPTED}; see {self.folder.with_suffix('.log')}")
        return time.monotonic() - started


def measure_stop(report: Report, work: Path, turns: int) -> None:
    """Time SIGTERM to exit at random moments of an epoch, validation included, at demo size."""
    run = Run("demo", DEMO.shards(work), work / "stop" / "runs", ("stages.main.epochs=1000",))
    chance = random.Random(0)
    summary = run.folder / "demo/fold0/main/summary.csv"
    over, taken, lengths = [], [], []
    for _ in range(turns):
        shutil.rmtree(run.folder, ignore_errors=True)
        with run.started() as process:
            _wait_for(process, lambda: summary.exists())
            time.sleep(chance.uniform(0.0, 5.0))
            taken.append(run.stop(process))
        times = step_times(run.stage)
        lengths.append(statistics.median(after - before for before, after in itertools.pairwise(times)))
        over.append(taken[-1] - 2 * lengths[-1])
    report.title(f"From SIGTERM to launch/train.sh to its exit, configs/demo.yaml, {RANKS} ranks, {turns} moments")
    report.row("to the exit", f"{spread(taken)} s")
    report.row("two steps", f"{2 * statistics.median(lengths):.2f} s")
    report.row("beyond two steps, median (least to most)", f"{spread(over)} s")
    report.row("beyond two steps, the worst", f"{max(over):.2f} s", "< 5 s", max(over) < 5)


def measure_resume(report: Report, work: Path, turns: int) -> None:
    """Time the start of a process to the end of its first step, for a new run and for the same one resumed."""
    shards = DEMO.shards(work)
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
    """Start a run, stop it once it has saved a checkpoint in mid-epoch, and return when its first step had ended."""
    before = set(_checkpoints(run))
    started = time.time()
    with run.started() as process:
        _wait_for(process, lambda: bool(set(_checkpoints(run)) - before))
        run.stop(process)
    return step_times(run.stage)[0] - started


def _checkpoints(run: Run) -> list[Path]:
    return list(run.folder.glob("*/fold0/*/checkpoints/step-*.pt"))


def _wait_for(process: subprocess.Popen[bytes], happened: Callable[[], bool]) -> None:
    started = time.monotonic()
    while not happened():
        if process.poll() is not None:
            raise RuntimeError(f"the run ended by itself, exit code {process.returncode}")
        if time.monotonic() - started > GIVE_UP_SECONDS:
            raise RuntimeError(f"nothing happened within {GIVE_UP_SECONDS:.0f} s")
        time.sleep(POLL_SECONDS)
