"""The training loop: one fold of an experiment, stage by stage, exactly resumable.

A run's whole position is (stage, epoch, step): order, augmentation and torch's random numbers are functions of it.
"""

import math
import time
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from pneumo_dist import __version__
from pneumo_dist.config.experiment import Experiment, StageConfig
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.loader import EvalLoader, eval_loader, train_batches
from pneumo_dist.data.plan import EpochPlan, Indices, split_fold
from pneumo_dist.network.batch_norm import recompute_statistics
from pneumo_dist.network.build import build_model
from pneumo_dist.network.fit import check_weights
from pneumo_dist.ranks.precision import resolve_amp
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import Preempted, Request, StopAgreement, write_marker
from pneumo_dist.ranks.watchdog import FIRST_BATCH, SAVE, START, TRAINING
from pneumo_dist.runs.checkpoint import CheckpointWriter, keep_only, top_steps
from pneumo_dist.runs.heartbeat import Heartbeat
from pneumo_dist.runs.lineage import Lineage
from pneumo_dist.runs.logs import write_summary
from pneumo_dist.runs.repetitions import best_score
from pneumo_dist.source import source_digest
from pneumo_dist.train.epoch_log import EpochLog
from pneumo_dist.train.monitor import BOARD, Monitor, settings
from pneumo_dist.train.profiling import TRACE, StepTrace
from pneumo_dist.train.restore import check_place
from pneumo_dist.train.step import Learner, Step
from pneumo_dist.train.validation import Validation, validate
from shards import console
from shards.dataset.table import Shards
from shards.errors import InputError

OVERLAYS = 4


@dataclass
class Position:
    """Where a stage stands: `step` optimizer steps of `epoch` are done; `total` counts them over the stage.

    The last `bad_steps` of them were skipped, one after the other.
    """

    epoch: int = 0
    step: int = 0
    total: int = 0
    finished: bool = False
    bad_steps: int = 0


@dataclass(frozen=True)
class Start:
    """Where a stage starts: the checkpoint that it goes on from, or the weights of another, or neither.

    `recorded` are its settings where it has been finished before.
    """

    state: dict[str, Any] | None
    weights: dict[str, Any] | None
    lineage: Lineage
    recorded: StageConfig | None = None

    @property
    def is_over(self) -> bool:
        """Whether no epoch is left to train."""
        return self.state is not None and bool(self.state["position"]["finished"])


