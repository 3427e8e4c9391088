"""A network in training: forward, backward and one optimizer step at a time."""

import math
from collections.abc import Callable, Iterable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm
from torch.optim.swa_utils import AveragedModel

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import Batch
from pneumo_dist.network.build import freeze_batch_norm, freeze_encoder, split_outputs
from pneumo_dist.network.losses import combo_loss, is_positive
from pneumo_dist.network.sync_batch_norm import synchronised
from pneumo_dist.network.tensors import load_weights
from pneumo_dist.ranks.buffers import KeptBuffers
from pneumo_dist.ranks.ddp import wrap_ddp
from pneumo_dist.ranks.precision import Resolved, autocast
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.optim import (
    MovingAverage,
    make_optimizer,
    make_schedule,
    restore_optimizer,
    step_if,
    step_schedule,
    warmed_up,
)
from pneumo_dist.train.restore import check_optimizer, check_settings
from pneumo_dist.train.soft_labels import SoftLoss, terms_of
from shards.errors import InputError

# At this scale an overflow means that a gradient is wrong, not that it is too large for fp16.
SMALLEST_SCALE = 1.0


@dataclass(frozen=True)
class Step:
    """Result of one optimizer step on this rank.

    Attributes:
        losses: Means over the micro-steps, in the order of `Learner.terms`.
        overlap: Number of pixels that are both predicted at 0.5 and labelled, in films with labels; of films for a
            classifier.
        pixels: Number of predicted pixels plus number of labelled pixels, in films with labels; of films for a
            classifier.
        grad_norm: Norm of the reduced gradient before clipping.
        lr: Learning rate of the first parameter group.
        scale: Scale of the loss after this step; 1 without fp16.
        films: Table rows of the films in this step.
        is_bad: Whether the step was skipped because the reduced gradient was not finite.
        overflowed: Whether the step was skipped because of fp16's range, which the scaler adapts to.
    """

    losses: tuple[float, ...]
    overlap: float
    pixels: float
    grad_norm: float
    lr: float
    scale: float
    films: tuple[int, ...]
    is_bad: bool = False
    overflowed: bool = False


def _outputs(logits: torch.Tensor | None, class_logits: torch.Tensor | None) -> torch.Tensor:
    outputs = class_logits if logits is None else logits
    assert outputs is not None, "a network without outputs"
    return outputs


