"""The DALI graph: decode, resample once, CLAHE, tone, noise, normalise.

The graph is a pure function of bytes and parameters: order and position belong to the plan, and no reader has state.
CPU and GPU share the graph except for the resampling: DALI's remap exists only for GPUs, and its warp takes ten times
as long on the CPU as OpenCV's.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from typing import Any

import numpy as np
import torch
from nvidia.dali import fn, pipeline_def, tensors, types
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import do_not_convert

from pneumo_dist.config.augment import AugmentConfig
from pneumo_dist.data.buffers import BufferPool
from pneumo_dist.data.dali_gpu import canvas_of, last_of, warped_by_coarse_map, warped_by_matrix
from pneumo_dist.data.dali_inputs import NO_COARSE_MAP, Array, GraphInput, input_table
from pneumo_dist.data.film_inputs import FilmInputs
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest
from pneumo_dist.data.resample import Image, by_coarse_map, by_matrix
from shards.workers import temporaries_of_workers

# Returns for each input of the graph one array for a batch, or a list with one for each film.
Source = Callable[[], list[Array | list[Array]]]
_TYPES = {"float32": types.FLOAT, "int8": types.INT8, "uint8": types.UINT8}


def dali_batches(reader: FilmReader, batches: Iterable[list[FilmRequest]], batch: int) -> Iterator[Batch]:
    """Yield the requested batches, each of `batch` films; one pipeline and one process prefetch them.

    The process gets its own copy of `batches`, which must be picklable and is not changed.
    Raises CorruptSample or InputError, naming film, epoch and step, for a film that cannot be read or decoded.
    """
    inputs = FilmInputs(reader, batches, batch)
    try:
        yield from _computed(reader, inputs, batch)
    finally:
        inputs.close()


def _computed(reader: FilmReader, inputs: FilmInputs, batch: int) -> Iterator[Batch]:
    pipeline, outlet = _pipeline(reader, input_table(reader), inputs, batch), _Outlet(reader)
    while True:
        try:
            outputs = pipeline.run()
        except StopIteration:
            return
        except RuntimeError:
            _raise_undecodable(reader, inputs.pending)
            raise
        indices = np.array(inputs.release(), np.int64)
        images, *masks = outlet.tensors(outputs)
        yield Batch(images, masks[0] if masks else torch.empty(0, dtype=torch.uint8), indices)


def _pipeline(reader: FilmReader, table: Sequence[GraphInput], source: Source, batch: int) -> Any:
    data, device_id = reader.input_spec.data, reader.input_spec.device_id
    with warnings.catch_warnings(), temporaries_of_workers():
        # One thread at a time: DALI parses the graph's source, and Python 3.11.7's parser may fail in two threads.
        # DALI warns that it cannot serialise Python functions; this pipeline runs where it is built.
        warnings.simplefilter("ignore")
        pipeline = _graph(
            reader,
            table,
            source,
            _CpuResample(reader) if device_id is None else None,
            batch_size=batch,
            num_threads=reader.input_spec.threads,
            device_id=device_id,
            prefetch_queue_depth=data.prefetch,
            # The older executor keeps one set of buffers. On the CPU, the newer one fragments the heap, because it
            # allocates and frees the memory of each batch. On a GPU it hands over its outputs without a copy.
            exec_dynamic=device_id is not None,
        )
        pipeline.build()
    return pipeline


@pipeline_def(enable_conditionals=True)  # type: ignore[untyped-decorator]
def _graph(reader: FilmReader, table: Sequence[GraphInput], source: Source, cpu_resample: Any) -> Any:
    input_spec, augment, on_gpu = reader.input_spec, reader.augment, reader.input_spec.device_id is not None
    inputs = _input_nodes(table, source)
    decoder = "mixed" if on_gpu else "cpu"
    stored = [fn.decoders.image(inputs[name], device=decoder, output_type=types.GRAY) for name in reader.members]
    images = _resample_on_gpu(stored, inputs, reader) if on_gpu else _resample_on_cpu(stored, inputs, cpu_resample)
    image = images[0]
    if augment is not None:
        image = _shade(image, stored[0], inputs["tone"], inputs.get("noise"), augment, on_gpu)
    normalised = fn.crop_mirror_normalize(
        image if input_spec.channels == 1 else fn.cat(image, image, image, axis=2),
        dtype=types.FLOAT16 if input_spec.data.image_dtype == "float16" else types.FLOAT,
        mean=[255.0 * value for value in input_spec.data.mean[: input_spec.channels]],
        std=[255.0 * value for value in input_spec.data.std[: input_spec.channels]],
        output_layout="HWC" if input_spec.data.channels_last else "CHW",
    )
    if not reader.with_mask:
        return normalised
    if reader.has_targets:
        # Resampled on the host, as a map has another size than its film.
        return normalised, inputs["target"].gpu() if on_gpu else fn.copy(inputs["target"])
    return normalised, fn.cast(images[1] > 127, dtype=types.UINT8)


@do_not_convert  # type: ignore[untyped-decorator]
def _input_nodes(table: Sequence[GraphInput], source: Source) -> dict[str, Any]:
    """Return the graph's node of each input, by name."""

    def tensor_lists() -> list[Any]:
        return [_tensor_list(row, values) for row, values in zip(table, source(), strict=True)]

    nodes = fn.external_source(
        tensor_lists,
        num_outputs=len(table),
        batch=True,
        # The source does not change the arrays before the batch is computed.
        no_copy=True,
        dtype=[_TYPES[row.dtype] for row in table],
        ndim=[row.ndim for row in table],
    )
    return {row.name: node for row, node in zip(table, nodes, strict=True)}


