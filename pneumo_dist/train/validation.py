"""Validation: exact Dice on the label grid, with each film counted once for any number of ranks."""

from collections.abc import Callable, Iterator
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
from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.device_histograms import device_histograms
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.histograms import film_histograms, gather_histograms
from pneumo_dist.scoring.masks import label_map
from pneumo_dist.scoring.rounding import to_levels
from pneumo_dist.scoring.triplet import Triplet, shared_best_triplet
from shards.dataset.table import Shards

PLAIN = Triplet(top=0.5, area=0, bottom=0.5)


@dataclass(frozen=True)
class Overlay:
    """A film to draw: grey image, label and p8 map, all uint8 (size, size) at network resolution.

    `name` is `fixed/KEY`, or `worst/N` for the film with a mask and the N-th lowest Dice. `dice` is its Dice at 0.5 on
    the label grid, `best_dice` that under the best triplet, which calls it positive or not (`called`).
    """

    name: str
    key: str
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    p8: npt.NDArray[np.uint8]
    dice: float
    best_dice: float
    called: bool


@dataclass(frozen=True)
class Validation:
    """Scores of a fold's validation films.

    Attributes:
        triplet: The best triplet over the fold, by exact search.
        best: Scores with that triplet.
        plain: Scores with a threshold of 0.5.
        loss: Mean loss over the films.
        overlays: Films to draw, on rank 0 only.
        pixels: int64 (2, 256), counts of p8 values over all label-grid pixels, and over those with a pneumothorax.
    """

    triplet: Triplet
    best: Score
    plain: Score
    loss: float
    overlays: tuple[Overlay, ...]
    pixels: npt.NDArray[np.int64]

    @property
    def score(self) -> float:
        """The mean Dice by which epochs are compared."""
        return self.best.dice

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


def each_round(films: ValidationFilms, ranks: Ranks, check: Callable[[], object]) -> Iterator[Batch | None]:
    """Yield this rank's batch of each round, None if it has none left; all ranks have equally many rounds.

    `check` is called before every round; it may raise on all ranks to stop.
    """
    batches = iter(films.loader)
    for _ in range(films.rounds):
        ranks.beat(VALIDATION)
        check()
        yield next(batches, None)


def validate(
    model: torch.nn.Module,
    films: ValidationFilms,
    loss_config: LossConfig,
    ranks: Ranks,
    amp: Resolved,
    check: Callable[[], object] = lambda: None,
) -> Validation:
    """Score a model on a fold's validation films. All ranks return the same, except that only rank 0 has overlays.

    `check` is called before every round, equally often on every rank; it may raise on all of them to stop. The films
    with the lowest Dice at 0.5 come back as overlays after the films that are always shown.
    """
    model.eval()
    scores = _FilmScores(films.shards, films.shown)
    predicted: _Predicted | None = None
    for batch in each_round(films, ranks, check):
        # A GPU computes this batch while the host scores the one before.
        earlier, predicted = predicted, None
        if batch is not None:
            predicted = _predict(model, batch, films.shards, loss_config, ranks, amp)
        if earlier is not None:
            scores.add(earlier)
    if predicted is not None:
        scores.add(predicted)
    model.train()
    ranks.beat(GATHER)
    return scores.gather(ranks)


@dataclass(frozen=True)
class _Predicted:
    """A predicted batch, which a GPU may still be computing.

    Attributes:
        batch: The films.
        loss: Their mean loss.
        p8: Their maps, uint8 (n, size, size), on the host.
        histograms: Their histograms on the label grid, int64 (n, 2, 256), on the host; None if OpenCV computes them.
        ready: Set by the GPU once all of it has arrived on the host; None on a CPU.
    """

    batch: Batch
    loss: torch.Tensor
    p8: torch.Tensor
    histograms: torch.Tensor | None
    ready: torch.cuda.Event | None


def _predict(
    model: torch.nn.Module, batch: Batch, shards: Shards, loss_config: LossConfig, ranks: Ranks, amp: Resolved
) -> _Predicted:
    """Predict a batch. A GPU also computes the histograms; the host waits for none of it."""
    count = len(batch.indices)
    with torch.no_grad(), autocast(amp, ranks.device):
        logits, class_logits = split_outputs(model(batch.images.to(ranks.device, torch.float32, non_blocking=True)))
    assert logits is not None, "a network without a map"
    masks = batch.masks.to(ranks.device, non_blocking=True)
    classes = None if class_logits is None else class_logits[:count]
    loss = combo_loss(logits[:count], masks[:count], loss_config, classes)["loss"]
    p8 = to_levels(torch.sigmoid(logits[:count].float()))
    histograms = None
    if _counts_on(ranks.device):
        found = [
            device_histograms(each, shards.grid(row), _truth(shards, row))
            for each, row in zip(p8, batch.indices.tolist(), strict=True)
        ]
        histograms = torch.stack(found).to("cpu", non_blocking=True)
    loss, p8 = (each.to("cpu", non_blocking=True) for each in (loss, p8))
    ready = None
    if ranks.device.type == "cuda":
        ready = torch.cuda.Event()
        ready.record()
    return _Predicted(batch, loss, p8, histograms, ready)


def _counts_on(device: torch.device) -> bool:
    """Return whether the device that predicts also computes the histograms. On a CPU, OpenCV takes half the time."""
    return device.type == "cuda"


