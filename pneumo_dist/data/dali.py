"""The DALI graph: decode, one resampling, tone, normalise; fed with bytes and parameters by an index callable.

The graph is a pure function of what it is fed, so order and position live in the plan, not in reader state.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali import math as dali_math

from pneumo_dist.config import AugmentConfig, DataConfig, StageConfig
from pneumo_dist.data.augment import IDENTITY, Parameters, draw, matrix
from pneumo_dist.data.plan import EpochPlan, Indices, fixed_batches
from shards.table import Shards

Fed = tuple[npt.NDArray[np.generic], ...]
Feed = Callable[[types.SampleInfo], Fed]


@dataclass(frozen=True)
class Batch:
    """`images` float32 (n, channels, size, size), normalised; `masks` float32 (n, 1, size, size) of 0 and 1;
    `indices` table rows of the n films."""

    images: torch.Tensor
    masks: torch.Tensor
    indices: Indices


@dataclass(frozen=True)
class Input:
    """What the graph makes of a film: side in pixels, channels, normalisation, device (None is the CPU)."""

    size: int
    channels: int
    data: DataConfig
    device_id: int | None = None


def train_batches(
    shards: Shards, plan: EpochPlan, augment: AugmentConfig, spec: Input, rank: int, epoch: int, step: int
) -> Iterator[Batch]:
    """Yield one rank's augmented micro-batches from (epoch, step) to the end of the stage.

    Raises CorruptSample, naming shard and key, for a member that fails its CRC32.
    """
    pending: dict[int, tuple[int, Indices]] = {}
    source = plan.micro_batches(rank, epoch, step)

    def feed(info: types.SampleInfo) -> Fed:
        if info.iteration not in pending:
            pending[info.iteration] = next(source)
        current, chosen = pending[info.iteration]
        index = int(chosen[info.idx_in_batch])
        parameters = draw(augment, plan.seed, current, str(shards.column("key")[index]))
        return _fed(shards, index, spec.size, parameters)

    pipeline = _pipeline(feed, plan.stage.micro_batch, spec, with_mask=True)
    iteration = 0
    while True:
        try:
            images, masks = pipeline.run()
        except StopIteration:
            return
        yield Batch(_tensor(images), _tensor(masks), pending.pop(iteration)[1])
        iteration += 1


class EvalLoader:
    """Films without augmentation in fixed batches; one pipeline serves every pass.

    A short last batch is filled up with its last film inside the graph and cut after it, so that every forward pass
    has one size.
    """

    def __init__(self, shards: Shards, batches: list[Indices], batch: int, spec: Input, with_mask: bool) -> None:
        self._batches = batches
        self._with_mask = with_mask
        self._shards = shards
        self._spec = spec
        self._batch = batch
        self._runs = 0
        self._pipeline = _pipeline(self._feed, batch, spec, with_mask) if batches else None

    def _feed(self, info: types.SampleInfo) -> Fed:
        chosen = self._batches[info.iteration % len(self._batches)]
        index = int(chosen[min(info.idx_in_batch, len(chosen) - 1)])
        return _fed(self._shards, index, self._spec.size, IDENTITY, self._with_mask)

    def __iter__(self) -> Iterator[Batch]:
        """Yield each batch once, full size; `indices` tells how many of its films count."""
        while self._batches and self._runs % len(self._batches):
            self._run()  # what is left of a pass that was left in the middle
        for chosen in self._batches:
            images, *masks = self._run()
            yield Batch(_tensor(images), _tensor(masks[0]) if masks else torch.empty(0), chosen)

    def _run(self) -> tuple[Any, ...]:
        assert self._pipeline is not None
        self._runs += 1
        return tuple(self._pipeline.run())


def eval_loader(
    shards: Shards, indices: Indices, stage: StageConfig, spec: Input, rank: int, world: int, with_mask: bool
) -> EvalLoader:
    """Return the loader of one rank: whole fixed batches of the films, dealt to the ranks in turn."""
    batches = fixed_batches(indices, stage.eval_batch)[rank::world]
    return EvalLoader(shards, batches, stage.eval_batch, spec, with_mask)


def _fed(shards: Shards, index: int, size: int, parameters: Parameters, with_mask: bool = True) -> Fed:
    """Return warp (2, 3) and tone (2,) as float32, the encoded image and, if asked for, the encoded mask."""
    members = ("image", "mask") if with_mask else ("image",)
    grid = shards.grid(index)
    warp = matrix(parameters, size, grid.stored, grid.origin)
    tone = np.array([parameters.gain, parameters.offset * 255.0], np.float32)
    encoded = [np.frombuffer(shards.read(index, member), np.uint8) for member in members]
    return warp.astype(np.float32), tone, *encoded


def _pipeline(feed: Feed, batch: int, spec: Input, with_mask: bool) -> Any:
    pipeline = _graph(
        feed,
        spec,
        with_mask,
        batch_size=batch,
        num_threads=spec.data.threads,
        device_id=spec.device_id,
        prefetch_queue_depth=spec.data.prefetch,
    )
    pipeline.build()
    return pipeline


@pipeline_def  # type: ignore[untyped-decorator]
def _graph(feed: Feed, spec: Input, with_mask: bool) -> Any:
    kinds, dimensions = [types.FLOAT, types.FLOAT, types.UINT8, types.UINT8], [2, 1, 1, 1]
    count = 4 if with_mask else 3
    warp, tone, encoded, *masks = fn.external_source(
        feed, num_outputs=count, batch=False, dtype=kinds[:count], ndim=dimensions[:count]
    )
    decoder = "cpu" if spec.device_id is None else "mixed"
    size = (float(spec.size), float(spec.size))
    image = fn.decoders.image(encoded, device=decoder, output_type=types.GRAY)
    image = fn.warp_affine(image, matrix=warp, size=size, fill_value=0, dtype=types.FLOAT)
    tone = tone if spec.device_id is None else tone.gpu()
    image = dali_math.clamp(image * tone[0] + tone[1], 0.0, 255.0)
    image = fn.crop_mirror_normalize(
        image if spec.channels == 1 else fn.cat(image, image, image, axis=2),
        dtype=types.FLOAT,
        mean=[255.0 * value for value in spec.data.mean[: spec.channels]],
        std=[255.0 * value for value in spec.data.std[: spec.channels]],
        output_layout="CHW",
    )
    if not with_mask:
        return image
    mask = fn.decoders.image(masks[0], device=decoder, output_type=types.GRAY)
    mask = fn.warp_affine(mask, matrix=warp, size=size, fill_value=0, interp_type=types.INTERP_NN)
    return image, fn.transpose(fn.cast(mask > 127, dtype=types.FLOAT), perm=[2, 0, 1])


def _tensor(outputs: Any) -> torch.Tensor:
    """Copy a DALI output out of the pipeline's buffers, which the next run overwrites."""
    return torch.from_dlpack(outputs.as_tensor()).clone()
