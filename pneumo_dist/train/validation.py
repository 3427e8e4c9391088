"""Validation: exact Dice on the label grid, with each film counted once for any number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pneumo_dist.config.loss import LossConfig
from pneumo_dist.data.films import Batch
from pneumo_dist.data.loader import EvalLoader
from pneumo_dist.network.build import split_outputs
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.ranks.precision import Resolved, autocast
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.watchdog import GATHER, VALIDATION
from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.histograms import film_histograms, gather_histograms
from pneumo_dist.scoring.masks import label_map, to_p8
from pneumo_dist.scoring.triplet import Triplet, shared_best_triplet
from shards.dataset.table import Shards

PLAIN = Triplet(top=0.5, area=0, bottom=0.5)


@dataclass(frozen=True)
class Overlay:
    """A film to draw: grey image, label and p8 map, all uint8 (size, size) at network resolution.

    `name` is `fixed/KEY`, or `worst/N` for the film with a mask and the N-th lowest Dice.
    """

    name: str
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    p8: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Validation:
    """Scores of a fold's validation films.

    Attributes:
        triplet: The best triplet over the fold, by exact search.
        best: Scores with that triplet.
        plain: Scores with a threshold of 0.5.
        loss: Mean loss over the films.
        overlays: Films to draw.
        pixels: int64 (2, 256), counts of p8 values over all label-grid pixels, and over those with a pneumothorax.
    """

    triplet: Triplet
    best: Score
    plain: Score
    loss: float
    overlays: tuple[Overlay, ...]
    pixels: npt.NDArray[np.int64]

    def figures(self) -> dict[str, float]:
        """Return the scores by the names that the logs use. The area is in label-grid pixels."""
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


@dataclass(frozen=True)
class ValidationFilms:
    """The films that a fold validates on, as one rank reads them.

    Attributes:
        shards: The shards that hold the films.
        loader: This rank's share of the batches.
        rounds: Largest number of batches on any rank, the same on every rank.
        shown: Table rows of the films that are always drawn. As many of the worst films are drawn too.
    """

    shards: Shards
    loader: EvalLoader
    rounds: int
    shown: frozenset[int]


def validate(
    model: torch.nn.Module,
    films: ValidationFilms,
    loss_config: LossConfig,
    ranks: Ranks,
    amp: Resolved,
    check: Callable[[], object] = lambda: None,
) -> Validation:
    """Score a model on a fold's validation films. All ranks return the same.

    `check` is called before every round, equally often on every rank; it may raise on all of them to stop. The films
    with the lowest Dice at 0.5 come back as overlays after the films that are always shown.
    """
    model.eval()
    scores = _FilmScores(films.shards, films.shown)
    batches = iter(films.loader)
    for _ in range(films.rounds):
        ranks.beat(VALIDATION)
        check()
        batch = next(batches, None)
        if batch is not None:
            scores.add(batch, *_predict(model, batch, loss_config, ranks, amp))
    model.train()
    ranks.beat(GATHER)
    return scores.gather(ranks)


def _predict(
    model: torch.nn.Module, batch: Batch, loss_config: LossConfig, ranks: Ranks, amp: Resolved
) -> tuple[npt.NDArray[np.uint8], float]:
    """Return the p8 maps of a batch's films, uint8 (n, size, size), and their mean loss."""
    count = len(batch.indices)
    with torch.no_grad(), autocast(amp, ranks.device):
        logits, class_logits = split_outputs(model(batch.images.to(ranks.device, torch.float32, non_blocking=True)))
    masks = batch.masks.to(ranks.device)
    classes = None if class_logits is None else class_logits[:count]
    loss = float(combo_loss(logits[:count], masks[:count], loss_config, classes)["loss"])
    return to_p8(torch.sigmoid(logits[:count].float())), loss


@dataclass(frozen=True)
class _Candidate:
    """A film that may be drawn: its Dice at 0.5, table row, and image, label and p8 map, uint8 (3, size, size)."""

    dice: float
    index: int
    planes: npt.NDArray[np.uint8]

    @property
    def order(self) -> tuple[float, int]:
        return self.dice, self.index


