"""The DALI graph: decode, one resampling, CLAHE, tone, noise, normalise; fed by an index callable.

The graph is a pure function of bytes and parameters, so order and position live in the plan, not in reader state. It
is one graph for CPU and GPU but for the resampling: DALI's remap is for GPUs, and its warp on the CPU takes ten times
as long as OpenCV's.
"""

import contextlib
import mmap
import warnings
import weakref
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from nvidia.dali import fn, pipeline_def, types
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import do_not_convert

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.data.augment import Parameters
from pneumo_dist.data.dali_gpu import canvas_of, warped_by_coarse_map, warped_by_matrix
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest
from pneumo_dist.data.geometry import coarse_map, matrix
from pneumo_dist.data.resample import NOISE_LEVEL, by_coarse_map, by_matrix, noise_window

GraphInputs = tuple[npt.NDArray[Any], ...]
Arrays = list[npt.NDArray[Any]]

NO_COARSE_MAP = np.zeros((0, 0, 2), np.float32)
NO_NOISE = np.zeros((0, 0, 1), np.int8)


def dali_batches(reader: FilmReader, batches: Iterable[list[FilmRequest]], batch: int) -> Iterator[Batch]:
    """Yield the batches that `batches` lists, all of `batch` films; one pipeline makes them ahead.

    Raises CorruptSample or InputError, naming film, epoch and step, for a film that cannot be read or decoded.
    """
    pending: dict[int, list[FilmRequest]] = {}
    listed = iter(batches)

    def feed(info: types.SampleInfo) -> GraphInputs:
        if info.iteration not in pending:
            pending[info.iteration] = next(listed)
        return graph_inputs(reader, pending[info.iteration][info.idx_in_batch])

    pipeline, buffers = _pipeline(reader, feed, batch), BufferPool()
    iteration = 0
    while True:
        try:
            images, *masks = pipeline.run()
        except StopIteration:
            return
        except RuntimeError:
            _name_undecodable(reader, [request for requests in pending.values() for request in requests])
            raise
        rows = np.array([request.index for request in pending.pop(iteration)], np.int64)
        made = _tensor(images, reader.input_spec.data.channels_last, buffers)
        yield Batch(made, _tensor(masks[0], True, buffers) if masks else torch.empty(0, dtype=torch.uint8), rows)
        iteration += 1


def graph_inputs(reader: FilmReader, request: FilmRequest) -> GraphInputs:
    """Return what the graph takes for a film.

    `warp` float32 (2, 3); `tone` float32 (5,): gain, offset in grey levels, gamma, whether CLAHE, noise in grey levels
    per unit; `noise` int8 (size, size, 1) or empty; `coarse_map` float32 (n, n, 2) if the experiment distorts films,
    empty for a film that is not distorted (on a GPU it always holds the whole map); then the encoded members.
    """
    parameters, size, stored = reader.parameters(request), reader.input_spec.size, reader.stored(request)
    geometry = parameters.geometry
    parts: list[npt.NDArray[Any]] = [matrix(geometry, size, stored).astype(np.float32)]
    if reader.augment is not None:
        noise = noise_window(parameters, size)[..., None] if parameters.noise_sigma else NO_NOISE
        parts += [_tone(parameters), np.ascontiguousarray(noise)]
    if _has_coarse_map(reader):
        is_needed = geometry.warp is not None or reader.input_spec.device_id is not None
        parts.append(coarse_map(geometry, size, stored) if is_needed else NO_COARSE_MAP)
    return *parts, *reader.read(request)


def _has_coarse_map(reader: FilmReader) -> bool:
    """On a GPU, DALI's warp has no reflecting border: then the dense map serves all films."""
    is_distorted = reader.augment is not None and reader.augment.distortion.p > 0
    return is_distorted or (reader.border == "reflect" and reader.input_spec.device_id is not None)


def _tone(parameters: Parameters) -> npt.NDArray[np.float32]:
    noise = parameters.noise_sigma * 255.0 / NOISE_LEVEL
    values = (parameters.gain, parameters.offset * 255.0, parameters.gamma, float(parameters.clahe), noise)
    return np.array(values, np.float32)


def _pipeline(reader: FilmReader, feed: Callable[[types.SampleInfo], GraphInputs], batch: int) -> Any:
    data = reader.input_spec.data
    resample = None if reader.input_spec.device_id is not None else _CpuResample(reader)
    with warnings.catch_warnings():
        # DALI warns that Python functions cannot be serialised; this pipeline is built where it runs.
        warnings.simplefilter("ignore")
        pipeline = _graph(
            reader,
            feed,
            resample,
            batch_size=batch,
            num_threads=data.threads,
            device_id=reader.input_spec.device_id,
            prefetch_queue_depth=data.prefetch,
            # The older executor keeps one set of buffers for good: on the host, memory that comes and goes with each
            # batch leaves more and more holes. On a GPU the newer one hands its outputs over without a copy.
            exec_dynamic=reader.input_spec.device_id is not None,
        )
        pipeline.build()
    return pipeline


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def _graph(reader: FilmReader, feed: Callable[[types.SampleInfo], GraphInputs], resample: Any) -> Any:
    input_spec, augment, on_gpu = reader.input_spec, reader.augment, reader.input_spec.device_id is not None
    inputs = _inputs(reader, feed)
    warp = inputs.pop(0)
    tone, noise = (inputs.pop(0), inputs.pop(0)) if augment is not None else (None, None)
    coarse_map = [inputs.pop(0)] if _has_coarse_map(reader) else []
    decoder = "mixed" if on_gpu else "cpu"
    images = [fn.decoders.image(encoded, device=decoder, output_type=types.GRAY) for encoded in inputs]
    if on_gpu:
        images = _resample_on_gpu(images, warp, coarse_map, inputs[0], reader)
    else:
        moved: Any = fn.python_function(
            warp,
            *coarse_map,
            *images,
            function=resample,
            num_outputs=len(images),
            batch_processing=True,
            output_layouts=["HWC"] * len(images),
        )
        images = list(moved) if reader.with_mask else [moved]
    image = images[0]
    if augment is not None:
        image = _shade(image, tone, noise, augment, on_gpu)
    normalised = fn.crop_mirror_normalize(
        image if input_spec.channels == 1 else fn.cat(image, image, image, axis=2),
        dtype=types.FLOAT16 if input_spec.data.image_dtype == "float16" else types.FLOAT,
        mean=[255.0 * value for value in input_spec.data.mean[: input_spec.channels]],
        std=[255.0 * value for value in input_spec.data.std[: input_spec.channels]],
        output_layout="HWC" if input_spec.data.channels_last else "CHW",
    )
    if not reader.with_mask:
        return normalised
    return normalised, fn.cast(images[1] > 127, dtype=types.UINT8)