def _tensor_list(row: GraphInput, values: Array | list[Array]) -> Any:
    """Return an input of a batch as DALI's list of tensors: DALI's own conversion of arrays takes longer."""
    if isinstance(values, np.ndarray):
        return tensors.TensorListCPU(values, row.layout)
    films = [tensors.TensorCPU(value, row.layout) for value in values]
    return tensors.TensorListCPU(films, row.layout, contiguous=False)  # type: ignore[call-overload]  # missing there


class _CpuResample:
    """Resamples the images and masks of a batch with OpenCV, which releases Python's lock meanwhile."""

    def __init__(self, reader: FilmReader) -> None:
        self.members = reader.members
        self._size, self._border = reader.input_spec.size, reader.border
        self._pool = ThreadPoolExecutor(reader.input_spec.threads)

    def __call__(self, names: tuple[str, ...], *batches: list[Array]) -> Any:
        """Resample a batch. `batches` holds, for each of the names, the values of all films."""
        films = (dict(zip(names, values, strict=True)) for values in zip(*batches, strict=True))
        outputs = [list(images) for images in zip(*self._pool.map(self._resample, films), strict=True)]
        return tuple(outputs) if len(outputs) > 1 else outputs[0]

    def _resample(self, film: Mapping[str, Array]) -> list[Image]:
        images = tuple(film[member][..., 0] for member in self.members)
        nodes = film.get("coarse_map", NO_COARSE_MAP)
        if nodes.size:
            resampled = by_coarse_map(images, nodes, self._size, self._border)
        else:
            resampled = by_matrix(images, film["warp"], self._size, self._border)
        return [image[..., None] for image in resampled]


@do_not_convert  # type: ignore[untyped-decorator]
def _resample_on_cpu(images: list[Any], inputs: Mapping[str, Any], resample: _CpuResample) -> list[Any]:
    maps = {name: inputs[name] for name in ("warp", "coarse_map") if name in inputs}
    nodes = {**maps, **dict(zip(resample.members, images, strict=True))}
    resampled: Any = fn.python_function(
        *nodes.values(),
        function=partial(resample, tuple(nodes)),
        num_outputs=len(images),
        batch_processing=True,
        output_layouts=["HWC"] * len(images),
    )
    return list(resampled) if len(images) > 1 else [resampled]


@do_not_convert  # type: ignore[untyped-decorator]
def _resample_on_gpu(images: list[Any], inputs: Mapping[str, Any], reader: FilmReader) -> Any:
    size = reader.input_spec.size
    if "coarse_map" not in inputs:
        return warped_by_matrix(images, inputs["warp"], size)
    # The host knows the size of a film before the GPU has decoded it.
    shape = fn.peek_image_shape(inputs["image"], dtype=types.INT32)
    extent = fn.cast(shape, dtype=types.FLOAT).gpu()
    nodes = inputs["coarse_map"]
    last, canvas = last_of(nodes), canvas_of(shape, size)
    return warped_by_coarse_map(images, nodes.gpu(), last, extent, canvas, size, reader.border)


def _shade(image: Any, stored: Any, tone: Any, noise: Any, augment: AugmentConfig, on_gpu: bool) -> Any:
    if augment.clahe.p > 0:
        tiles = augment.clahe.tiles
        if tone[3] > 0.0:
            image = fn.clahe(image, clip_limit=augment.clahe.clip, tiles_x=tiles, tiles_y=tiles)
    # The host decides conditions; arithmetic runs where the image is. Casting to bytes rounds and saturates.
    value = tone.gpu() if on_gpu else tone
    if augment.tone.p > 0:
        if tone[0] != 1.0 or tone[1] != 0.0:
            image = fn.cast(image * value[0] + value[1], dtype=types.UINT8)
        if augment.tone.brightness_by == "mean" and tone[5] != 0.0:
            image = fn.cast(image + value[5] * fn.reductions.mean(stored), dtype=types.UINT8)
        if tone[2] != 1.0:
            image = fn.cast(255.0 * dali_math.pow(image / 255.0, value[2]), dtype=types.UINT8)
    if augment.noise.p > 0 and tone[4] != 0.0:
        field = noise.gpu() if on_gpu else noise
        image = fn.cast(image + field * value[4], dtype=types.UINT8)
    return image


class _Outlet:
    """Turns the graph's outputs into tensors (n, channels, rows, columns) in memory that no later run overwrites."""

    def __init__(self, reader: FilmReader) -> None:
        device_id = reader.input_spec.device_id
        self._are_images_last = reader.input_spec.data.channels_last
        self._buffers = BufferPool()
        # `run` waits until the outputs are computed. DLPack then makes the current stream wait for DALI's stream, on
        # which later batches are computed already: training must not wait for those.
        self._stream = None if device_id is None else torch.cuda.Stream(device_id)

    def tensors(self, outputs: Sequence[Any]) -> list[torch.Tensor]:
        """Return images and, if there are any, masks."""
        with contextlib.nullcontext() if self._stream is None else torch.cuda.stream(self._stream):
            values = [self._kept(torch.from_dlpack(output.as_tensor())) for output in outputs]
        is_last = (self._are_images_last, True)
        return [value.permute(0, 3, 1, 2) if last else value for value, last in zip(values, is_last, strict=False)]

    def _kept(self, values: torch.Tensor) -> torch.Tensor:
        if values.is_cuda:
            return values
        return self._buffers.take(values.nbytes, values.dtype).view(values.shape).copy_(values)


def _raise_undecodable(reader: FilmReader, requests: list[FilmRequest]) -> None:
    """Raise InputError for the first film that OpenCV cannot decode either: DALI's decoder error names no film."""
    for request in requests:
        if any(reader.decode(content) is None for content in reader.read(request)):
            raise reader.undecodable(request)
