"""One side of benchmarks.quality with one seed: trained, tuned out of fold, and scored on the holdout."""

import os
import subprocess
import sys
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import yaml

from benchmarks import ROOT
from benchmarks.common import cpu_environment, run_on_cpu
from benchmarks.quality_films import DATASETS, HOLDOUT
from benchmarks.quality_rows import Side
from pneumo_dist.maps.store import Predictions
from pneumo_dist.report.evaluate import evaluate
from pneumo_dist.thresholds.choose import run_thresholds
from shards.files import atomic_write, write_json


@dataclass(frozen=True)
class Job:
    """A side with one seed. `extra` are more values of `--set`, for a short trial."""

    side: Side
    seed: int
    work: Path
    extra: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.side.name}-{self.seed}"

    @property
    def result(self) -> Path:
        return self.work / "results" / f"{self.name}.json"

    @property
    def runs(self) -> Path:
        return self.work / "runs"

    def run(self, teaches: Iterable[str]) -> None:
        """Make both folds or the ensemble, tune it, and write the Dice of each film of the holdout under each rule.

        `teaches` are the splits whose maps other sides learn from. Finished parts of an interrupted job are kept.
        """
        shards = DATASETS[self.side.dataset](self.work)
        data = ("--shards", str(shards), "--runs", str(self.runs))
        config, seconds = self._config(data), 0.0
        if not (self.side.members or self.side.selects):
            seconds = self._command("train", *config, *data, "--folds", "all", "--cpu")
        for split in (*teaches, "oof", "holdout"):
            self._command("predict", *config, *data, "--cpu", "--split", split)
        if "model.arch=classifier" in self.side.settings:  # it has no masks of its own
            write_json(self.result, {"seconds": seconds})
            return
        self._command("tune", *config, "--runs", str(self.runs), "--joint")
        scores = holdout_scores(self.runs / self.name)
        film_seconds = self._film_seconds(config) if self.side.is_timed else {}
        write_json(self.result, {"seconds": seconds, **film_seconds, **scores})

    def _film_seconds(self, config: tuple[str, ...]) -> dict[str, float]:
        """Return the core-seconds from a film's file to its mask, by `Segmenter` in a process of its own."""
        bundle = self.runs / self.name / "bundle"
        self._command("average", *config, "--runs", str(self.runs), "--cpu", "--bundle", str(bundle))
        films = HOLDOUT.folder(self.work)
        printed = run_on_cpu([sys.executable, "-m", "benchmarks.quality_film_seconds", str(bundle), str(films)])
        return {"film_seconds": float(printed)}

    def _config(self, data: tuple[str, ...]) -> tuple[str, ...]:
        """Return the options that name the experiment, or write the ensemble's config."""
        side = self.side
        path = self.work / "configs" / f"{self.name}.yaml"
        if side.members:
            options: dict[str, Any] = {"tta": {"hflip": side.hflip}, **({"checkpoints": "best"} if side.best else {})}
            members = [{"experiment": f"{member.name}-{self.seed}", **options} for member in side.members]
            atomic_write(path, yaml.safe_dump({"name": self.name, "members": members}))
            return ("--config", str(path))
        if side.selects:
            path.parent.mkdir(parents=True, exist_ok=True)
            candidates = []
            for candidate, of_side, views in side.selects:
                folder = self.runs / f"{candidate}-{self.seed}"
                job = replace(self, side=of_side)
                out = ("--split", "oof", "--out", str(folder / "oof/predictions"), "--cpu")
                self._command("predict", *job._config(data), *data, *views, *out)
                candidates.append(str(folder))
            self._command("select", *candidates, "--name", self.name, "--out", str(path))
            return ("--config", str(path))
        settings = [f"name={self.name}", f"seed={self.seed}", *side.settings, *self.extra]
        if side.distils is not None:
            settings.append(f"distillation.from={side.distils.name}-{self.seed}")
        if side.teacher is not None:
            settings.append(f"unlabelled.from={side.teacher.name}-{self.seed}/main")
        return ("--config", side.config, *(word for setting in settings for word in ("--set", setting)))

    def _command(self, *words: str) -> float:
        """Run a command of pneumo_dist on one core and return its core-seconds. Raises RuntimeError with its log."""
        log = self.work / "logs" / f"{self.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        with log.open("ab") as stream:
            command = [sys.executable, "-m", "pneumo_dist", *words]
            process = subprocess.Popen(command, cwd=ROOT, env=cpu_environment(), stdout=stream, stderr=stream)
            _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
        if process.returncode:
            raise RuntimeError(f"{self.name}: {words[0]} ended with {process.returncode}; see {log}")
        return usage.ru_utime + usage.ru_stime


def holdout_scores(run: Path) -> dict[str, Any]:
    """Return the Dice of each film of a run's holdout under each rule that was tuned on its out-of-fold films."""
    predictions, thresholds = Predictions(run / "holdout/predictions"), run_thresholds(run)
    found = {name: evaluate(predictions, tuned.rule) for name, tuned in thresholds.rules.items()}
    return {
        "keys": [row["key"] for row in predictions.rows],
        "groups": [str(row["group"]) for row in predictions.rows],
        "positive": found["triplet"].counts.positive.tolist(),
        "dice": {name: films.counts.dice.tolist() for name, films in found.items()},
    }


def in_waves(jobs: Iterable[Job]) -> list[list[Job]]:
    """Return jobs in waves, each after the jobs that it needs; those of a wave are independent."""
    waves: list[list[Job]] = []
    for job in jobs:
        depth = _depth(job.side)
        waves += [[] for _ in range(depth + 1 - len(waves))]
        if job not in waves[depth]:
            waves[depth].append(job)
    return waves


def _depth(side: Side) -> int:
    return 1 + max(map(_depth, side.needs), default=-1)
