"""Batches of films in the plan's order, by whichever loader the config names."""

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

    def listed() -> Iterator[list[FilmRequest]]:
        for current, position, rows in plan.micro_batches(rank, epoch, step):
            yield [FilmRequest(int(index), current, position) for index in rows]

    return make_batches(reader, listed(), plan.stage.micro_batch)


class EvalLoader:
    """Films without augmentation in fixed batches, as often as they are asked for; one pipeline serves every pass."""

    def __init__(self, reader: FilmReader, batches: list[Indices], batch: int) -> None:
        self._passes = eval_batches(reader, itertools.cycle(batches), batch)
        self._length, self._left = len(batches), 0

    def __iter__(self) -> Iterator[Batch]:
        """Yield each batch once, full size; its `indices` are the films that count."""
        while self._left:
            self._next()  # what is left of a pass that was left in the middle
        self._left = self._length
        for _ in range(self._length):
            yield self._next()

    def _next(self) -> Batch:
        self._left -= 1
        return next(self._passes)


def eval_batches(reader: FilmReader, batches: Iterable[Indices], batch: int) -> Iterator[Batch]:
    """Yield films in the given batches; a short one is filled up with its last film, so that all have one size."""
    counted: deque[Indices] = deque()

    def requests() -> Iterator[list[FilmRequest]]:
        for rows in batches:
            counted.append(rows)
            yield [FilmRequest(int(rows[min(place, len(rows) - 1)])) for place in range(batch)]

    for made in make_batches(reader, requests(), batch):
        yield Batch(made.images, made.masks, counted.popleft())


def eval_loader(
    shards: Shards, indices: Indices, stage: StageConfig, input_spec: InputSpec, rank: int, world: int, with_mask: bool
) -> EvalLoader:
    """Return the loader of one rank: whole fixed batches of the films, dealt to the ranks in turn."""
    batches = fixed_batches(indices, stage.eval_batch)[rank::world]
    return EvalLoader(FilmReader(shards, input_spec, with_mask), batches, stage.eval_batch)


def make_batches(reader: FilmReader, listed: Iterator[list[FilmRequest]], batch: int) -> Iterator[Batch]:
    """Yield the listed batches, each of `batch` films, by the loader that the config names."""
    # The loaders' own threads and processes are the parallelism; OpenCV's would also not survive a fork.
    cv2.setNumThreads(0)
    # Each loader's library is large, and a machine may have only one of them.
    device_id = reader.input_spec.device_id
    match reader.input_spec.data.loader:
        case "dali":
            from pneumo_dist.data.dali import dali_batches

            batches = dali_batches(reader, listed, batch)
            return batches if device_id is None else _while_training(batches, device_id)
        case "torch":
            from pneumo_dist.data.torch_loader import torch_batches

            return torch_batches(reader, listed)
        case "synthetic":
            from pneumo_dist.data.synthetic import synthetic_batches

            return synthetic_batches(reader, listed)


def _while_training(batches: Iterator[Batch], device_id: int) -> Iterator[Batch]:
    """Yield batches that a thread asks the pipeline for while the GPU is at work on those before.

    Each film takes Python up to a millisecond: its draw, its bytes, its map. Between two steps the GPU would idle.
    """
    import torch

    from pneumo_dist.data.prefetch import prefetch

    def prepare() -> None:
        torch.cuda.set_device(device_id)
        # Of its own: the stream that trains must not wait for films that it has not asked for.
        torch.cuda.set_stream(torch.cuda.Stream(device_id))  # type: ignore[no-untyped-call]

    def finished() -> Iterator[Batch]:
        for batch in batches:
            torch.cuda.current_stream().synchronize()
            yield batch

    return prefetch(finished(), 1, prepare)
