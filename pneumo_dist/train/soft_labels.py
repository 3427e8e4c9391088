"""The loss of stages with soft labels: a teacher's maps, pseudo-labels, and a mean teacher."""

import math
from dataclasses import dataclass

import torch

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.network.build import split_outputs
from pneumo_dist.network.losses import combo_loss, loss_terms
from pneumo_dist.ranks.precision import Resolved, autocast

CONSISTENCY = "consistency"
# Ranges of the teacher's view, in standard deviations of the normalised grey values.
_GAIN, _OFFSET, _NOISE = 0.2, 0.2, 0.05


def terms_of(stage: StageConfig) -> tuple[str, ...]:
    """Return the names of a stage's loss terms in training."""
    unlabelled = stage.unlabelled
    is_consistent = unlabelled is not None and unlabelled.mean_teacher is not None
    return loss_terms(stage.loss) + ((CONSISTENCY,) if is_consistent else ())


def ramp_up(done: int, steps: int) -> float:
    """Return the share of the consistency's weight after `done` steps: exp(−5(1 − t)²), with t = done / steps up to 1.

    It is that of Tarvainen & Valpola (arXiv:1703.01780); without steps to rise over, it is 1.
    """
    return 1.0 if done >= steps else math.exp(-5.0 * (1.0 - done / steps) ** 2)


@dataclass(frozen=True)
class SoftLoss:
    """The loss of micro-batches with soft labels. Films without labels are the last of a micro-batch.

    Attributes:
        stage: The stage, which has `distillation` or `unlabelled`.
        world: Number of ranks.
        amp: Autocast type.
        ramp_steps: Number of steps over which the weight of a mean teacher rises.
    """

    stage: StageConfig
    world: int
    amp: Resolved
    ramp_steps: int

    @property
    def labelled(self) -> int:
        """Number of films with labels, the first of a micro-batch."""
        return self.stage.micro_batch - self.stage.unlabelled_films

    def __call__(
        self,
        images: torch.Tensor,
        targets: torch.Tensor,
        logits: torch.Tensor,
        class_logits: torch.Tensor | None,
        teacher: torch.nn.Module | None,
        done: int,
    ) -> dict[str, torch.Tensor]:
        """Return the terms of `terms_of`, scalars in float32.

        Args:
            images: Normalised films (n, channels, size, size).
            targets: Labels in 0..1 (n, 1, size, size); ignored for films without labels if there are no pseudo-labels.
            logits: The network's output (n, 1, size, size).
            class_logits: That of its classification head (n, 1), if it has one.
            teacher: The moving average of the network.
            done: Number of optimizer steps before this one.
        """
        unlabelled = self.stage.unlabelled
        has_pseudo_labels = unlabelled is not None and unlabelled.source is not None
        count = len(logits) if has_pseudo_labels else self.labelled
        weights = self._weights(targets[:count]) if has_pseudo_labels or self.stage.distillation else None
        classes = None if class_logits is None else class_logits[:count]
        terms = combo_loss(logits[:count], targets[:count], self.stage.loss, classes, self.world, weights)
        if unlabelled is None or unlabelled.mean_teacher is None:
            return terms
        assert teacher is not None, "a mean teacher needs a moving average"
        expected = self._taught(teacher, images[self.labelled :])
        difference = (torch.sigmoid(logits[self.labelled :].float()) - expected).square().mean()
        weight = unlabelled.mean_teacher.weight * ramp_up(done, self.ramp_steps)
        return {**terms, "loss": terms["loss"] + weight * difference, CONSISTENCY: difference}

    def _weights(self, targets: torch.Tensor) -> torch.Tensor:
        """Return the weights of pixels (n, 1, size, size): |2q − 1| for pseudo-labels q, else 1."""
        weights = torch.ones_like(targets)
        weights[self.labelled :] = (2 * targets[self.labelled :] - 1).abs()
        return weights

    @torch.no_grad()
    def _taught(self, teacher: torch.nn.Module, images: torch.Tensor) -> torch.Tensor:
        """Return the teacher's probabilities (n, 1, size, size) for another view of the films, turned back."""
        flips = torch.rand(len(images), 1, 1, 1, device=images.device) < 0.5
        view = second_view(torch.where(flips, images.flip(-1), images))
        with autocast(self.amp, images.device):
            logits, _ = split_outputs(teacher(view))
        assert logits is not None, "a network without a map"
        probabilities = torch.sigmoid(logits.float())
        return torch.where(flips, probabilities.flip(-1), probabilities)


def second_view(images: torch.Tensor) -> torch.Tensor:
    """Return films (n, channels, size, size) with another contrast, brightness and noise.

    The noise is the same in all channels, as these repeat one grey film. Random numbers are torch's, on the device.
    """
    shape = (len(images), 1, 1, 1)
    gain, offset = (2 * torch.rand(2, *shape, device=images.device) - 1).unbind()
    noise = torch.randn(len(images), 1, *images.shape[2:], device=images.device)
    return images * (1 + _GAIN * gain) + _OFFSET * offset + _NOISE * noise
