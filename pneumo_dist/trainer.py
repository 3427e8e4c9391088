"""The training loop: one fold of an experiment, stage by stage, exactly resumable.

A run's whole position is (stage, epoch, step): order, augmentation and torch's random numbers are functions of it.
"""

import math
import time
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pneumo_dist import __version__
from pneumo_dist.checkpoint import CheckpointWriter, keep_only, top_steps
from pneumo_dist.config import Experiment, StageConfig
from pneumo_dist.data.batch import Batch, Input
from pneumo_dist.data.loader import eval_loader, train_batches
from pneumo_dist.data.plan import EpochPlan, split_fold
from pneumo_dist.distributed import Ranks, peak_memory_mb
from pneumo_dist.learner import Learner, Step
from pneumo_dist.lineage import Lineage
from pneumo_dist.models import build_model
from pneumo_dist.monitor import Monitor, write_summary
from pneumo_dist.precision import resolve_amp
from pneumo_dist.preemption import Preempted, Request, StopAgreement, write_marker
from pneumo_dist.validation import Validation, validate
from pneumo_dist.watchdog import Watchdog
from shards.errors import InputError
from shards.table import Shards

OVERLAYS = 4


@dataclass
class Position:
    """Where a stage stands: `step` optimizer steps of `epoch` are done; `total` counts them over the stage."""

    epoch: int = 0
    step: int = 0
    total: int = 0
    finished: bool = False


@dataclass(frozen=True)
class Start:
    """Where a stage starts: the checkpoint that it goes on from, or the weights of another, or neither."""

    state: dict[str, Any] | None
    weights: dict[str, Any] | None
    lineage: Lineage


