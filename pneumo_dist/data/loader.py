"""Batches of films in the plan's order, from the loader that the config names."""

import itertools
from collections import deque
from collections.abc import Iterable, Iterator

import cv2

from pneumo_dist.config.experiment import StageConfig
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.plan import EpochPlan, Indices, fixed_batches
from shards.dataset.table import Shards


def train_batches(
    shards: Shards, plan: EpochPlan, input_spec: InputSpec, rank: int, epoch: int, step: int
) -> Iterator[Batch]:
    """Yield one rank's augmented micro-batches from (epoch, step) to the end of the stage.

    Raises CorruptSample or InputError, naming shard, key, epoch and step, for a film that cannot be read or decoded.
    """
    reader = FilmReader(shards, input_spec, with_mask=True, augment=plan.stage.augment, seed=plan.seed)

    def requests() -> Iterator[list[FilmRequest]]:
        for current, position, rows in plan.micro_batches(rank, epoch, step):
            yield [FilmRequest(int(index), current, position) for index in rows]

    return make_batches(reader, requests(), plan.stage.micro_batch)


class EvalLoader:
    """Fixed batches of films without augmentation, iterable any number of times; one pipeline serves all passes."""

    def __init__(self, reader: FilmReader, batches: list[Indices], batch: int) -> None:
        self._passes = eval_batches(reader, itertools.cycle(batches), batch)
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


def eval_batches(reader: FilmReader, batches: Iterable[Indices], batch: int) -> Iterator[Batch]:
    """Yield the given batches of films; short ones are filled up with their last film to one size."""
    counted: deque[Indices] = deque()

    def requests() -> Iterator[list[FilmRequest]]:
        for rows in batches:
            counted.append(rows)
            yield [FilmRequest(int(rows[min(position, len(rows) - 1)])) for position in range(batch)]

    for full in make_batches(reader, requests(), batch):
        yield Batch(full.images, full.masks, counted.popleft())


def eval_loader(
    shards: Shards, indices: Indices, stage: StageConfig, input_spec: InputSpec, rank: int, world: int, with_mask: bool
) -> EvalLoader:
    """Return the loader of one rank. Fixed batches of the films are dealt whole to the ranks in turn."""
    batches = fixed_batches(indices, stage.eval_batch)[rank::world]
    return EvalLoader(FilmReader(shards, input_spec, with_mask), batches, stage.eval_batch)


def make_batches(reader: FilmReader, requests: Iterator[list[FilmRequest]], batch: int) -> Iterator[Batch]:
    """Yield the requested batches, each of `batch` films, from the loader that the config names."""
    # The loaders have their own threads and processes; those of OpenCV would not survive a fork either.
    cv2.setNumThreads(0)
    # The loaders' libraries are large, and not every machine has all of them.
    device_id = reader.input_spec.device_id
    match reader.input_spec.data.loader:
        case "dali":
            from pneumo_dist.data.dali import dali_batches

            batches = dali_batches(reader, requests, batch)
            return batches if device_id is None else _while_training(batches, device_id)
        case "torch":
            from pneumo_dist.data.torch_loader import torch_batches

            return torch_batches(reader, requests)
        case "synthetic":
            from pneumo_dist.data.synthetic import synthetic_batches

            return synthetic_batches(reader, requests)


def _while_training(batches: Iterator[Batch], device_id: int) -> Iterator[Batch]:
    """Prefetch batches from the pipeline in a thread while the GPU works on earlier ones.

    Python takes up to a millisecond for each film, to draw its parameters, read its bytes and compute its map. Without
    the thread the GPU would idle between steps.
    """
    import torch

    from pneumo_dist.data.prefetch import prefetch

    def prepare() -> None:
        torch.cuda.set_device(device_id)
        # A separate stream: the training stream must not wait for films of later batches.
        torch.cuda.set_stream(torch.cuda.Stream(device_id))

    def finished() -> Iterator[Batch]:
        for batch in batches:
            torch.cuda.current_stream().synchronize()
            yield batch

    return prefetch(finished(), 1, prepare)
