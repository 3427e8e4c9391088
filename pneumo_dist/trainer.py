"""The training loop: one fold of an experiment, stage by stage, exactly resumable.

A run's whole position is (stage, epoch, step): order, augmentation and torch's random numbers are functions of it.
"""

import math
import time
import zlib
from collections.abc import Iterator
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.parallel import DistributedDataParallel

from pneumo_dist import __version__
from pneumo_dist.checkpoint import (
    keep_only,
    load_checkpoint,
    newest_good,
    remove_stale_temporaries,
    save_checkpoint,
    top_files,
    top_steps,
)
from pneumo_dist.config import Experiment, StageConfig
from pneumo_dist.data.dali import Batch, Input, eval_loader, train_batches
from pneumo_dist.data.plan import EpochPlan, split_fold
from pneumo_dist.distributed import Ranks, peak_memory_mb, wrap_ddp
from pneumo_dist.lineage import Lineage, check_same_run, stage_lineage
from pneumo_dist.losses import combo_loss
from pneumo_dist.models import build_model
from pneumo_dist.monitor import Monitor, write_summary
from pneumo_dist.optim import make_optimizer, make_schedule, step_schedule
from pneumo_dist.precision import autocast, resolve_amp
from pneumo_dist.preemption import Preempted, StopAgreement, write_marker
from pneumo_dist.validation import Validation, validate
from shards.errors import InputError
from shards.files import atomic_write
from shards.table import Shards

TERMS = ("loss", "bce", "dice", "focal")
OVERLAYS = 4


@dataclass
class Position:
    """Where a stage stands: `step` optimizer steps of `epoch` are done; `total` counts them over the stage."""

    epoch: int = 0
    step: int = 0
    total: int = 0
    finished: bool = False


def train_fold(experiment: Experiment, fold: int, shards: Shards, folder: Path, ranks: Ranks, resolved: str) -> None:
    """Train the stages of one fold in `folder`, each from the best checkpoint of the one before.

    `resolved` is the text of config.yaml, written once the first stage has accepted the config. A finished stage is
    skipped, an unfinished one resumed. Raises Preempted once a signal's checkpoint is written.
    """
    stop = StopAgreement(ranks)
    try:
        lineage: Lineage | None = None
        for number, stage in enumerate(experiment.stages):
            lineage = stage_lineage(experiment, stage, fold, shards, lineage)
            previous = folder / experiment.stages[number - 1].name / "checkpoints" if number else None
            run = StageRun(experiment, stage, fold, shards, folder, ranks, stop, lineage, previous)
            state = run.find_state()
            if ranks.is_main and number == 0:
                atomic_write(folder / "config.yaml", resolved)
            run.train(state)
    finally:
        stop.close()


