"""The order of films on each rank: pure functions of seed, stage, epoch, step, rank and world size."""

import math
import zlib
from bisect import bisect_left
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, partial

import numpy as np
import numpy.typing as npt

from pneumo_dist.config.stage import StageConfig, accumulation
from shards.dataset.table import Shards
from shards.errors import InputError

Indices = npt.NDArray[np.int64]

# Purposes separate the random streams of one seed; augment.py uses 3.
_ORDER, _NEGATIVES, _POSITIVES, _UNLABELLED = 1, 2, 4, 5


def stream(seed: int, *words: int | str) -> np.random.Generator:
    """Return a random stream that is a pure function of seed and words (strings enter by their CRC32)."""
    numbers = [word if isinstance(word, int) else zlib.crc32(word.encode()) for word in words]
    return np.random.default_rng([seed, *numbers])


def stretch(films: Indices, start: int, count: int, seed: int, *words: int | str) -> Indices:
    """Return `count` films from position `start` of an endless chain of permutations of `films`.

    The chain is a pure function of seed and words. From its start, each run of len(films) positions holds every film
    once, so the counts of films in successive stretches differ by at most one. `films` may be empty only for count 0.
    """
    if count == 0:
        return films[:0]
    first, last = start // len(films), (start + count - 1) // len(films)
    chain = np.concatenate([stream(seed, *words, cycle).permutation(films) for cycle in range(first, last + 1)])
    offset = start - first * len(films)
    return np.asarray(chain[offset : offset + count], np.int64)


def size_classes(areas: Indices, count: int) -> Indices:
    """Return each film's size class 0..count-1, small to large, (n,), for mask areas in pixels, all above 0.

    The classes are equally wide in log area between the smallest and the largest area. An area on an edge belongs to
    the class above it. Equal areas all belong to the last class.
    """
    if len(areas) == 0:
        return areas[:0]
    low, high = int(areas.min()), int(areas.max())
    # log(a / low) / log(high / low) >= c / count, in integers: logarithms differ in their last bit between CPUs, so
    # ranks could disagree on a film at an edge.
    edges = [high**c * low**count for c in range(1, count)]
    factors = [low**c for c in range(1, count)]
    classes = [
        sum(area**count * factor >= edge for factor, edge in zip(factors, edges, strict=True))
        for area in areas.tolist()
    ]
    return np.array(classes, np.int64)


@dataclass(frozen=True)
class FoldSplit:
    """Row numbers of the sample table for one fold, in table order.

    `areas` are the mask areas of `positives` in label-grid pixels. `unlabelled` are the films without labels that the
    fold may learn from.
    """

    train: Indices
    positives: Indices
    negatives: Indices
    validation: Indices
    areas: Indices
    unlabelled: Indices = field(default_factory=lambda: np.zeros(0, np.int64))


def split_fold(shards: Shards, fold: int, always_train: bool) -> FoldSplit:
    """Return the films that a stage trains and validates on. Raises InputError for a fold that does not exist."""
    known = shards.folds()
    if fold not in known:
        names = ", ".join(map(str, known)) or "none"
        raise InputError(f"{shards.folder}: no fold {fold}; its folds are {names} (--fold)")
    train, validation = shards.fold_rows(fold, always_train)
    positive = shards.column("has_mask")[train].astype(bool)
    positives = train[positive]
    areas, unlabelled = shards.column("mask_area")[positives], shards.unlabelled_rows(fold)
    return FoldSplit(train, positives, train[~positive], validation, areas, unlabelled)


def check_validation(shards: Shards, fold: int) -> None:
    """Raise InputError for a fold without a positive film: its Dice would not measure detection."""
    _, validation = shards.fold_rows(fold, always_train=False)
    if not shards.column("has_mask")[validation].any():
        films = f"{len(validation)} film{'s' * (len(validation) != 1)}"
        raise InputError(
            f"{shards.folder}: no film of fold {fold} ({films}) has a pneumothorax, so no epoch can be chosen on it; "
            f"give other folds with 'python -m shards finalize {shards.folder}' and --folds, --seed or --groups, or "
            "train all the same with --allow-empty-fold"
        )


