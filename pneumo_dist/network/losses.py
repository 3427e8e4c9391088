"""Losses of a micro-batch and their weighted sum, in float32 inside autocast too.

Logits and masks have shape (n, 1, h, w), masks are 0 or 1; terms are scalars. BCE is torch's. The others differ from
segmentation_models_pytorch 0.6.0: its Dice loss is 0 for every empty mask, the gradient of its focal loss is NaN at a
sure pixel for gamma < 1, and its Lovász hinge takes no float64 and rounds half the gradient of a 1024 px film to 0.
"""

import torch
import torch.distributed as dist
import torch.nn.functional as F

from pneumo_dist.config.loss import LossConfig
from shards.errors import InputError

TERMS = ("bce", "dice", "focal", "lovasz", "classification")


def loss_terms(config: LossConfig) -> tuple[str, ...]:
    """Return the names that `combo_loss` returns: `loss`, then each term with a weight above 0."""
    return ("loss", *(name for name in TERMS if getattr(config, name) > 0))


def combo_loss(
    logits: torch.Tensor,
    masks: torch.Tensor,
    config: LossConfig,
    class_logits: torch.Tensor | None = None,
    world: int = 1,
) -> dict[str, torch.Tensor]:
    """Return the weighted sum under `loss`, and unweighted each term that has a weight, as `loss_terms` names them.

    Results are float32, or float64 where the logits are. `class_logits` (n, 1) belong to the classification head. With
    `world` ranks Dice follows `dice_scope`, a collective where that is global; the default, for evaluation, stays on
    this rank. Raises InputError for a classification weight without a head.
    """
    wide = torch.float64 if logits.dtype == torch.float64 else torch.float32
    terms: dict[str, torch.Tensor] = {}
    with torch.autocast(logits.device.type, enabled=False):
        logits, masks = logits.to(wide), masks.to(wide)
        if config.bce:
            terms["bce"] = F.binary_cross_entropy_with_logits(logits, masks)
        if config.dice:
            terms["dice"] = dice_loss(logits, masks, config, world)
        if config.focal:
            terms["focal"] = focal_loss(logits, masks, config.focal_gamma)
        if config.lovasz:
            terms["lovasz"] = symmetric_lovasz(logits, masks)
        if config.classification:
            if class_logits is None:
                raise InputError(
                    "loss.classification is above 0, but the network has no head for it; set model.classification"
                )
            terms["classification"] = classification_bce(class_logits.to(wide), masks)
        loss = torch.stack([getattr(config, name) * term for name, term in terms.items()]).sum()
    return {"loss": loss, **terms}


def dice_loss(logits: torch.Tensor, masks: torch.Tensor, config: LossConfig, world: int = 1) -> torch.Tensor:
    """Return 1 − D or −log D, where D = (2I + ε) / (P + T + ε) on sigmoids (Milletari et al., arXiv:1606.04797).

    I, P and T are sums over one vector of all pixels (of all ranks for a global scope), or over each film.
    """
    rows = len(logits) if config.dice_over == "image" else 1
    probability, truth = torch.sigmoid(logits).reshape(rows, -1), masks.reshape(rows, -1)
    sums = torch.stack([(probability * truth).sum(1), probability.sum(1) + truth.sum(1)])
    if config.dice_scope == "global" and world > 1:
        sums = _sum_over_ranks(sums, world)
    numerator, denominator = 2 * sums[0] + config.dice_epsilon, sums[1] + config.dice_epsilon
    if config.dice_form == "log":
        return (denominator.log() - numerator.log()).mean()
    return (1 - numerator / denominator).mean()


def _sum_over_ranks(own: torch.Tensor, world: int) -> torch.Tensor:
    """Return the sum over ranks, with `world` times the gradient to this rank's part.

    Every rank computes the same loss L(S) of the sum S, and backpropagates it through its own part of S. DDP then
    averages, so 1/world · Σ world · dL/dS · dS_rank is the gradient of L in one process. The differentiable all-reduce
    of torch.distributed.nn (deprecated) has the same gradient, by a second all-reduce.
    """
    total = own.detach().clone()
    dist.all_reduce(total)
    return total + world * (own - own.detach())


def focal_loss(logits: torch.Tensor, masks: torch.Tensor, gamma: float) -> torch.Tensor:
    """Return the mean of (1 − p)^γ · −log p, p the probability of the true class (Lin et al., arXiv:1708.02002)."""
    towards = logits * (2 * masks - 1)
    # 1 − p is a sigmoid too. Its power by way of the logarithm needs no clamp, and its gradient is finite for every γ.
    return (torch.exp(gamma * F.logsigmoid(-towards)) * -F.logsigmoid(towards)).mean()


def symmetric_lovasz(logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return the Lovász hinge of the masks and that of the background, averaged, mean over films.

    Lovász hinge: Berman et al., arXiv:1705.08790, the convex extension of the Jaccard loss, applied to 1 − logit·sign.
    """
    truth = masks.flatten(1)
    # Logits and signs both turn over with the classes: errors and their order are those of the background too.
    errors = F.relu(1 - logits.flatten(1) * (2 * truth - 1))
    errors, order = torch.sort(errors, dim=1, descending=True, stable=True)
    ordered = truth.gather(1, order)
    weights = (_jaccard_steps(ordered) + _jaccard_steps(1 - ordered)) / 2
    return (errors * weights.to(errors.dtype)).sum(1).mean()


def _jaccard_steps(truth: torch.Tensor) -> torch.Tensor:
    """Return float64 (n, pixels): what the Jaccard loss rises by as each pixel in turn is taken to be wrong.

    `truth` holds 0 and 1. In float32 the steps of a large film, about 1 / pixels, would be lost in the difference.
    """
    passed = truth.cumsum(1, dtype=torch.int64)
    positives, taken = passed[:, -1:], torch.arange(1, truth.shape[1] + 1, device=truth.device)
    union = positives + taken - passed
    return (1 - (positives - passed).double() / union).diff(dim=1, prepend=truth.new_zeros(len(truth), 1).double())


def classification_bce(class_logits: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Return binary cross-entropy of class logits (n, 1) against "the film's mask holds a pixel"."""
    return F.binary_cross_entropy_with_logits(class_logits, (masks.flatten(1).amax(1, keepdim=True) > 0).to(masks))