class StageRun:
    """One stage of one fold on one rank."""

    def __init__(
        self,
        experiment: Experiment,
        stage: StageConfig,
        fold: int,
        shards: Shards,
        folder: Path,
        ranks: Ranks,
        stop: StopAgreement,
        lineage: Lineage,
        previous: Path | None,
    ) -> None:
        self.experiment, self.stage, self.fold, self.shards = experiment, stage, fold, shards
        self.fold_folder, self.folder, self.ranks, self.stop = folder, folder / stage.name, ranks, stop
        self.lineage, self.previous = lineage, previous
        self.checkpoints = self.folder / "checkpoints"
        self.split = split_fold(shards, fold, stage.always_train)
        self.plan = EpochPlan(self.split, stage, experiment.seed, ranks.world)
        self.steps, self.accumulation = self.plan.steps, self.plan.accumulation
        self.input = Input(stage.image_size, experiment.model.in_channels, experiment.data, ranks.device_id)
        self.position = Position()
        self.history: list[dict[str, Any]] = []
        self.sums = np.zeros(len(TERMS) + 1)
        self.bad_steps = 0

    def train(self, state: dict[str, Any] | None) -> None:
        """Train to the end of the stage, from the state of its newest checkpoint if it has one."""
        if state is not None:
            self.position, self.history = Position(**state["position"]), state["history"]
            # A run killed right after its save has left this undone.
            self._tidy()
        if self.position.finished:
            return
        self._prepare(state)
        try:
            source = self.shards, self.plan, self.stage.augment, self.input, self.ranks.rank
            batches = train_batches(*source, self.position.epoch, self.position.step)
            films, ranks = self.split.validation, self.ranks
            evaluation = eval_loader(
                self.shards, films, self.stage, self.input, ranks.rank, ranks.world, with_mask=True
            )
            while not self.position.finished:
                self._train_epoch(batches)
                self._end_epoch(self._validate(evaluation))
        finally:
            self.monitor.close()

    def _prepare(self, state: dict[str, Any] | None) -> None:
        """Make the network, what trains it and the logs; restore them from a checkpoint or the stage before."""
        ranks, model_config = self.ranks, self.experiment.model
        self.amp = state["amp"] if state else resolve_amp(self.experiment.amp, ranks.device)
        torch.manual_seed(self.experiment.seed)
        # A checkpoint replaces fetched weights, and the other ranks receive rank 0's through DDP.
        fresh = state is None and self.previous is None
        model = build_model(model_config, pretrained=fresh and ranks.is_main)
        if state is None and self.previous is not None:
            chosen = str(top_files(self.previous, 1)[0].path) if ranks.is_main else None
            model.load_state_dict(load_checkpoint(Path(ranks.broadcast_json(chosen)))["model"])
        self.model = model.to(ranks.device)
        self.optimizer = make_optimizer(self.model.parameters(), self.stage.optim)
        self.schedule = make_schedule(self.optimizer, self.stage)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=self.amp == "fp16")
        logged = self._restore(state) if state is not None else 0
        size = self.stage.image_size
        example = torch.zeros(self.stage.micro_batch, model_config.in_channels, size, size, device=ranks.device)
        self.network = wrap_ddp(self.model, ranks, example, self.amp)
        self.monitor = Monitor(self.folder, ranks.is_main, logged, self.position.total, state is None)

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        label = f"{self.stage.name} fold {self.fold} epoch {self.position.epoch + 1}/{self.stage.epochs}"
        self.monitor.start_epoch(label, self.steps, self.position.step)
        self.model.train()
        self.started, self.waited, self.first_step = time.perf_counter(), 0.0, self.position.step
        while self.position.step < self.steps:
            losses, norm = self._optimizer_step(batches)
            self.position.step += 1
            self.position.total += 1
            self.sums += [*losses, 1.0]
            lr = self.optimizer.param_groups[0]["lr"]
            self.monitor.step(
                self.position.total, {**dict(zip(TERMS, losses, strict=True)), "lr": lr, "grad_norm": norm}
            )
            if self.stop.poll():
                self._stop()
            if self.position.step < self.steps and self.position.total % self.stage.save_every == 0:
                self._save()

    def _optimizer_step(self, batches: Iterator[Batch]) -> tuple[list[float], float]:
        sums = torch.zeros(len(TERMS))
        buffers = [buffer.clone() for buffer in self.model.buffers()]
        for micro in range(self.accumulation):
            waiting = time.perf_counter()
            batch = next(batches)
            self.waited += time.perf_counter() - waiting
            self._seed(micro)
            last = micro + 1 == self.accumulation
            with (
                self.network.no_sync()
                if isinstance(self.network, DistributedDataParallel) and not last
                else nullcontext()
            ):
                with autocast(self.amp, self.ranks.device):
                    logits = self.network(batch.images.to(self.ranks.device, non_blocking=True))
                terms = combo_loss(logits, batch.masks.to(self.ranks.device, non_blocking=True), self.stage.loss)
                torch.autograd.backward(self.scaler.scale(terms["loss"] / self.accumulation))
            sums += torch.stack([terms[name].detach() for name in TERMS]).cpu() / self.accumulation
        self.scaler.unscale_(self.optimizer)
        limit = self.stage.optim.clip_norm or math.inf
        norm = float(torch.nn.utils.clip_grad_norm_(self.model.parameters(), limit))
        self._count_bad(math.isfinite(norm), buffers)
        if math.isfinite(norm) or self.scaler.is_enabled():
            self.scaler.step(self.optimizer)
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return sums.tolist(), norm

    def _count_bad(self, finite: bool, buffers: list[torch.Tensor]) -> None:
        """One non-finite batch would leave batch norm's running statistics non-finite for good."""
        if finite:
            self.bad_steps = 0
            return
        with torch.no_grad():
            for buffer, before in zip(self.model.buffers(), buffers, strict=True):
                buffer.copy_(before)
        self.bad_steps += 1
        if self.bad_steps >= self.stage.optim.max_bad_steps:
            raise InputError(
                f"stage {self.stage.name}: {self.bad_steps} steps in a row had a non-finite gradient; lower optim.lr "
                "or set amp: float32"
            )

    def _validate(self, loader: Any) -> Validation:
        self.epoch_seconds = time.perf_counter() - self.started
        self.ranks.broadcast_buffers(self.model)
        films = self.split.validation
        positive = films[self.shards.column("has_mask")[films].astype(bool)]
        rounds = math.ceil(math.ceil(len(films) / self.stage.eval_batch) / self.ranks.world)
        shown = frozenset(positive[:OVERLAYS].tolist())
        result = validate(
            self.model, loader, self.shards, self.ranks, self.amp, self.stage.loss, shown, rounds, self.stop.poll
        )
        if result is None:
            self._stop()
        assert result is not None
        return result

    def _end_epoch(self, result: Validation) -> None:
        *losses, count = self.ranks.sum(self.sums)
        films = (self.position.step - self.first_step) * self.stage.global_batch
        record = {
            "stage": self.stage.name,
            "epoch": self.position.epoch,
            "step": self.position.total,
            **{name: float(value / count) for name, value in zip(TERMS, losses, strict=True)},
            "validation_loss": result.loss,
            "score": result.best.dice,
            "positive_dice": result.best.positive_dice,
            "dice_at_half": result.plain.dice,
            "always_empty": result.best.always_empty,
            "top": result.triplet.top,
            "area": result.triplet.area,
            "bottom": result.triplet.bottom,
            "lr": float(self.optimizer.param_groups[0]["lr"]),
        }
        speed = {
            "images_per_s": films / self.epoch_seconds,
            "data_wait_share": self.waited / self.epoch_seconds,
            "peak_memory_mb": max(float(p[0]) for p in self.ranks.gather_array(np.array([peak_memory_mb()]))),
        }
        self.history.append(record)
        step_schedule(self.schedule, result.best.dice)
        self.monitor.epoch(self.position.total, {**record, **speed}, result.overlays, result.triplet.bottom)
        self.position.epoch, self.position.step = self.position.epoch + 1, 0
        self.sums[:] = 0
        best = top_steps(self.history, 1)[0]
        stale = sum(entry["step"] > best for entry in self.history)
        patience = self.stage.early_stop
        self.position.finished = self.position.epoch == self.stage.epochs or (
            patience is not None and stale >= patience
        )
        self._save()
        self._tidy()

    def _tidy(self) -> None:
        """Bring what follows from the history up to date: kept files, links, summary.csv."""
        if self.ranks.is_main:
            keep_only(self.checkpoints, top_steps(self.history, self.stage.top_k))
            write_summary(self.folder, self.history)

    def _stop(self) -> None:
        self._save()
        if self.ranks.is_main:
            write_marker(self.fold_folder, self.stage.name, self.position.total)
        raise Preempted

    def _save(self) -> None:
        self.ranks.broadcast_buffers(self.model)
        sums = self.ranks.sum(self.sums)
        if not self.ranks.is_main:
            return
        state = {
            "version": __version__,
            "experiment": self.experiment.model_dump(mode="json"),
            "stage": self.stage.name,
            "fold": self.fold,
            "world": self.ranks.world,
            "amp": self.amp,
            "lineage": self.lineage.to_plain(),
            "position": vars(self.position),
            "history": self.history,
            "sums": sums.tolist(),
            "metrics_bytes": self.monitor.position,
            "model": self.model.state_dict(),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }
        save_checkpoint(self.checkpoints, self.position.total, state)

    def find_state(self) -> dict[str, Any] | None:
        """Return the state to go on from, the same on every rank, or None for a new stage.

        Raises InputError where this config or these films cannot go on from it.
        """
        if self.ranks.is_main:
            self.checkpoints.mkdir(parents=True, exist_ok=True)
            remove_stale_temporaries(self.checkpoints)
            newest = newest_good(self.checkpoints)
            name = str(newest.path) if newest else None
        else:
            name = None
        name = self.ranks.broadcast_json(name)
        if name is None:
            return None
        state = load_checkpoint(Path(name))
        check_same_run(state, Path(name), self.experiment, self.stage, self.lineage)
        return state

    def _restore(self, state: dict[str, Any]) -> int:
        self.model.load_state_dict(state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
        if self.ranks.is_main:
            self.sums = np.array(state["sums"])
        return int(state["metrics_bytes"])

    def _seed(self, micro: int) -> None:
        words = (self.experiment.seed, self.fold, self.stage.name, self.position.total, micro, self.ranks.rank)
        torch.manual_seed(zlib.crc32(repr(words).encode()))
