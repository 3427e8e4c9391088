"""Training of one stage on one rank, exactly resumable.

The position of a run is (stage, epoch, step). Order, augmentation and torch's random numbers are functions of it.
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import islice

import numpy as np
import torch

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.loader import EvalLoader, eval_loader, train_batches
from pneumo_dist.data.plan import EpochPlan, Indices, split_fold
from pneumo_dist.network.batch_norm import recompute_statistics
from pneumo_dist.network.build import build_model
from pneumo_dist.network.fit import check_weights
from pneumo_dist.network.sync_batch_norm import norm_statistics
from pneumo_dist.network.weights import load_network_file
from pneumo_dist.ranks.precision import resolve_amp
from pneumo_dist.ranks.stop import Preempted, StopRequested, write_marker
from pneumo_dist.ranks.watchdog import FIRST_BATCH, START, TRAINING
from pneumo_dist.runs.checkpoint import State
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.repetitions import best_score
from pneumo_dist.runs.soft_labels import soft_labels
from pneumo_dist.train.class_validation import ClassValidation, validate_classes
from pneumo_dist.train.epoch_log import EpochLog
from pneumo_dist.train.monitor import BOARD, Monitor, charts, settings
from pneumo_dist.train.profiling import TRACE, StepTrace
from pneumo_dist.train.restore import check_position
from pneumo_dist.train.saver import Saver, tidy
from pneumo_dist.train.services import Services
from pneumo_dist.train.start import Position, Start, is_finished
from pneumo_dist.train.step import Learner, Step
from pneumo_dist.train.validation import Validation, ValidationFilms, validate
from shards import console
from shards.errors import InputError

OVERLAYS = 4


class Diverged(InputError):
    """Too many steps in a row had a non-finite gradient."""


def train_stage(run: FoldRun, services: Services, stage: StageConfig, start: Start) -> Sequence[State]:
    """Train a stage to its end and return its history, one record per validated epoch.

    Raises:
        Preempted: A signal stopped the run, or it ended early, and its checkpoint is written.
        OSError: The last checkpoint could not be written.
    """
    if start.state is not None:
        # A run that was killed right after a save has not done this.
        tidy(run, stage, start.state["history"])
    if start.state is not None and start.is_finished:
        position = start.state["position"]
        # Like a run that has just trained its last epoch.
        services.heartbeat.note(stage.name, position["epoch"] - 1, stage.epochs, position["total"])
        return list(start.state["history"])
    return StageRun(run, services, stage, start).train()


class StageRun:
    """One stage of a fold in training on one rank."""

    def __init__(self, run: FoldRun, services: Services, stage: StageConfig, start: Start) -> None:
        self.run, self.services, self.stage = run, services, stage
        self.split = split_fold(run.shards, run.fold, stage.always_train)
        self.plan = EpochPlan(self.split, stage, run.experiment.seed, run.ranks.world)
        self.position = Position(**start.state["position"]) if start.state else Position()
        self.history: list[State] = start.state["history"] if start.state else []
        self.to_beat = start.to_beat
        self._tell()
        if start.state is not None and run.ranks.is_main:
            console.say(f"{stage.name} resumes after step {self.position.total}")
        run.ranks.beat(START)
        self.learner = self._learner(start)
        norms = norm_statistics(self.learner.model, stage.micro_batch, run.ranks.world)
        if norms is not None and not stage.freeze_batch_norm and run.ranks.is_main:
            console.say(f"{stage.name}: batch norm takes its statistics over {norms}")
        self.is_classifier = run.experiment.model.is_classifier
        agreement = "training_f1" if self.is_classifier else "training_dice"
        self.log = EpochLog(self.learner.terms, stage.global_batch, run.ranks, agreement)
        state = start.map_state()
        if state is not None:
            check_position(state, self.plan, stage, run.checkpoints(stage.name))
            self.learner.restore(state, run.checkpoints(stage.name))
            self.log.restore(state["sums"])
        folder, is_new = run.folder / stage.name, start.state is None
        self.monitor = Monitor(folder, run.ranks.is_main, self.position.total, len(self.history), is_new)
        if is_new:
            self.monitor.describe(
                run.experiment.model_dump_json(indent=1),
                settings(run.experiment, stage, run.fold),
                charts(self.is_classifier),
            )
        self.saver = Saver(run, stage, start.lineage)
        self.trace = StepTrace(folder / BOARD / TRACE if services.profile and run.ranks.is_main else None)

    def _learner(self, start: Start) -> Learner:
        """Return the network and its optimizer before the first step, with the weights of the stage before if any."""
        experiment, ranks = self.run.experiment, self.run.ranks
        torch.manual_seed(experiment.seed)
        # A checkpoint replaces pretrained weights, and the other ranks receive those of rank 0 through DDP.
        reads_weights = start.checkpoint is None and ranks.is_main
        has_file = experiment.init is not None and experiment.init.file is not None
        model = build_model(experiment.model, pretrained=reads_weights and not has_file)
        if reads_weights and has_file:
            load_network_file(model, experiment)
        weights = start.map_weights()
        if weights is not None:
            check_weights(weights, model, self.stage.name)
            model.load_state_dict(weights)
        amp = start.state["amp"] if start.state else resolve_amp(experiment.amp, ranks.device)
        return Learner(experiment, self.stage, ranks, amp, model, self._ramp_steps())

    def _ramp_steps(self) -> int:
        """Return the number of steps over which the weight of a mean teacher rises."""
        unlabelled = self.stage.unlabelled
        if unlabelled is None or unlabelled.mean_teacher is None:
            return 0
        epochs = min(unlabelled.mean_teacher.ramp_up_epochs, self.stage.epochs)
        return sum(map(self.plan.steps, range(epochs)))

    def train(self) -> Sequence[State]:
        """Train to the end of the stage and return its history. Raises like `train_stage`."""
        try:
            self._train_epochs()
            self.saver.finish()
            self.monitor.outcome()
        except StopRequested:
            self._save()
            self.saver.finish()
            if self.run.ranks.is_main:
                write_marker(self.run.folder, self.stage.name, self.position.total)
            raise Preempted from None
        finally:
            self.saver.wait()
            self.monitor.close()
        return self.history

    def _train_epochs(self) -> None:
        ranks = self.run.ranks
        experiment = self.run.experiment
        input_spec = InputSpec(self.stage.image_size, experiment.model.in_channels, experiment.data, ranks.device_id)
        whole = replace(input_spec, size=self.stage.film_size)
        start = (ranks.rank, self.position.epoch, self.position.step)
        maps = soft_labels(self.run, self.stage, self.split)
        batches = self.log.timed(train_batches(self.run.shards, self.plan, input_spec, *start, maps))
        training = self._films(self.split.train, whole, with_mask=False)
        validation = self._validation_films(self._films(self.split.validation, whole, with_mask=True))
        ranks.beat(FIRST_BATCH)
        while not self.position.finished:
            self._end_early()
            self._train_epoch(batches)
            self._average_weights(training)
            self._end_epoch(self._validate(validation))

    def _end_early(self) -> None:
        """Raise StopRequested between two epochs, whose checkpoint is written, if the stage shall not go on."""
        is_between = bool(self.history) and self.position.step == 0
        if is_between and self.services.ends_early(self.stage.name, self.history):
            raise StopRequested

    def _films(self, rows: Indices, input_spec: InputSpec, with_mask: bool) -> EvalLoader:
        """Return this rank's share of films, without augmentation, each once per pass."""
        ranks = self.run.ranks
        return eval_loader(self.run.shards, rows, self.stage, input_spec, ranks.rank, ranks.world, with_mask)

    def _validation_films(self, loader: EvalLoader) -> ValidationFilms:
        shards, films = self.run.shards, self.split.validation
        positive = films[shards.column("has_mask")[films].astype(bool)]
        rounds = math.ceil(math.ceil(len(films) / self.stage.eval_batch) / self.run.ranks.world)
        return ValidationFilms(shards, loader, rounds, frozenset(positive[:OVERLAYS].tolist()))

    def _train_epoch(self, batches: Iterator[Batch]) -> None:
        label = f"{self.stage.name} fold {self.run.fold} epoch {self.position.epoch + 1}/{self.stage.epochs}"
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
            wants_save = self.services.stop.check(self.saver.is_due())
            every = self.stage.save_every
            if self.position.step < steps and (wants_save or (every and self.position.total % every == 0)):
                self._save()
            self.trace.step()
            self.run.ranks.beat(TRAINING, self.position.total)
            self._tell()
        self.trace.stop()
        self.log.stop()

    def _tell(self) -> None:
        self.services.heartbeat.note(self.stage.name, self.position.epoch, self.stage.epochs, self.position.total)

    def _note(self, step: Step) -> None:
        """Log a step and count bad ones in a row. All ranks saw the same gradient, so they agree on them."""
        terms = dict(zip(self.learner.terms, step.losses, strict=True))
        scalars = {**terms, "lr": step.lr, "grad_norm": step.grad_norm, "scale": step.scale}
        self.monitor.step(self.position.total, scalars)
        self.log.add(step)
        self.position.bad_steps = self.position.bad_steps + 1 if step.is_bad else 0
        if not step.is_bad:
            return
        films = np.concatenate(self.run.ranks.gather_array(np.array(step.films, np.int64)))
        keys = self.run.shards.texts(films, "key")
        self.monitor.bad_step(self.stage.name, self.position.epoch, self.position.total, keys)
        if self.position.bad_steps >= self.stage.optim.max_bad_steps:
            raise Diverged(
                f"stage {self.stage.name}: {self.position.bad_steps} steps in a row had a non-finite gradient, the "
                f"last with the films {', '.join(keys)}; train under another name with a lower optim.lr or amp: float32"
            )

    def _average_weights(self, films: EvalLoader) -> None:
        """Update the mean of the weights in the epochs that are averaged, and recompute its batch-norm statistics."""
        if self.learner.average_epoch(self.position.epoch) and not self.stage.freeze_batch_norm:
            model, amp = self.learner.evaluated, self.learner.amp
            recompute_statistics(model, films, self.run.ranks, amp, self.services.stop.check)

    def _validate(self, films: ValidationFilms) -> Validation | ClassValidation:
        self.learner.share_buffers()
        model, amp = self.learner.evaluated, self.learner.amp
        score = validate_classes if self.is_classifier else validate
        return score(model, films, self.stage.loss, self.run.ranks, amp, self.services.stop.check)

    def _end_epoch(self, result: Validation | ClassValidation) -> None:
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
        self.history.append(record)
        self.monitor.epoch(self.position.total, {**record, **self.log.speed()}, result, best_score(self.history))
        self.learner.end_epoch(result.score, result.loss)
        self.log.clear()
        self.position.epoch, self.position.step = self.position.epoch + 1, 0
        self.position.finished = is_finished(self.stage, self.position.epoch, self.history, self.to_beat)
        self._save()
        self.run.ranks.beat(TRAINING)

    def _save(self) -> None:
        self.saver.save(self.position, self.history, self.learner, self.log, self.monitor)

    def _seed(self, micro_step: int) -> None:
        run = self.run
        words = (run.experiment.seed, run.fold, self.stage.name, self.position.total, micro_step, run.ranks.rank)
        torch.manual_seed(zlib.crc32(repr(words).encode()))
