"""Batches of films in the plan's order, from the loader that the config names."""

import itertools
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import cv2

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.plan import EpochPlan, Indices, fixed_batches
from pneumo_dist.maps.labels import SoftLabels
from shards.dataset.table import Shards


def train_batches(
    shards: Shards,
    plan: EpochPlan,
    input_spec: InputSpec,
    rank: int,
    epoch: int,
    step: int,
    maps: SoftLabels | None = None,
) -> Iterator[Batch]:
    """Yield one rank's augmented micro-batches from (epoch, step) to the end of the stage.

    If the stage has an eval_image_size, they are crops of the input's size from films of that side. `maps` are those
    that the stage learns from.

    Raises CorruptSample or InputError, naming shard, key, epoch and step, for a film that cannot be read or decoded.
    """
    stage = plan.stage
    crop_of, has_targets = stage.eval_image_size, stage.has_soft_labels
    reader = FilmReader(shards, input_spec, True, stage.augment, plan.seed, crop_of, has_targets, maps)
    return make_batches(reader, _TrainRequests(plan, rank, epoch, step), stage.micro_batch)


@dataclass(frozen=True)
class _TrainRequests:
    """The films of one rank's micro-batches from (epoch, step) to the end of the stage."""

    plan: EpochPlan
    rank: int
    epoch: int
    step: int

    def __iter__(self) -> Iterator[list[FilmRequest]]:
        for current, position, rows in self.plan.micro_batches(self.rank, self.epoch, self.step):
            yield [FilmRequest(int(index), current, position) for index in rows]


class EvalLoader:
    """Fixed batches of films without augmentation, iterable any number of times; one pipeline serves all passes."""

    def __init__(self, reader: FilmReader, batches: list[Indices], batch: int) -> None:
        self._passes = eval_batches(reader, batches, batch, is_endless=True)
        self._length, self._left = len(batches), 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield each batch once, at full size; its `indices` are the films that count."""
        while self._left:
            self._next()  # the rest of an unfinished pass
        self._left = self._length
        for _ in range(self._length):
            yield self._next()

    def _next(self) -> Batch:
        self._left -= 1
        return next(self._passes)


def eval_batches(
    reader: FilmReader, batches: Iterable[Indices], batch: int, is_endless: bool = False
) -> Iterator[Batch]:
    """Yield the given batches of films, over and over if `is_endless`.

    Short ones are filled up with their last film to one size.
    """
    requests = _EvalRequests(list(batches), batch, is_endless)
    for rows, full in zip(requests.rows(), make_batches(reader, requests, batch), strict=False):
        yield Batch(full.images, full.masks, rows)


@dataclass(frozen=True)
class _EvalRequests:
    """Films of fixed batches, without augmentation, each batch filled up to one size."""

    batches: list[Indices]
    batch: int
    is_endless: bool

    def rows(self) -> Iterator[Indices]:
        """Yield the rows of the batches that count."""
        return itertools.cycle(self.batches) if self.is_endless else iter(self.batches)

    def __iter__(self) -> Iterator[list[FilmRequest]]:
        for rows in self.rows():
            yield [FilmRequest(int(rows[min(position, len(rows) - 1)])) for position in range(self.batch)]


def eval_loader(
    shards: Shards, indices: Indices, stage: StageConfig, input_spec: InputSpec, rank: int, world: int, with_mask: bool
) -> EvalLoader:
    """Return the loader of one rank. Fixed batches of the films are dealt whole to the ranks in turn."""
    batches = fixed_batches(indices, stage.eval_batch)[rank::world]
    return EvalLoader(FilmReader(shards, input_spec, with_mask), batches, stage.eval_batch)


def make_batches(reader: FilmReader, requests: Iterable[list[FilmRequest]], batch: int) -> Iterator[Batch]:
    """Yield the requested batches, each of `batch` films, from the loader that the config names.

    `requests` is picklable, because a loader may iterate over it in another process.
    """
    # The loaders have their own threads and processes; those of OpenCV would not survive a fork either.
    cv2.setNumThreads(0)
    # The loaders' libraries are large, and not every machine has all of them.
    match reader.input_spec.data.loader:
        case "dali":
            from pneumo_dist.data.dali import dali_batches

            return dali_batches(reader, requests, batch)
        case "torch":
            from pneumo_dist.data.torch_loader import torch_batches

            return torch_batches(reader, requests)
        case "synthetic":
            from pneumo_dist.data.synthetic import synthetic_batches

            return synthetic_batches(reader, requests)
