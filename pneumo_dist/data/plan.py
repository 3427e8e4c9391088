"""Which sample, when, on which rank: pure functions of seed, stage, epoch, step, rank and world size."""

import zlib
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pneumo_dist.config import StageConfig, accumulation
from shards.errors import InputError
from shards.table import Shards

Indices = npt.NDArray[np.int64]

# Purposes keep the random streams of one seed apart.
_ORDER, _NEGATIVES = 1, 2


def stream(seed: int, *words: int | str) -> np.random.Generator:
    """Return a random stream that is a pure function of its words (texts enter by their CRC32)."""
    numbers = [word if isinstance(word, int) else zlib.crc32(word.encode()) for word in words]
    return np.random.default_rng([seed, *numbers])


@dataclass(frozen=True)
class FoldSplit:
    """Row numbers of the sample table for one fold, in table order."""

    train: Indices
    positives: Indices
    negatives: Indices
    validation: Indices


def split_fold(shards: Shards, fold: int, always_train: bool) -> FoldSplit:
    """Return the films that a stage trains and validates on.

    Raises InputError for a fold that does not exist.
    """
    known = shards.folds()
    if fold not in known:
        names = ", ".join(map(str, known)) or "none"
        raise InputError(f"{shards.folder}: no fold {fold}; its folds are {names} (--fold)")
    train, validation = shards.fold_rows(fold, always_train)
    positive = shards.column("has_mask")[train].astype(bool)
    return FoldSplit(train, train[positive], train[~positive], validation)


@dataclass(frozen=True)
class EpochPlan:
    """Order of the training films of a stage."""

    split: FoldSplit
    stage: StageConfig
    seed: int
    world: int

    @property
    def length(self) -> int:
        """Films drawn per epoch: all P positives plus round(P·(1−r)/r) negatives, or every film once."""
        return len(self.split.positives) + self._negatives if self._sampled else len(self.split.train)

    @property
    def steps(self) -> int:
        """Optimizer steps per epoch: floor(n / global batch). Raises InputError where not one batch is full."""
        steps = self.length // self.stage.global_batch
        if steps == 0:
            raise InputError(
                f"stage {self.stage.name}: an epoch has {self.length} films, fewer than global_batch "
                f"{self.stage.global_batch}; lower it"
            )
        return steps

    @property
    def accumulation(self) -> int:
        return accumulation(self.stage, self.world)

    @property
    def _sampled(self) -> bool:
        return self.stage.sample_rate is not None and len(self.split.positives) > 0

    @property
    def _negatives(self) -> int:
        rate = self.stage.sample_rate
        assert rate is not None
        wanted = round(len(self.split.positives) * (1 - rate) / rate)
        return wanted if len(self.split.negatives) else 0

    def order(self, epoch: int) -> Indices:
        """Return the table rows of an epoch in training order, the same for every world size."""
        films = self.split.train
        if self._sampled:
            films = np.concatenate([self.split.positives, self._draw_negatives(epoch)])
        return np.asarray(stream(self.seed, _ORDER, self.stage.name, epoch).permutation(films), np.int64)

    def _draw_negatives(self, epoch: int) -> Indices:
        """Take the epoch's stretch of an endless chain of permutations: each negative is seen equally often."""
        negatives, count = self.split.negatives, self._negatives
        if count == 0:
            return negatives[:0]
        start = epoch * count
        first, last = start // len(negatives), (start + count - 1) // len(negatives)
        chain = np.concatenate(
            [
                stream(self.seed, _NEGATIVES, self.stage.name, cycle).permutation(negatives)
                for cycle in range(first, last + 1)
            ]
        )
        offset = start - first * len(negatives)
        return np.asarray(chain[offset : offset + count], np.int64)

    def micro_batches(self, rank: int, epoch: int, step: int) -> Iterator[tuple[int, Indices]]:
        """Yield (epoch, table rows) of one rank, micro-step by micro-step, from a position to the stage's end.

        In a global batch, micro-step m takes the m-th stretch of world x micro_batch films and rank r its r-th part.
        """
        micro, world = self.stage.micro_batch, self.world
        for current in range(epoch, self.stage.epochs):
            order = self.order(current)
            for position in range(step if current == epoch else 0, self.steps):
                for part in range(self.accumulation):
                    start = position * self.stage.global_batch + (part * world + rank) * micro
                    yield current, order[start : start + micro]


def fixed_batches(indices: Indices, batch: int) -> list[Indices]:
    """Return rows in fixed batches in table order; only the last may be short. Every row stands in one batch."""
    return [indices[start : start + batch] for start in range(0, len(indices), batch)]
