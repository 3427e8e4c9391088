"""Memory and pauses of a process that resumes from a checkpoint of 500 MB and saves one."""

import json
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.host_cost import HostCost
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.network.build import build_model
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.runs.checkpoint import map_checkpoint
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.checkpoint_writer import CheckpointWriter
from pneumo_dist.train.step import Learner

# Weights, their average and Adam's two moments: 4 x 130 MB.
EXPERIMENT = Experiment.model_validate(
    {
        "name": "memory",
        "model": {"encoder": "resnet50", "encoder_weights": None},
        "stages": [{"name": "main", "image_size": 64, "optim": {"name": "adam", "lr": 1e-4, "ema_decay": 0.99}}],
    }
)
TICK_SECONDS = 0.001
# The longest pause of each is noted, and the least of these: other processes cause pauses too.
SAVES = 5


def checkpoint_costs(work: Path) -> list[HostCost]:
    """Measure a child process that resumes and saves."""
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work) as folder:
        _run("make", folder)
        found = json.loads(_run("resume", folder))
    return [
        HostCost("step", "memory that a resume adds to a rank, state of 520 MB", "MB", "796", found["resumed"], 550),
        HostCost("step", "the same while it saves", "MB", "1867", found["saving"], 1100),
        HostCost("step", "longest pause of other threads in a save", "ms", "20 to 160", found["pause"], 20),
    ]


def _run(what: str, folder: str) -> str:
    command = [sys.executable, "-m", "benchmarks.host_checkpoint", what, folder]
    return subprocess.run(command, cwd=ROOT, check=True, stdout=subprocess.PIPE, text=True).stdout


def _learner() -> Learner:
    model = build_model(EXPERIMENT.model, pretrained=False)
    return Learner(EXPERIMENT, EXPERIMENT.stages[0], Ranks.alone(), "float32", model)


def _state(learner: Learner) -> dict[str, Any]:
    lineage = {"experiment": "memory", "stage": "main", "fold": 0, "always_train": False, "keys_sha256": "0" * 64}
    position = {"epoch": 0, "step": 1, "total": 1, "finished": False, "bad_steps": 0}
    return {
        "experiment": EXPERIMENT.model_dump(mode="json"),
        "stage": "main",
        "fold": 0,
        "world": 1,
        "lineage": [lineage],
        "position": position,
        "history": [],
        "sums": [],
        **learner.state(),
    }


def _make(folder: Path) -> None:
    """Write the checkpoint that the other process resumes from."""
    learner = _learner()
    for parameter in learner.model.parameters():
        parameter.grad = torch.ones_like(parameter)
    learner.optimizer.step()
    CheckpointFolder(folder).save(1, _state(learner))


def _resume(folder: Path) -> dict[str, float]:
    """Resume and save, and return added memory in MB and the longest pause in ms."""
    imported = _own_mb()
    learner = _learner()
    learner.restore(map_checkpoint((folder / "last").resolve()))
    resumed = _own_mb() - imported
    writer = CheckpointWriter(CheckpointFolder(folder))
    peaks, pauses = [], []
    for step in range(2, 2 + SAVES):
        with _observed() as observed:
            writer.save(step, _state(learner), lambda: None)
            writer.wait()
        peaks.append(observed["peak"])
        pauses.append(observed["pause"])
    return {"resumed": resumed, "saving": max(peaks) - imported, "pause": min(pauses)}


@contextmanager
def _observed() -> Iterator[dict[str, float]]:
    """Note the peak of this process's own memory, and the longest time for which another thread could not run."""
    found, stop = {"peak": _own_mb(), "pause": 0.0}, threading.Event()

    def observe() -> None:
        before = time.perf_counter()
        while not stop.is_set():
            time.sleep(TICK_SECONDS)
            now = time.perf_counter()
            found["pause"] = max(found["pause"], (now - before) * 1e3)
            found["peak"] = max(found["peak"], _own_mb())
            before = time.perf_counter()

    thread = threading.Thread(target=observe)
    thread.start()
    try:
        yield found
    finally:
        stop.set()
        thread.join()


def _own_mb() -> float:
    """Return the memory that no other process shares, in MB; pages of a mapped file are not part of it."""
    (line,) = [line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("RssAnon")]
    return int(line.split()[1]) * 1024 / 1e6


if __name__ == "__main__":
    torch.set_num_threads(1)
    if sys.argv[1] == "make":
        _make(Path(sys.argv[2]))
    else:
        print(json.dumps(_resume(Path(sys.argv[2]))))