def is_over(stage: StageConfig, epoch: int, history: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a stage ends before this epoch, counted from 0: at its number of epochs, or by early_stop."""
    if epoch >= stage.epochs:
        return True
    if stage.early_stop is None or not history:
        return False
    best = top_steps(history, 1)[0]
    stale = sum(1 for entry in history if entry["step"] > best)
    return stale >= stage.early_stop


def on_present_terms(state: dict[str, Any], stage: StageConfig) -> dict[str, Any]:
    """Return a checkpoint's state, finished exactly where the stage's present epochs and early_stop end it."""
    position = state["position"]
    finished = is_over(stage, position["epoch"], state["history"])
    return {**state, "position": {**position, "finished": finished}}


class StageRun:
    """One stage of one fold on one rank; its name and folder are the stage's. `profile` traces a few of its steps."""

    def __init__(
        self,
        experiment: Experiment,
        stage: StageConfig,
        fold: int,
        shards: Shards,
        folder: Path,
        ranks: Ranks,
        stop: StopAgreement,
        heartbeat: Heartbeat,
        start: Start,
        profile: bool = False,
    ) -> None:
        self.experiment, self.stage, self.fold, self.shards = experiment, stage, fold, shards
        self.fold_folder, self.folder, self.ranks, self.stop = folder, folder / stage.name, ranks, stop
        self.heartbeat = heartbeat
        self.checkpoints = self.folder / "checkpoints"
        self.start, self.lineage = start, start.lineage
        self.split = split_fold(shards, fold, stage.always_train)
        self.plan = EpochPlan(self.split, stage, experiment.seed, ranks.world)
        self.input = InputSpec(stage.image_size, experiment.model.in_channels, experiment.data, ranks.device_id)
        self.position = Position()
        self.history: list[dict[str, Any]] = []
        self.trace = StepTrace(self.folder / BOARD / TRACE if profile and ranks.is_main else None)

    def train(self) -> list[dict[str, Any]]:
        """Train to the end of the stage, from its newest checkpoint if it has one; return its validated epochs."""
        if self.start.state is not None:
            self.position, self.history = Position(**self.start.state["position"]), self.start.state["history"]
            # A run killed right after its save has left this undone.
            self._tidy(self.history)
        self._tell()
        if self.position.finished:
            return self.history
        if self.start.state is not None and self.ranks.is_main:
            console.say(f"{self.stage.name} goes on after step {self.position.total}")
        self._prepare()
        try:
            place = (self.ranks.rank, self.position.epoch, self.position.step)
            batches = self.log.timed(train_batches(self.shards, self.plan, self.input, *place))
            training = self._each_film(self.split.train, with_mask=False)
            validation = self._each_film(self.split.validation, with_mask=True)
            self.ranks.beat(FIRST_BATCH)
            while not self.position.finished:
                self._train_epoch(batches)
                self._average_weights(training)
                self._end_epoch(self._validate(validation))
            self._finish_saving()
            self.monitor.outcome(settings(self.experiment, self.stage, self.fold), best_score(self.history))
        finally:
            self.writer.wait()
            self.monitor.close()
        return self.history

    def _prepare(self) -> None:
        """Make the network, what trains it and the logs; restore them from a checkpoint or the stage before."""
        state, ranks, experiment = self.start.state, self.ranks, self.experiment
        ranks.beat(START)
        amp = state["amp"] if state else resolve_amp(experiment.amp, ranks.device)
        torch.manual_seed(experiment.seed)
        # A checkpoint replaces fetched weights, and the other ranks receive rank 0's through DDP.
        is_fresh = state is None and self.start.weights is None
        model = build_model(experiment.model, pretrained=is_fresh and ranks.is_main)
        if self.start.weights is not None:
            check_weights(self.start.weights, model, self.stage.name)
            model.load_state_dict(self.start.weights)
        self.learner = Learner(experiment, self.stage, ranks, amp, model)
        self.log = EpochLog(self.learner.terms, self.stage.global_batch, ranks)
        if state is not None:
            check_place(state, self.plan, self.stage, self.checkpoints)
            self.learner.restore(state, self.checkpoints)
            self.log.restore(state["sums"])
        self.monitor = Monitor(self.folder, ranks.is_main, self.position.total, len(self.history), state is None)
        if state is None:
            self.monitor.describe(experiment.model_dump_json(indent=1))
        self.writer = CheckpointWriter(self.checkpoints)
        self.saved_at = time.monotonic()

    def _each_film(self, films: Indices, with_mask: bool) -> EvalLoader:
        """Return this rank's share of films that are read as they are, each once a pass."""
        ranks = self.ranks
        return eval_loader(self.shards, films, self.stage, self.input, ranks.rank, ranks.world, with_mask)

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        label = f"{self.stage.name} fold {self.fold} epoch {self.position.epoch + 1}/{self.stage.epochs}"
        steps, accumulation = self.plan.steps(self.position.epoch), self.plan.accumulation
        self.monitor.start_epoch(label, steps, self.position.step)
        self.learner.start_epoch(self.position.epoch)
        self.log.start()
        self.trace.start()
        while self.position.step < steps:
            step = self.learner.step(islice(batches, accumulation), accumulation, self.position.total, self._seed)
            self.position.step += 1
            self.position.total += 1
            self._note(step)
            request = self.stop.poll(self._wants_save())
            if request is Request.STOP:
                self._stop()
            every = self.stage.save_every
            if self.position.step < steps and (request is Request.SAVE or (every and self.position.total % every == 0)):
                self._save()
            self.trace.step()
            self.ranks.beat(TRAINING, self.position.total)
            self._tell()
        self.trace.stop()
        self.log.stop()

    def _tell(self) -> None:
        self.heartbeat.note(self.stage.name, self.position.epoch, self.stage.epochs, self.position.total)

    def _note(self, step: Step) -> None:
        """Log a step, and count the bad ones in a row; all ranks saw the same gradient and agree on them."""
        terms = dict(zip(self.learner.terms, step.losses, strict=True))
        scalars = {**terms, "lr": step.lr, "grad_norm": step.grad_norm, "scale": self.learner.scaler.get_scale()}
        self.monitor.step(self.position.total, scalars)
        self.log.add(step)
        self.position.bad_steps = self.position.bad_steps + 1 if step.is_bad else 0
        if not step.is_bad:
            return
        films = np.concatenate(self.ranks.gather_array(np.array(step.films, np.int64)))
        keys = self.shards.column("key")[films].tolist()
        self.monitor.bad_step(self.stage.name, self.position.epoch, self.position.total, keys)
        if self.position.bad_steps >= self.stage.optim.max_bad_steps:
            raise InputError(
                f"stage {self.stage.name}: {self.position.bad_steps} steps in a row had a non-finite gradient, the "
                f"last with the films {', '.join(keys)}; train under another name with a lower optim.lr or amp: float32"
            )

    def _average_weights(self, films: EvalLoader) -> None:
        """In the stage's last epochs, where it averages these: update the mean, and measure its statistics."""
        if not self.learner.average_epoch(self.position.epoch):
            return
        averaged, amp = self.learner.evaluated, self.learner.amp
        if not recompute_statistics(averaged, films, self.ranks, amp, self._is_stopping):
            self._stop()

    def _validate(self, loader: EvalLoader) -> Validation:
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
            self._is_stopping,
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
            **self.log.means(),
            **result.figures(),
            "lr": float(self.learner.optimizer.param_groups[0]["lr"]),
            "scale": self.learner.scaler.get_scale(),
            "sample_rate": self.plan.effective_rate(self.position.epoch),
        }
        self.monitor.epoch(self.position.total, {**record, **self.log.speed()}, result)
        self.history.append(record)
        self.learner.end_epoch(result.best.dice, result.loss)
        self.log.clear()
        self.position.epoch, self.position.step = self.position.epoch + 1, 0
        self.position.finished = is_over(self.stage, self.position.epoch, self.history)
        self._save()
        self.ranks.beat(TRAINING)

    def _is_stopping(self) -> bool:
        return self.stop.poll() is Request.STOP

    def _wants_save(self) -> bool:
        """Rank 0's clock decides; the others hear of it with the next poll."""
        return self.ranks.is_main and time.monotonic() - self.saved_at > self.stage.save_minutes * 60.0

    def _save(self) -> None:
        self.ranks.beat(SAVE)
        self.learner.share_buffers()
        self.saved_at = time.monotonic()
        sums = self.log.totals()
        if not self.ranks.is_main:
            return
        self.monitor.sync()
        history = list(self.history)
        state = {
            "version": __version__,
            "source": source_digest(),
            "experiment": self.experiment.model_dump(mode="json"),
            "stage": self.stage.name,
            "fold": self.fold,
            "world": self.ranks.world,
            "lineage": self.lineage.to_plain(),
            "position": dict(vars(self.position)),
            "history": history,
            "sums": sums,
            **self.learner.state(),
        }
        self.writer.save(self.position.total, state, after=lambda: self._tidy(history))

    def _tidy(self, history: list[dict[str, Any]]) -> None:
        """Bring what follows from history and log up to date: kept files, links, summary.csv."""
        if self.ranks.is_main:
            keep_only(self.checkpoints, top_steps(history, self.stage.top_k))
            write_summary(self.folder, len(history))

    def _finish_saving(self) -> None:
        """Wait for the last checkpoint, without which the stage is not done. Raises OSError where it is not written."""
        self.ranks.beat(SAVE)
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