class Learner:
    """A model in training on one rank.

    `ramp_steps` is the number of first steps over which the weight of a mean teacher rises.
    """

    def __init__(
        self,
        experiment: Experiment,
        stage: StageConfig,
        ranks: Ranks,
        amp: Resolved,
        model: torch.nn.Module,
        ramp_steps: int = 0,
    ) -> None:
        self._stage, self._ranks, self.amp = stage, ranks, amp
        self.terms = terms_of(stage)
        self._soft = SoftLoss(stage, ranks.world, amp, ramp_steps) if stage.has_soft_labels else None
        data = experiment.data
        self._memory_format = torch.channels_last if data.channels_last else torch.contiguous_format
        if experiment.model.sync_batch_norm and ranks.world > 1:
            model = synchronised(model)
        self.model = model.to(ranks.device).to(memory_format=self._memory_format)
        if experiment.runtime.compile:
            self.model.compile()  # unlike torch.compile(model), this keeps the names of the weights
        self.average = MovingAverage(self.model, stage.optim.ema_decay) if stage.optim.ema_decay else None
        self._swa = AveragedModel(self.model).requires_grad_(False) if stage.optim.swa_epochs else None
        is_fused = ranks.device.type == "cuda" if experiment.runtime.fused is None else experiment.runtime.fused
        self.optimizer = make_optimizer(self.model.parameters(), stage, is_fused)
        self.schedule = make_schedule(self.optimizer, stage)
        self.scaler = torch.amp.GradScaler(ranks.device.type, enabled=amp == "fp16")
        shape = (stage.micro_batch, experiment.model.in_channels, stage.image_size, stage.image_size)
        example = torch.zeros(shape, device=ranks.device)
        self._example = example.contiguous(memory_format=self._memory_format)
        self._buffers = KeptBuffers(self.model)
        self._one = torch.ones((), device=ranks.device)
        self._network: torch.nn.Module | None = None
        self._is_frozen = False

    @property
    def averaged(self) -> torch.nn.Module | None:
        """The model with averaged weights; None if the stage has no average, or none yet."""
        if self._swa is not None and self._swa.n_averaged > 0:
            return self._swa.module
        return self.average.model if self.average else None

    @property
    def evaluated(self) -> torch.nn.Module:
        """The model that is validated and saved for prediction: the averaged one if there is one."""
        averaged = self.averaged
        return self.model if averaged is None else averaged

    def start_epoch(self, epoch: int) -> None:
        """Set the training mode, and freeze or unfreeze the encoder."""
        self.model.train()
        if self.average is not None:
            self.average.model.eval()  # a mean teacher predicts like the validated model
        is_frozen = epoch < self._stage.freeze_encoder_epochs
        if is_frozen or self._is_frozen:
            freeze_encoder(self.model, is_frozen)
        if self._stage.freeze_batch_norm:
            freeze_batch_norm(self.model)
        if self._network is None or is_frozen != self._is_frozen:
            # DDP only reduces gradients of parameters that required them when it was created.
            self._network = None
            self._network = wrap_ddp(self.model, self._ranks, self._example, self.amp)
        self._is_frozen = is_frozen

    def step(self, batches: Iterable[Batch], count: int, done: int, seed: Callable[[int], None]) -> Step:
        """Take one optimizer step. With a fused optimizer, the host waits for the device once, at the end.

        Args:
            batches: The micro-batches.
            count: Number of micro-batches.
            done: Number of optimizer steps before this one, for the warm-up.
            seed: Seeds torch for a micro-step, given its number.
        """
        assert self._network is not None, "start_epoch comes first"
        network, ranks = self._network, self._ranks
        sums = torch.zeros(len(self.terms) + 2, device=ranks.device)
        self._buffers.keep()
        films: list[int] = []
        for micro, batch in enumerate(batches):
            seed(micro)
            films += batch.indices.tolist()
            images, masks = (
                part.to(ranks.device, torch.float32, non_blocking=True) for part in (batch.images, batch.masks)
            )
            is_last = micro + 1 == count
            waits = isinstance(network, DistributedDataParallel) and not is_last
            with network.no_sync() if waits else nullcontext():  # type: ignore[operator]
                with autocast(self.amp, ranks.device):
                    logits, class_logits = split_outputs(network(images))
                if self._soft is None:
                    terms = combo_loss(logits, masks, self._stage.loss, class_logits, ranks.world)
                else:
                    assert logits is not None, "a network without a map"
                    masks = masks / 255
                    teacher = self.average.model if self.average else None
                    terms = self._soft(images, masks, logits, class_logits, teacher, done)
                torch.autograd.backward(self.scaler.scale(terms["loss"] / count))
            # Of pixels; of films if the network is a classifier.
            truth = masks if logits is not None else is_positive(masks)
            predicted = _outputs(logits, class_logits).detach() > 0
            if self._soft is not None:
                predicted, truth = predicted[: self._soft.labelled], truth[: self._soft.labelled] > 0.5
            counts = [(predicted * truth).sum(), predicted.sum() + truth.sum()]
            sums += torch.stack([*(terms[name].detach() / count for name in self.terms), *counts])
        before = self.scaler.scale(self._one)
        with warmed_up(self.optimizer, self._stage.schedule, done):
            lr = float(self.optimizer.param_groups[0]["lr"])
            norm = self._update()
        found = torch.cat([sums, torch.stack([norm, before, self.scaler.scale(self._one)])])
        *losses, overlap, pixels, grad_norm, scale, next_scale = found.tolist()
        is_good = math.isfinite(grad_norm)
        if not is_good:
            # A single such batch would leave batch norm's running statistics non-finite forever.
            self._buffers.restore()
        elif self.average:
            self.average.update()
        overflowed = not is_good and self.scaler.is_enabled() and scale > SMALLEST_SCALE
        is_bad = not is_good and not overflowed
        return Step(tuple(losses), overlap, pixels, grad_norm, lr, next_scale, tuple(films), is_bad, overflowed)

    def _update(self) -> torch.Tensor:
        """Clip the reduced gradient, apply it if it is finite, and return its norm."""
        self.scaler.unscale_(self.optimizer)
        optim, parameters = self._stage.optim, list(self.model.parameters())
        norm = get_total_norm([each.grad for each in parameters if each.grad is not None])
        if optim.clip_norm is not None:
            clip_grads_with_norm_(parameters, optim.clip_norm, norm)
        if optim.clip_value is not None:
            torch.nn.utils.clip_grad_value_(parameters, optim.clip_value)
        step_if(self.optimizer, torch.isfinite(norm))
        self.scaler.update()
        self.optimizer.zero_grad(set_to_none=True)
        return norm

    def average_epoch(self, epoch: int) -> bool:
        """Average in the weights if the epoch is one of the last that the stage averages; return whether it is.

        The batch-norm statistics of the mean are then those of the model, and must be recomputed.
        """
        number = epoch - (self._stage.epochs - (self._stage.optim.swa_epochs or 0))
        if self._swa is None or number < 0:
            return False
        assert self._swa.n_averaged in (number, number + 1), "an epoch is missing from the mean"
        # An epoch whose validation was interrupted ends a second time.
        if self._swa.n_averaged == number:
            self._swa.update_parameters(self.model)
        return True

    def end_epoch(self, score: float, loss: float) -> None:
        """Advance the learning-rate schedule, given the epoch's validation score and loss."""
        step_schedule(self.schedule, self._stage.schedule, score, loss)

    def share_buffers(self) -> None:
        """Copy rank 0's buffers to every rank, because the ranks saw different films and must score one model."""
        self._ranks.broadcast_buffers(self.model)
        if self.averaged is not None:
            self._ranks.broadcast_buffers(self.averaged)

    def state(self) -> dict[str, Any]:
        """Return the state for a checkpoint; `averaged` is None until there is an average."""
        return {
            "amp": self.amp,
            "model": self.model.state_dict(),
            "averaged": None if self.averaged is None else self.averaged.state_dict(),
            "averaged_epochs": 0 if self._swa is None else int(self._swa.n_averaged),
            "optimizer": self.optimizer.state_dict(),
            "schedule": self.schedule.state_dict(),
            "scaler": self.scaler.state_dict(),
        }

    def restore(self, state: dict[str, Any], where: object = "checkpoint") -> None:
        """Load a checkpoint's state.

        Raises InputError, naming `where` the state is from, if it does not fit this network and optimizer.
        """
        load_weights(self.model, state["model"], where)
        if self._swa is not None:
            self._swa.n_averaged.fill_(state["averaged_epochs"])
        if (self.averaged is None) != (state["averaged"] is None):
            raise InputError(f"{where}: its averaged weights are not those of this stage; restore it or train again")
        if self.averaged is not None:
            load_weights(self.averaged, state["averaged"], where)
        check_optimizer(self.optimizer, state["optimizer"], where)
        check_settings(self.schedule.state_dict(), state["schedule"], where, "schedule")
        check_settings(self.scaler.state_dict(), state["scaler"], where, "scaler")
        restore_optimizer(self.optimizer, state["optimizer"])
        self.schedule.load_state_dict(state["schedule"])
        self.scaler.load_state_dict(state["scaler"])
