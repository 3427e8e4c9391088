"""Losses of a micro-batch and their weighted sum, in float32 even under autocast.

Logits and masks have shape (n, 1, h, w); masks are 0 or 1, or soft labels between them that come with a weight for each
pixel; terms are scalars. BCE is torch's. The others differ from
segmentation_models_pytorch 0.6.0: its Dice loss is 0 for every empty mask, its focal loss has a NaN gradient at a
certain pixel for gamma < 1, and its Lovász hinge rejects float64 and rounds half the gradient of a 1024 px film to 0.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
import torch.distributed as dist
import torch.nn.functional as F

from pneumo_dist.config.loss import TERMS, LossConfig
from shards.errors import InputError


@dataclass(frozen=True)
class Outputs:
    """A micro-batch's outputs and labels, in the type that losses are computed in, and the number of ranks.

    `weights` (n, 1, h, w) are those of the pixels of soft labels; None for masks of 0 and 1.
    """

    logits: torch.Tensor
    masks: torch.Tensor
    class_logits: torch.Tensor | None
    world: int
    weights: torch.Tensor | None = None


def loss_terms(config: LossConfig) -> tuple[str, ...]:
    """Return the keys of `combo_loss`: `loss`, then each term with a weight above 0."""
    return ("loss", *(name for name in TERMS if getattr(config, name) > 0))


def combo_loss(
    logits: torch.Tensor | None,
    masks: torch.Tensor,
    config: LossConfig,
    class_logits: torch.Tensor | None = None,
    world: int = 1,
    weights: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Return the weighted sum as `loss`, and each term with a weight, unweighted, keyed as in `loss_terms`.

    Results are float32, or float64 if the logits are.

    Args:
        logits: Output of the network; None for a classifier, whose only loss is `classification`.
        masks: Masks of the films.
        config: Weights and forms of the terms.
        class_logits: Output (n, 1) of the classification head.
        world: Number of ranks. Above 1, Dice follows `dice_scope`, and is a collective if that is global. The default,
            for evaluation, stays on this rank.
        weights: Weights of the pixels (n, 1, h, w) for soft labels. BCE and focal loss are means of weighted values,
            and Dice has weighted sums. Lovász and classification take labels above 0.5 as 1, without weights.

    Raises:
        InputError: The classification loss has a weight, but the network has no head for it.
    """
    if logits is None:
        assert class_logits is not None, "a network without outputs"
        with torch.autocast(class_logits.device.type, enabled=False):
            term = classification_bce(class_logits.float(), masks.float())
        return {"loss": config.classification * term, "classification": term}
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    with torch.autocast(logits.device.type, enabled=False):
        classes = None if class_logits is None else class_logits.to(wide)
        outputs = Outputs(logits.to(wide), masks.to(wide), classes, world, weights)
        terms = {name: term(outputs, config) for name, term in _TERMS.items() if getattr(config, name) > 0}
        loss = torch.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
    return {"loss": loss, **terms}


def _classification(outputs: Outputs, config: LossConfig) -> torch.Tensor:
    if outputs.class_logits is None:
        raise InputError("loss.classification is above 0, but the network has no head for it; set model.classification")
    return classification_bce(outputs.class_logits, outputs.masks)


_TERMS: Mapping[str, Callable[[Outputs, LossConfig], torch.Tensor]] = {
    "bce": lambda outputs, config: bce_loss(outputs.logits, outputs.masks, config.bce_positive_weight, outputs.weights),
    "dice": lambda outputs, config: dice_loss(outputs.logits, outputs.masks, config, outputs.world, outputs.weights),
    "focal": lambda outputs, config: focal_loss(outputs.logits, outputs.masks, config.focal_gamma, outputs.weights),
    "lovasz": lambda outputs, _: symmetric_lovasz(outputs.logits, _hard(outputs)),
    "classification": _classification,
}
assert tuple(_TERMS) == TERMS


def _hard(outputs: Outputs) -> torch.Tensor:
    """Return masks of 0 and 1."""
    return outputs.masks if outputs.weights is None else (outputs.masks > 0.5).to(outputs.masks)


