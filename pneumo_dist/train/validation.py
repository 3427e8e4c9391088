"""Validation: exact Dice on the label grid, each film once, whatever the number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pneumo_dist.config.loss import LossConfig
from pneumo_dist.data.loader import EvalLoader
from pneumo_dist.network.build import split_outputs
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.ranks.precision import Resolved, autocast
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.watchdog import GATHER, VALIDATION
from pneumo_dist.scoring.counts import triplet_outcome
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.histograms import film_histograms, gather_histograms
from pneumo_dist.scoring.masks import label_map, to_p8
from pneumo_dist.scoring.triplet import Triplet, best_triplet
from shards.dataset.table import Shards

PLAIN = Triplet(top=0.5, area=0, bottom=0.5)


@dataclass(frozen=True)
class Overlay:
    """A film to look at: grey image, label and p8 map, all uint8 (size, size) at network resolution.

    `name` is `fixed/KEY`, or `worst/N` for the films with a mask that were found worst.
    """

    name: str
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    p8: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Validation:
    """Best triplet over the fold (exact search), its score, the score at 0.5, and the mean loss over films.

    `pixels` int64 (2, 256): p8 values over all label-grid pixels of the fold, and over those with a pneumothorax.
    """

    triplet: Triplet
    best: Score
    plain: Score
    loss: float
    overlays: tuple[Overlay, ...]
    pixels: npt.NDArray[np.int64]

    def figures(self) -> dict[str, float]:
        """Return its numbers as the logs name them; the area is a whole number of label-grid pixels."""
        return {
            "validation_loss": self.loss,
            "score": self.best.dice,
            "positive_dice": self.best.positive_dice,
            "dice_at_half": self.plain.dice,
            "always_empty": self.best.always_empty,
            "top": self.triplet.top,
            "area": self.triplet.area,
            "bottom": self.triplet.bottom,
        }


def validate(
    model: torch.nn.Module,
    loader: EvalLoader,
    shards: Shards,
    ranks: Ranks,
    amp: Resolved,
    loss_config: LossConfig,
    shown: frozenset[int],
    rounds: int,
    stopping: Callable[[], bool],
) -> Validation | None:
    """Score a model on its validation films; None where the ranks agreed to stop in the middle.

    `rounds` is the same on every rank (the most batches of any), so that all poll `stopping` equally often. The films
    of `shown` come back as overlays, and as many of those with the lowest Dice at 0.5.
    """
    model.eval()
    found: list[npt.NDArray[np.int64]] = []
    fixed: list[_Look] = []
    worst: list[_Look] = []
    losses: list[tuple[float, float, float]] = []
    batches = iter(loader)
    for _ in range(rounds):
        ranks.beat(VALIDATION)
        if stopping():
            return None
        batch = next(batches, None)
        if batch is None:
            continue
        count = len(batch.indices)
        with torch.no_grad(), autocast(amp, ranks.device):
            logits, class_logits = split_outputs(model(batch.images.to(ranks.device, torch.float32, non_blocking=True)))
        masks = batch.masks.to(ranks.device)
        classes = None if class_logits is None else class_logits[:count]
        loss = float(combo_loss(logits[:count], masks[:count], loss_config, classes)["loss"])
        losses.append((float(batch.indices[0]), loss * count, float(count)))
        for position, p8 in enumerate(to_p8(torch.sigmoid(logits[:count].float()))):
            index = int(batch.indices[position])
            histograms = film_histograms(label_map(p8, shards.grid(index)), shards.label(index))
            found.append(np.concatenate([[index], histograms.reshape(-1)]))
            dice = float(triplet_outcome(histograms[None], PLAIN).dice[0])
            is_among = len(worst) < len(shown) or any((dice, index) < last.order for last in worst[-1:])
            is_worse = histograms[1].any() and is_among
            if index in shown or is_worse:
                planes = np.stack([_grey(batch.images[position]), _binary(batch.masks[position]), p8])
                look = _Look(dice, index, planes)
                fixed += [look] if index in shown else []
                worst = sorted([*worst, look] if is_worse else worst, key=lambda each: each.order)[: len(shown)]
    model.train()
    ranks.beat(GATHER)
    histograms = gather_histograms(found, ranks)
    keys = shards.column("key")
    overlays = [Overlay(f"fixed/{keys[look.index]}", *look.planes) for look in _gather(fixed, ranks)]
    lowest = sorted(_gather(worst, ranks), key=lambda each: each.order)[: len(shown)]
    overlays += [Overlay(f"worst/{number + 1}", *look.planes) for number, look in enumerate(lowest)]
    triplet, _ = best_triplet(histograms)
    # Summed in table order: in that of the ranks, their number would be seen in the last bits.
    parts = np.concatenate(ranks.gather_array(np.array(losses, np.float64).reshape(-1, 3)))
    total, films = parts[np.argsort(parts[:, 0])][:, 1:].sum(axis=0)
    best, plain = triplet_outcome(histograms, triplet).score(), triplet_outcome(histograms, PLAIN).score()
    return Validation(triplet, best, plain, float(total / films), tuple(overlays), histograms.sum(axis=0))


@dataclass(frozen=True)
class _Look:
    """A film that may be shown: its Dice at 0.5, table row, and image, label and p8 map, uint8 (3, size, size)."""

    dice: float
    index: int
    planes: npt.NDArray[np.uint8]

    @property
    def order(self) -> tuple[float, int]:
        return self.dice, self.index


def _gather(looks: list[_Look], ranks: Ranks) -> list[_Look]:
    """Return every rank's films in table order."""
    facts = np.concatenate(ranks.gather_array(np.array([look.order for look in looks], np.float64).reshape(-1, 2)))
    stacks = ranks.gather_array(
        np.stack([look.planes for look in looks]) if looks else np.zeros((0, 3, 0, 0), np.uint8)
    )
    planes = [stack for part in stacks for stack in part]
    found = [_Look(float(dice), int(index), plane) for (dice, index), plane in zip(facts, planes, strict=True)]
    return sorted(found, key=lambda look: look.index)


def _grey(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    plane = image[0].float()
    low, high = plane.min(), plane.max()
    return np.asarray(((plane - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8).cpu().numpy())


def _binary(mask: torch.Tensor) -> npt.NDArray[np.uint8]:
    return np.asarray(mask[0].to(torch.uint8).cpu().numpy())