@do_not_convert  # type: ignore[untyped-decorator]
def _inputs(reader: FilmReader, feed: Callable[[types.SampleInfo], GraphInputs]) -> list[Any]:
    """Return what `graph_inputs` lists."""
    kinds = [(types.FLOAT, 2, "")]
    if reader.augment is not None:
        kinds += [(types.FLOAT, 1, ""), (types.INT8, 3, "HWC")]
    if _has_coarse_map(reader):
        kinds += [(types.FLOAT, 3, "HWC")]
    kinds += [(types.UINT8, 1, "")] * (2 if reader.with_mask else 1)
    dtype, ndim, layout = (list(values) for values in zip(*kinds, strict=True))
    return list(fn.external_source(feed, num_outputs=len(kinds), batch=False, dtype=dtype, ndim=ndim, layout=layout))


class _CpuResample:
    """Moves a batch's images and masks with OpenCV, which leaves Python's lock while it works."""

    def __init__(self, reader: FilmReader) -> None:
        self._size, self._has_coarse_map = reader.input_spec.size, _has_coarse_map(reader)
        self._border = reader.border
        self._pool = ThreadPoolExecutor(reader.input_spec.data.threads)

    def __call__(self, *inputs: Arrays) -> Any:
        done = list(self._pool.map(self._one, *inputs))
        outputs = [list(parts) for parts in zip(*done, strict=True)]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def _one(self, warp: npt.NDArray[Any], *rest: npt.NDArray[Any]) -> list[npt.NDArray[np.uint8]]:
        images = tuple(image[..., 0] for image in (rest[1:] if self._has_coarse_map else rest))
        if self._has_coarse_map and rest[0].size:
            moved = by_coarse_map(images, rest[0], self._size, self._border)
        else:
            moved = by_matrix(images, warp, self._size, self._border)
        return [image[..., None] for image in moved]


def _resample_on_gpu(images: list[Any], warp: Any, coarse_map: list[Any], encoded: Any, reader: FilmReader) -> Any:
    size = reader.input_spec.size
    if not coarse_map:
        return warped_by_matrix(images, warp, size)
    # The size of a film is known on the host before it is decoded on the GPU.
    shape = fn.peek_image_shape(encoded, dtype=types.INT32)
    extent = fn.cast(shape, dtype=types.FLOAT).gpu()
    return warped_by_coarse_map(images, coarse_map[0].gpu(), extent, canvas_of(shape, size), size, reader.border)


def _shade(image: Any, tone: Any, noise: Any, augment: AugmentConfig, on_gpu: bool) -> Any:
    if augment.clahe.p > 0:
        tiles = augment.clahe.tiles
        if tone[3] > 0.0:
            image = fn.clahe(image, clip_limit=augment.clahe.clip, tiles_x=tiles, tiles_y=tiles)
    # Conditions are decided on the host, arithmetic is done where the image is. Casting to bytes rounds and saturates.
    value = tone.gpu() if on_gpu else tone
    if augment.tone.p > 0:
        if tone[0] != 1.0 or tone[1] != 0.0:
            image = fn.cast(image * value[0] + value[1], dtype=types.UINT8)
        if tone[2] != 1.0:
            image = fn.cast(255.0 * dali_math.pow(image / 255.0, value[2]), dtype=types.UINT8)
    if augment.noise.p > 0 and tone[4] != 0.0:
        field = noise.gpu() if on_gpu else noise
        image = fn.cast(image + field * value[4], dtype=types.UINT8)
    return image


def _tensor(outputs: Any, is_last: bool, buffers: "BufferPool") -> torch.Tensor:
    """Return a DALI output as (n, channels, rows, columns) in memory that no later run overwrites."""
    made = torch.from_dlpack(outputs.as_tensor())
    if not made.is_cuda:
        made = buffers.take(made.nbytes, made.dtype).view(made.shape).copy_(made)
    return made.permute(0, 3, 1, 2) if is_last else made


class BufferPool:
    """Memory for tensors, in pages of their own, which serve again when a tensor and all its views are gone.

    Memory that comes and goes with each batch would leave more and more holes; fresh pages have to be cleared first.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}

    def take(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a flat tensor of `size` bytes, of any values."""
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else _mapped(size)
        # The tensor's storage keeps this array, and nothing else does: it goes when the storage goes.
        array = np.frombuffer(memory, np.uint8)
        weakref.finalize(array, free.append, memory)
        return torch.frombuffer(array, dtype=dtype)


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory


def _name_undecodable(reader: FilmReader, requests: list[FilmRequest]) -> None:
    """DALI names no film when a decoder fails: look for one that OpenCV cannot decode either."""
    for request in requests:
        if any(reader.decode(content) is None for content in reader.read(request)):
            raise reader.undecodable(request)