def bce_loss(
    logits: torch.Tensor, masks: torch.Tensor, positive_weight: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean binary cross-entropy of pixels; those of the mask count `positive_weight` times."""
    positive = None if positive_weight == 1 else logits.new_tensor(positive_weight)
    return F.binary_cross_entropy_with_logits(logits, masks, weights, pos_weight=positive)


def dice_loss(
    logits: torch.Tensor,
    masks: torch.Tensor,
    config: LossConfig,
    world: int = 1,
    weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return 1 − D or −log D, where D = (2I + ε) / (P + T + ε) on sigmoids (Milletari et al., arXiv:1606.04797).

    I, P and T are sums of p·q, p and the labels q, times the pixels' weights, over one vector of all pixels (of all
    ranks for a global scope), or over each film. With `dice_films: positive` the pixels of films with an empty mask do
    not count; without any other film, D is 1.
    """
    rows = len(logits) if config.dice_over == "image" else 1
    probability, counted = torch.sigmoid(logits), None
    if config.dice_films == "positive":
        counted = is_positive(masks)
        probability = probability * counted[..., None, None]
    probability, truth = probability.reshape(rows, -1), masks.reshape(rows, -1)
    weighted, labelled = probability, truth
    if weights is not None:
        weighted, labelled = (each * weights.reshape(rows, -1) for each in (probability, truth))
    sums = torch.stack([(weighted * truth).sum(1), weighted.sum(1) + labelled.sum(1)])
    if config.dice_scope == "global" and world > 1:
        sums = _sum_over_ranks(sums, world)
    numerator, denominator = 2 * sums[0] + config.dice_epsilon, sums[1] + config.dice_epsilon
    losses = denominator.log() - numerator.log() if config.dice_form == "log" else 1 - numerator / denominator
    if counted is None or config.dice_over == "batch":
        return losses.mean()
    # The loss of a film that does not count is 0.
    return losses.sum() / counted.sum().clamp(min=1)


def _sum_over_ranks(part: torch.Tensor, world: int) -> torch.Tensor:
    """Return the sum over ranks, with `world` times the gradient to this rank's part.

    Every rank computes the same loss L(S) of the sum S, and backpropagates it through its part of S. DDP then averages,
    so 1/world · Σ world · dL/dS · dS_rank is the gradient of L in one process. The differentiable all-reduce of
    torch.distributed.nn (deprecated) has the same gradient, but needs a second all-reduce.
    """
    total = part.detach().clone()
    dist.all_reduce(total)
    return total + world * (part - part.detach())


def focal_loss(
    logits: torch.Tensor, masks: torch.Tensor, gamma: float, weights: torch.Tensor | None = None
) -> torch.Tensor:
    """Return the mean of (1 − p)^γ · −log p, p the probability of the true class (Lin et al., arXiv:1708.02002).

    Of a soft label q it is q times the loss of the one class plus 1 − q times that of the other.
    """
    if weights is None:
        return _focal(logits * (2 * masks - 1), gamma).mean()
    return (weights * (masks * _focal(logits, gamma) + (1 - masks) * _focal(-logits, gamma))).mean()


def _focal(margin: torch.Tensor, gamma: float) -> torch.Tensor:
    # 1 − p is a sigmoid too. Its power by the logarithm needs no clamp, and has a finite gradient for all γ.
    return torch.exp(gamma * F.logsigmoid(-margin)) * -F.logsigmoid(margin)


def symmetric_lovasz(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the average of the Lovász hinges of the masks and of the background, mean over films.

    The Lovász hinge (Berman et al., arXiv:1705.08790) is the convex extension of the Jaccard loss, applied to
    1 − logit·sign.
    """
    truth = masks.flatten(1)
    # Swapping the classes negates both logits and signs, so errors and their order also hold for the background.
    errors = F.relu(1 - logits.flatten(1) * (2 * truth - 1))
    errors, order = torch.sort(errors, dim=1, descending=True, stable=True)
    ordered = truth.gather(1, order)
    weights = (_jaccard_steps(ordered) + _jaccard_steps(1 - ordered)) / 2
    return (errors * weights.to(errors.dtype)).sum(1).mean()


def _jaccard_steps(truth: torch.Tensor) -> torch.Tensor:
    """Return the increase of the Jaccard loss as each pixel in turn counts as wrong, float64 (n, pixels).

    `truth` is 0 or 1. In float32 the steps of a large film, about 1 / pixels, would vanish in the difference.
    """
    passed = truth.cumsum(1, dtype=torch.int64)
    positives, taken = passed[:, -1:], torch.arange(1, truth.shape[1] + 1, device=truth.device)
    union = positives + taken - passed
    return (1 - (positives - passed).double() / union).diff(dim=1, prepend=truth.new_zeros(len(truth), 1).double())


def classification_bce(class_logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return binary cross-entropy of class logits (n, 1) against "the film's mask is not empty"."""
    return F.binary_cross_entropy_with_logits(class_logits, is_positive(masks))


def is_positive(masks: torch.Tensor) -> torch.Tensor:
    """Return 1 for each film whose mask has a pixel above 0.5, else 0, as (n, 1) in the type of the masks."""
    return (masks.flatten(1).amax(1, keepdim=True) > 0.5).to(masks)