class _FilmScores:
    """Histograms, losses and candidates for overlays of the films that one rank has seen."""

    def __init__(self, shards: Shards, shown: frozenset[int]) -> None:
        self._shards, self._shown = shards, shown
        self._histograms: list[npt.NDArray[np.int64]] = []
        self._losses: list[tuple[float, float, float]] = []
        self._fixed: list[_Candidate] = []
        self._worst: list[_Candidate] = []

    def add(self, batch: Batch, maps: npt.NDArray[np.uint8], loss: float) -> None:
        """Add a batch with its p8 maps and mean loss."""
        count = len(batch.indices)
        self._losses.append((float(batch.indices[0]), loss * count, float(count)))
        for position, p8 in enumerate(maps):
            index = int(batch.indices[position])
            histograms = film_histograms(label_map(p8, self._shards.grid(index)), self._shards.label(index))
            self._histograms.append(np.concatenate([[index], histograms.reshape(-1)]))
            dice = float(triplet_counts(histograms[None], PLAIN).dice[0])
            is_worst = bool(histograms[1].any()) and self._is_among_worst((dice, index))
            if index in self._shown or is_worst:
                planes = np.stack([_grey(batch.images[position]), _binary(batch.masks[position]), p8])
                self._keep(_Candidate(dice, index, planes), is_worst)

    def _is_among_worst(self, order: tuple[float, int]) -> bool:
        return len(self._worst) < len(self._shown) or any(order < last.order for last in self._worst[-1:])

    def _keep(self, candidate: _Candidate, is_worst: bool) -> None:
        if candidate.index in self._shown:
            self._fixed.append(candidate)
        if is_worst:
            self._worst = sorted([*self._worst, candidate], key=lambda each: each.order)[: len(self._shown)]

    def gather(self, ranks: Ranks) -> Validation:
        """Return the result over the films of all ranks."""
        histograms = gather_histograms(self._histograms, ranks)
        overlays = [
            Overlay(f"fixed/{self._shards.text(each.index, 'key')}", *each.planes)
            for each in _gather(self._fixed, ranks)
        ]
        worst = sorted(_gather(self._worst, ranks), key=lambda each: each.order)[: len(self._shown)]
        overlays += [Overlay(f"worst/{number + 1}", *each.planes) for number, each in enumerate(worst)]
        triplet, _ = shared_best_triplet(histograms, ranks)
        # Summed in table order. In rank order, the number of ranks would show in the last bits.
        losses = np.concatenate(ranks.gather_array(np.array(self._losses, np.float64).reshape(-1, 3)))
        total, films = losses[np.argsort(losses[:, 0])][:, 1:].sum(axis=0)
        best, plain = triplet_counts(histograms, triplet).score(), triplet_counts(histograms, PLAIN).score()
        return Validation(triplet, best, plain, float(total / films), tuple(overlays), histograms.sum(axis=0))


def _gather(candidates: list[_Candidate], ranks: Ranks) -> list[_Candidate]:
    """Return every rank's candidates in table order."""
    facts = np.concatenate(ranks.gather_array(np.array([each.order for each in candidates], np.float64).reshape(-1, 2)))
    stacks = ranks.gather_array(
        np.stack([each.planes for each in candidates]) if candidates else np.zeros((0, 3, 0, 0), np.uint8)
    )
    planes = [plane for stack in stacks for plane in stack]
    gathered = [_Candidate(float(dice), int(index), plane) for (dice, index), plane in zip(facts, planes, strict=True)]
    return sorted(gathered, key=lambda each: each.index)


def _grey(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    plane = image[0].float()
    low, high = plane.min(), plane.max()
    return np.asarray(((plane - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8).cpu().numpy())


def _binary(mask: torch.Tensor) -> npt.NDArray[np.uint8]:
    return np.asarray(mask[0].to(torch.uint8).cpu().numpy())
