"""Validation: exact Dice on the label grid, each film once, whatever the number of ranks."""

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from pneumo_dist.config import LossConfig
from pneumo_dist.data.dali import EvalLoader
from pneumo_dist.distributed import Ranks
from pneumo_dist.inference.postprocess import label_map, to_p8
from pneumo_dist.losses import combo_loss
from pneumo_dist.metrics import Histograms, Score, Triplet, best_triplet, film_histograms, score
from pneumo_dist.precision import Resolved, autocast
from shards import rle
from shards.table import Shards

PLAIN = Triplet(top=0.5, area=0, bottom=0.5)


@dataclass(frozen=True)
class Overlay:
    """A film to look at: grey image, label and p8 map, all uint8 (size, size) at network resolution."""

    key: str
    image: npt.NDArray[np.uint8]
    label: npt.NDArray[np.uint8]
    p8: npt.NDArray[np.uint8]


@dataclass(frozen=True)
class Validation:
    """Best triplet over the fold (exact search), its score, the score at 0.5, and the mean loss over films."""

    triplet: Triplet
    best: Score
    plain: Score
    loss: float
    overlays: tuple[Overlay, ...]


def truth_mask(shards: Shards, index: int) -> npt.NDArray[np.uint8]:
    """Return a film's label on its own grid, from the table's RLE and never from a resized mask."""
    grid = shards.grid(index)
    return rle.decode(str(shards.column("rle")[index]), grid.height, grid.width)


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
    of `shown` come back as overlays.
    """
    model.eval()
    found: list[npt.NDArray[np.int64]] = []
    pictures: list[npt.NDArray[np.uint8]] = []
    names: list[int] = []
    loss = np.zeros(2)
    batches = iter(loader)
    for _ in range(rounds):
        if stopping():
            return None
        batch = next(batches, None)
        if batch is None:
            continue
        count = len(batch.indices)
        with torch.no_grad(), autocast(amp, ranks.device):
            logits = model(batch.images.to(ranks.device, non_blocking=True))
        masks = batch.masks.to(ranks.device)
        loss += [float(combo_loss(logits[:count], masks[:count], loss_config)["loss"]) * count, count]
        for position, p8 in enumerate(to_p8(torch.sigmoid(logits[:count].float()))):
            index = int(batch.indices[position])
            histograms = film_histograms(label_map(p8, shards.grid(index)), truth_mask(shards, index))
            found.append(np.concatenate([[index], histograms.reshape(-1)]))
            if index in shown:
                names.append(index)
                pictures.append(np.stack([_grey(batch.images[position]), _binary(batch.masks[position]), p8]))
    model.train()
    histograms = gather_histograms(found, ranks)
    overlays = _gather_overlays(names, pictures, shards, ranks)
    triplet, _ = best_triplet(histograms)
    total, films = ranks.sum(loss)
    return Validation(triplet, score(histograms, triplet), score(histograms, PLAIN), float(total / films), overlays)


def gather_histograms(found: list[npt.NDArray[np.int64]], ranks: Ranks) -> Histograms:
    """Return every rank's films as int64 (n, 2, 256) in table order; entries are [row number, 512 counts]."""
    mine = np.stack(found) if found else np.zeros((0, 513), np.int64)
    rows = np.concatenate(ranks.gather_array(mine))
    rows = rows[np.argsort(rows[:, 0], kind="stable")]
    assert len(np.unique(rows[:, 0])) == len(rows), "a film was scored twice"
    return np.asarray(rows[:, 1:].reshape(-1, 2, 256))


def _gather_overlays(
    names: list[int], pictures: list[npt.NDArray[np.uint8]], shards: Shards, ranks: Ranks
) -> tuple[Overlay, ...]:
    numbers = np.concatenate(ranks.gather_array(np.array(names, np.int64)))
    stacks = ranks.gather_array(np.stack(pictures) if pictures else np.zeros((0, 3, 0, 0), np.uint8))
    planes = [stack for part in stacks for stack in part]
    keys = shards.column("key")
    return tuple(
        Overlay(str(keys[number]), *planes[position])
        for position, number in sorted(enumerate(numbers.tolist()), key=lambda entry: entry[1])
    )


def _grey(image: torch.Tensor) -> npt.NDArray[np.uint8]:
    plane = image[0].float()
    low, high = plane.min(), plane.max()
    return np.asarray(((plane - low) / (high - low).clamp(min=1e-6) * 255).to(torch.uint8).cpu().numpy())


def _binary(mask: torch.Tensor) -> npt.NDArray[np.uint8]:
    return np.asarray(mask[0].to(torch.uint8).cpu().numpy())