def _truth(shards: Shards, row: int) -> Map | None:
    """Return a film's label on its grid; None without a pneumothorax, as for most films."""
    return shards.label(row) if shards.column("has_mask")[row] else None


@dataclass(frozen=True)
class _Candidate:
    """A film that may be drawn: its Dice at 0.5, table row, histograms, image and mask on the device, and p8 map."""

    dice: float
    index: int
    histograms: npt.NDArray[np.int64]
    image: torch.Tensor
    mask: torch.Tensor
    p8: npt.NDArray[np.uint8]

    @property
    def order(self) -> tuple[float, int]:
        return self.dice, self.index

    @property
    def planes(self) -> npt.NDArray[np.uint8]:
        """Grey image, label and p8 map, uint8 (3, size, size)."""
        return np.stack([_grey(self.image), np.asarray(self.mask.to(torch.uint8).cpu().numpy()), self.p8])

    def figures(self, triplet: Triplet) -> tuple[float, float, bool]:
        """Dice at 0.5, and Dice and call under a triplet."""
        counts = triplet_counts(self.histograms[None], triplet)
        return self.dice, float(counts.dice[0]), bool(counts.called[0])


class _FilmScores:
    """Histograms, losses and candidates for overlays of the films that one rank has seen."""

    def __init__(self, shards: Shards, shown: frozenset[int]) -> None:
        self._shards, self._shown = shards, shown
        self._histograms: list[npt.NDArray[np.int64]] = []
        self._losses: list[tuple[float, float, float]] = []
        self._fixed: list[_Candidate] = []
        self._worst: list[_Candidate] = []

    def add(self, predicted: _Predicted) -> None:
        """Add a predicted batch."""
        if predicted.ready is not None:
            predicted.ready.synchronize()
        batch = predicted.batch
        count, maps = len(batch.indices), predicted.p8.numpy()
        self._losses.append((float(batch.indices[0]), float(predicted.loss) * count, float(count)))
        for position, p8 in enumerate(maps):
            index = int(batch.indices[position])
            if predicted.histograms is not None:
                histograms = predicted.histograms[position].numpy()
            else:
                histograms = film_histograms(label_map(p8, self._shards.grid(index)), _truth(self._shards, index))
            self._histograms.append(np.concatenate([[index], histograms.reshape(-1)]))
            dice = float(triplet_counts(histograms[None], PLAIN).dice[0])
            is_worst = bool(histograms[1].any()) and self._is_among_worst((dice, index))
            if index in self._shown or is_worst:
                # Copies, because views would keep the whole batch in memory.
                image, mask = batch.images[position][0].clone(), batch.masks[position][0].clone()
                self._keep(_Candidate(dice, index, histograms.copy(), image, mask, p8.copy()), is_worst)

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
        triplet, _ = shared_best_triplet(histograms, ranks)
        # Summed in table order. In rank order, the number of ranks would show in the last bits.
        losses = np.concatenate(ranks.gather_array(np.array(self._losses, np.float64).reshape(-1, 3)))
        total, films = losses[np.argsort(losses[:, 0])][:, 1:].sum(axis=0)
        best, plain = triplet_counts(histograms, triplet).score(), triplet_counts(histograms, PLAIN).score()
        overlays = self._overlays(ranks, triplet)
        return Validation(triplet, best, plain, float(total / films), overlays, histograms.sum(axis=0))

    def _overlays(self, ranks: Ranks, triplet: Triplet) -> tuple[Overlay, ...]:
        """Return the overlays on rank 0, and none on the other ranks.

        The ranks agree on the worst films first, so that no picture is sent that is not shown.
        """
        facts = ranks.gather_array(np.array([each.order for each in self._worst], np.float64).reshape(-1, 2))
        worst = [int(index) for _, index in sorted(map(tuple, np.concatenate(facts).tolist()))[: len(self._shown)]]
        drawn = {each.index: each for each in (*self._fixed, *self._worst) if each.index in {*self._shown, *worst}}
        found = ranks.arrays_to_rank_0(np.array([*drawn], np.int64))
        stacks = ranks.arrays_to_rank_0(
            np.stack([each.planes for each in drawn.values()]) if drawn else np.zeros((0, 3, 0, 0), np.uint8)
        )
        figures = np.array([each.figures(triplet) for each in drawn.values()], np.float64).reshape(-1, 3)
        films = {
            int(index): (*plane, float(dice), float(best_dice), bool(called))
            for rows, stack, values in zip(found, stacks, ranks.arrays_to_rank_0(figures), strict=True)
            for index, plane, (dice, best_dice, called) in zip(rows, stack, values, strict=True)
        }
        if not ranks.is_main:
            return ()

        def drawn_as(name: str, index: int) -> Overlay:
            return Overlay(name, self._shards.text(index, "key"), *films[index])

        fixed = [drawn_as(f"fixed/{self._shards.text(i, 'key')}", i) for i in sorted(films.keys() & self._shown)]
        return *fixed, *(drawn_as(f"worst/{number + 1}", index) for number, index in enumerate(worst))


def _grey(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    plane = image.float()
    low, high = plane.min(), plane.max()
    return np.asarray(((plane - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8).cpu().numpy())