@dataclass(frozen=True)
class EpochPlan:
    """The order of a stage's training films; epochs are counted from 0.

    A stage that learns from films without labels has a fixed number of them in each micro-batch, drawn from an endless
    chain of permutations.

    Raises InputError, naming the epoch, if an epoch has fewer films than one global batch, and for a stage that needs
    films without labels where there are none.
    """

    split: FoldSplit
    stage: StageConfig
    seed: int
    world: int

    def __post_init__(self) -> None:
        if self.stage.unlabelled is not None and not len(self.split.unlabelled):
            raise InputError(
                f"stage {self.stage.name}: unlabelled needs films without labels, and the shards have none for this "
                "fold; build them with --unlabelled-dicom or --unlabelled-images"
            )
        # The share of positives changes in one direction only: the first or the last epoch is the shortest.
        epoch = 0 if self.steps(0) == 0 else self._first_from(0, lambda later: self.steps(later) == 0)
        if epoch < self.stage.epochs:
            # Counted from 1, as in the progress bar.
            raise InputError(
                f"stage {self.stage.name}: epoch {epoch + 1} has {self.length(epoch)} films, fewer than "
                f"{self._batch_in_words}; lower it"
            )

    def rate(self, epoch: int) -> float | None:
        """Return the configured share of positives in an epoch, or None if an epoch takes every film.

        It moves from sample_rate in the first epoch to sample_rate_end in the last; a single epoch has sample_rate.
        """
        start, end, epochs = self.stage.sample_rate, self.stage.sample_rate_end, self.stage.epochs
        if start is None or end is None or epochs == 1:
            return start
        if epoch >= epochs - 1:
            return end  # exactly: the sum below may differ in its last bit
        progress = epoch / (epochs - 1)
        if self.stage.sample_rate_schedule == "cosine":
            progress = (1 - math.cos(math.pi * progress)) / 2
        return start + (end - start) * progress

    def effective_rate(self, epoch: int) -> float:
        """Return the share of positives among the films of an epoch."""
        return len(self.split.positives) / self.length(epoch)

    def length(self, epoch: int) -> int:
        """Return the number of films with labels in an epoch.

        These are P positives and round(P·(1−r)/r) negatives, or every film once.
        """
        if not self._sampled:
            return len(self.split.train)
        return len(self.split.positives) + self._negatives(epoch)

    def steps(self, epoch: int) -> int:
        """Return the number of optimizer steps in an epoch: floor(films with labels / those in a global batch)."""
        return self.length(epoch) // self.stage.labelled_batch

    @property
    def _batch_in_words(self) -> str:
        stage = self.stage
        if stage.unlabelled is None:
            return f"global_batch {stage.global_batch}"
        return f"the {stage.labelled_batch} with labels in global_batch {stage.global_batch}"

    @property
    def total_steps(self) -> int:
        """Number of optimizer steps in all epochs of the stage."""
        total, epoch = 0, 0
        while epoch < self.stage.epochs:
            later = self._first_from(epoch, partial(self._differ, epoch))
            total, epoch = total + self.steps(epoch) * (later - epoch), later
        return total

    def _differ(self, epoch: int, other: int) -> bool:
        return self.steps(epoch) != self.steps(other)

    def _first_from(self, start: int, condition: Callable[[int], bool]) -> int:
        """Return the first epoch from `start` for which a condition holds, or `epochs` if it never does.

        Once it holds, it has to hold for all later epochs: the search is a bisection, as a stage may have millions.
        """
        return start + bisect_left(range(start, self.stage.epochs), True, key=condition)

    @property
    def accumulation(self) -> int:
        return accumulation(self.stage, self.world)

    @property
    def _sampled(self) -> bool:
        return self.stage.sample_rate is not None and len(self.split.positives) > 0

    def _negatives(self, epoch: int) -> int:
        rate = self.rate(epoch)
        assert rate is not None
        negatives = round(len(self.split.positives) * (1 - rate) / rate)
        return negatives if len(self.split.negatives) else 0

    def order(self, epoch: int) -> Indices:
        """Return the rows of an epoch's films with labels in training order, the same for every world size."""
        films = self.split.train
        if self._sampled:
            films = np.concatenate([self._draw_positives(epoch), self._draw_negatives(epoch)])
        return np.asarray(stream(self.seed, _ORDER, self.stage.name, epoch).permutation(films), np.int64)

    def _draw_positives(self, epoch: int) -> Indices:
        """Draw every positive once, or P positives in equal numbers from the size classes that are not empty."""
        if self.stage.size_classes is None:
            return self.split.positives
        share, extra = divmod(len(self.split.positives), len(self._classes))
        drawn = []
        for number, films in enumerate(self._classes):
            count = share + (number < extra)
            drawn.append(stretch(films, epoch * count, count, self.seed, _POSITIVES, self.stage.name, number))
        return np.concatenate(drawn)

    @cached_property
    def _classes(self) -> list[Indices]:
        """The positives of each size class that holds any, small to large."""
        assert self.stage.size_classes is not None
        classes = size_classes(self.split.areas, self.stage.size_classes)
        return [self.split.positives[classes == number] for number in np.unique(classes)]

    def _draw_negatives(self, epoch: int) -> Indices:
        """Draw the stretch of the negatives' chain that follows the previous epoch's."""
        start = sum(map(self._negatives, range(epoch)))
        return stretch(self.split.negatives, start, self._negatives(epoch), self.seed, _NEGATIVES, self.stage.name)

    def micro_batches(self, rank: int, epoch: int, step: int) -> Iterator[tuple[int, int, Indices]]:
        """Yield (epoch, step, table rows) of one rank for each micro-step, from a position to the end of the stage.

        In a global batch, micro-step m takes the m-th stretch of world x micro_batch films, and rank r its r-th part.
        Films without labels come last in a micro-batch.
        """
        stage, world = self.stage, self.world
        without = stage.unlabelled_films
        labelled = stage.micro_batch - without
        for current in range(epoch, stage.epochs):
            order, extra = self.order(current), self._unlabelled_order(current)
            for position in range(step if current == epoch else 0, self.steps(current)):
                for micro_step in range(self.accumulation):
                    # The number of the micro-batch in its epoch, in the order of a single rank.
                    number = (position * self.accumulation + micro_step) * world + rank
                    start, first = number * labelled, number * without
                    rows = order[start : start + labelled]
                    yield current, position, np.concatenate([rows, extra[first : first + without]]) if without else rows

    def _unlabelled_order(self, epoch: int) -> Indices:
        """Return the rows of an epoch's films without labels, which follow those of the epoch before."""
        if self.stage.unlabelled is None:
            return self.split.unlabelled[:0]
        batch = self.stage.global_batch - self.stage.labelled_batch
        start = sum(map(self.steps, range(epoch))) * batch
        return stretch(self.split.unlabelled, start, self.steps(epoch) * batch, self.seed, _UNLABELLED, self.stage.name)


def fixed_batches(indices: Indices, batch: int) -> list[Indices]:
    """Split rows into fixed batches, in order; only the last may be short."""
    assert batch >= 1, f"batches of {batch} films"
    return [indices[start : start + batch] for start in range(0, len(indices), batch)]