class StageRun:
    """One stage of one fold on one rank; its name and folder are the stage's."""

    def __init__(
        self,
        experiment: Experiment,
        stage: StageConfig,
        fold: int,
        shards: Shards,
        folder: Path,
        ranks: Ranks,
        stop: StopAgreement,
        start: Start,
    ) -> None:
        self.experiment, self.stage, self.fold, self.shards = experiment, stage, fold, shards
        self.fold_folder, self.folder, self.ranks, self.stop = folder, folder / stage.name, ranks, stop
        self.checkpoints = self.folder / "checkpoints"
        self.start, self.lineage = start, start.lineage
        self.split = split_fold(shards, fold, stage.always_train)
        self.plan = EpochPlan(self.split, stage, experiment.seed, ranks.world)
        self.input = Input(stage.image_size, experiment.model.in_channels, experiment.data, ranks.device_id)
        self.position = Position()
        self.history: list[dict[str, Any]] = []
        self.bad_steps = 0

    def train(self) -> list[dict[str, Any]]:
        """Train to the end of the stage, from its newest checkpoint if it has one; return its validated epochs."""
        if self.start.state is not None:
            self.position, self.history = Position(**self.start.state["position"]), self.start.state["history"]
            # A run killed right after its save has left this undone.
            self._tidy(self.history)
        if self.position.finished:
            return self.history
        self._prepare()
        try:
            batches = train_batches(
                self.shards, self.plan, self.input, self.ranks.rank, self.position.epoch, self.position.step
            )
            evaluation = eval_loader(
                self.shards,
                self.split.validation,
                self.stage,
                self.input,
                self.ranks.rank,
                self.ranks.world,
                with_mask=True,
            )
            while not self.position.finished:
                self._train_epoch(batches)
                self._end_epoch(self._validate(evaluation))
            self._finish_saving()
            self.monitor.outcome(self._settings(), max(record["score"] for record in self.history))
        finally:
            self.watchdog.close()
            self.writer.wait()
            self.monitor.close()
        return self.history

    def _prepare(self) -> None:
        """Make the network, what trains it and the logs; restore them from a checkpoint or the stage before."""
        state, ranks, experiment = self.start.state, self.ranks, self.experiment
        amp = state["amp"] if state else resolve_amp(experiment.amp, ranks.device)
        torch.manual_seed(experiment.seed)
        # A checkpoint replaces fetched weights, and the other ranks receive rank 0's through DDP.
        is_fresh = state is None and self.start.weights is None
        model = build_model(experiment.model, pretrained=is_fresh and ranks.is_main)
        if self.start.weights is not None:
            try:
                model.load_state_dict(self.start.weights)
            except RuntimeError:
                raise InputError(
                    f"stage {self.stage.name}: the checkpoint that it starts from is of another network; give it the "
                    "same model, or mend init"
                ) from None
        self.learner = Learner(experiment, self.stage, ranks, amp, model)
        # Losses, overlap and pixels of the epoch so far, and how many steps they are of; rank 0 holds a resumed part.
        self.sums = np.zeros(len(self.learner.terms) + 3)
        if state is not None:
            self.learner.restore(state)
            if ranks.is_main:
                self.sums = np.array(state["sums"])
        logged = int(state["metrics_bytes"]) if state else 0
        self.monitor = Monitor(self.folder, ranks.is_main, logged, self.position.total, state is None)
        if state is None:
            self.monitor.describe(experiment.model_dump_json(indent=1))
        self.writer = CheckpointWriter(self.checkpoints)
        self.saved_at = time.monotonic()
        self.watchdog = Watchdog(ranks.rank, ranks.world, experiment.runtime.watchdog_minutes)

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        label = f"{self.stage.name} fold {self.fold} epoch {self.position.epoch + 1}/{self.stage.epochs}"
        steps = self.plan.steps(self.position.epoch)
        self.monitor.start_epoch(label, steps, self.position.step)
        self.learner.start_epoch(self.position.epoch)
        self.started, self.waited, self.first_step = time.perf_counter(), 0.0, self.position.step
        while self.position.step < steps:
            rows: list[int] = []
            step = self.learner.step(
                self._micro_batches(batches, rows), self.plan.accumulation, self.position.total, self._seed
            )
            self.position.step += 1
            self.position.total += 1
            self._note(step, rows)
            request = self.stop.poll(self._wants_save())
            if request is Request.STOP:
                self._stop()
            every = self.stage.save_every
            if self.position.step < steps and (request is Request.SAVE or (every and self.position.total % every == 0)):
                self._save()
            self.watchdog.beat(self.position.total)
        self.watchdog.pause()

    def _micro_batches(self, batches: Iterator[Batch], rows: list[int]) -> Iterator[Batch]:
        """Yield the micro-batches of one step; measure the wait for them and note their films."""
        for _ in range(self.plan.accumulation):
            waiting = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - waiting
            rows += batch.indices.tolist()
            yield batch

    def _note(self, step: Step, rows: list[int]) -> None:
        """Log a step, and count the bad ones in a row; all ranks saw the same gradient and agree on them."""
        terms = dict(zip(self.learner.terms, step.losses, strict=True))
        scalars = {**terms, "lr": step.lr, "grad_norm": step.grad_norm, "scale": self.learner.scaler.get_scale()}
        self.monitor.step(self.position.total, scalars)
        if not step.is_bad and not step.overflowed:
            self.sums += [*step.losses, step.overlap, step.pixels, 1.0]
        self.bad_steps = self.bad_steps + 1 if step.is_bad else 0
        if not step.is_bad:
            return
        films = np.concatenate(self.ranks.gather_array(np.array(rows, np.int64)))
        keys = self.shards.column("key")[films].tolist()
        self.monitor.bad_step(self.stage.name, self.position.epoch, self.position.total, keys)
        if self.bad_steps >= self.stage.optim.max_bad_steps:
            raise InputError(
                f"stage {self.stage.name}: {self.bad_steps} steps in a row had a non-finite gradient, the last with "
                f"the films {', '.join(keys)}; lower optim.lr or set amp: float32"
            )

    def _validate(self, loader: Any) -> Validation:
        self.epoch_seconds = time.perf_counter() - self.started
        self.learner.share_buffers()
        films = self.split.validation
        positive = films[self.shards.column("has_mask")[films].astype(bool)]
        rounds = math.ceil(math.ceil(len(films) / self.stage.eval_batch) / self.ranks.world)
        result = validate(
            self.learner.evaluated,
            loader,
            self.shards,
            self.ranks,
            self.learner.amp,
            self.stage.loss,
            frozenset(positive[:OVERLAYS].tolist()),
            rounds,
            stopping=lambda: self.stop.poll() is Request.STOP,
        )
        if result is None:
            self._stop()
        assert result is not None
        return result

    def _end_epoch(self, result: Validation) -> None:
        record = {
            "stage": self.stage.name,
            "epoch": self.position.epoch,
            "step": self.position.total,
            **self._training_means(),
            "validation_loss": result.loss,
            "score": result.best.dice,
            "positive_dice": result.best.positive_dice,
            "dice_at_half": result.plain.dice,
            "always_empty": result.best.always_empty,
            "top": result.triplet.top,
            "area": result.triplet.area,
            "bottom": result.triplet.bottom,
            "lr": float(self.learner.optimizer.param_groups[0]["lr"]),
            "sample_rate": self.plan.effective_rate(self.position.epoch),
        }
        self.monitor.epoch(self.position.total, {**record, **self._speed()}, result)
        self.history.append(record)
        self.learner.end_epoch(result.best.dice, result.loss)
        self.sums[:] = 0
        self.position.epoch, self.position.step = self.position.epoch + 1, 0
        best = top_steps(self.history, 1)[0]
        stale = sum(entry["step"] > best for entry in self.history)
        patience = self.stage.early_stop
        is_last = self.position.epoch == self.stage.epochs
        self.position.finished = is_last or (patience is not None and stale >= patience)
        self._save()

    def _training_means(self) -> dict[str, float]:
        *losses, overlap, pixels, count = self.ranks.sum(self.sums).tolist()
        means = {name: value / max(count, 1.0) for name, value in zip(self.learner.terms, losses, strict=True)}
        return {**means, "training_dice": 2 * overlap / pixels if pixels else 1.0}

    def _speed(self) -> dict[str, float]:
        films = (self.position.step - self.first_step) * self.stage.global_batch
        memory = np.array([peak_memory_mb(), self.ranks.gpu_memory_mb()])
        host, gpu = np.max(self.ranks.gather_array(memory), axis=0).tolist()
        return {
            "images_per_s": films / self.epoch_seconds,
            "data_wait_share": self.waited / self.epoch_seconds,
            "peak_memory_mb": host,
            **({"peak_gpu_memory_mb": gpu} if gpu else {}),
        }

    def _settings(self) -> dict[str, str | float | bool]:
        """Return what tells this stage from others in TensorBoard's table of runs."""
        stage, model = self.stage, self.experiment.model
        return {
            "arch": model.arch,
            "encoder": model.encoder,
            "image_size": stage.image_size,
            "global_batch": stage.global_batch,
            "lr": stage.optim.lr,
            "schedule": stage.schedule.name,
            "sample_rate": stage.sample_rate or 0.0,
            "fold": self.fold,
        }

    def _wants_save(self) -> bool:
        """Rank 0's clock decides; the others hear of it with the next poll."""
        return self.ranks.is_main and time.monotonic() - self.saved_at > self.stage.save_minutes * 60.0

    def _save(self) -> None:
        self.learner.share_buffers()
        self.saved_at = time.monotonic()
        sums = self.ranks.sum(self.sums)
        if not self.ranks.is_main:
            return
        history = list(self.history)
        state = {
            "version": __version__,
            "experiment": self.experiment.model_dump(mode="json"),
            "stage": self.stage.name,
            "fold": self.fold,
            "world": self.ranks.world,
            "lineage": self.lineage.to_plain(),
            "position": dict(vars(self.position)),
            "history": history,
            "sums": sums.tolist(),
            "metrics_bytes": self.monitor.position,
            **self.learner.state(),
        }
        self.writer.save(self.position.total, state, after=lambda: self._tidy(history))

    def _tidy(self, history: list[dict[str, Any]]) -> None:
        """Bring what follows from the history up to date: kept files, links, summary.csv."""
        if self.ranks.is_main:
            keep_only(self.checkpoints, top_steps(history, self.stage.top_k))
            write_summary(self.folder, history)

    def _finish_saving(self) -> None:
        """Wait for the last checkpoint, without which the stage is not done. Raises OSError where it is not written."""
        error = self.writer.wait()
        if error is not None:
            raise error

    def _stop(self) -> None:
        self._save()
        self._finish_saving()
        if self.ranks.is_main:
            write_marker(self.fold_folder, self.stage.name, self.position.total)
        raise Preempted

    def _seed(self, micro: int) -> None:
        words = (self.experiment.seed, self.fold, self.stage.name, self.position.total, micro, self.ranks.rank)
        torch.manual_seed(zlib.crc32(repr(words).encode()))
