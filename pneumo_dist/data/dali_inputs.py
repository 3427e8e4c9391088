"""The inputs of the DALI graph: a table that names each one, its type, and the function that returns a film's value.

This module imports neither torch nor DALI.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from pneumo_dist.data.augment import Parameters
from pneumo_dist.data.films import FilmReader, FilmRequest
from pneumo_dist.data.geometry import Stored, coarse_map, matrix
from pneumo_dist.data.resample import NOISE_LEVEL, noise_window
from pneumo_dist.data.targets import target

Array = npt.NDArray[Any]

NO_COARSE_MAP = np.zeros((0, 0, 2), np.float32)
NO_NOISE = np.zeros((0, 0, 1), np.int8)


@dataclass(frozen=True)
class _Film:
    """A requested film, the parameters drawn for it, and its position in the stored square."""

    reader: FilmReader
    request: FilmRequest
    parameters: Parameters
    stored: Stored


@dataclass(frozen=True)
class GraphInput:
    """An input of the graph.

    Attributes:
        name: Name by which the graph knows it.
        dtype: Its type, as NumPy names it.
        ndim: Number of dimensions of a film's value.
        layout: Its layout in DALI.
        value: The function that returns a film's value.
    """

    name: str
    dtype: str
    ndim: int
    layout: str
    value: Callable[[_Film], Array]


def input_table(reader: FilmReader) -> list[GraphInput]:
    """Return the inputs of a reader's graph, in DALI's order; everything else takes them by name."""
    table = [GraphInput("warp", "float32", 2, "", _warp)]
    if reader.augment is not None:
        table.append(GraphInput("tone", "float32", 1, "", _tone))
    if reader.augment is not None and reader.augment.noise.p > 0:
        table.append(GraphInput("noise", "int8", 3, "HWC", _noise))
    if _has_coarse_map(reader):
        table.append(GraphInput("coarse_map", "float32", 3, "HWC", _coarse_map))
    if reader.has_targets:
        table.append(GraphInput("target", "uint8", 3, "HWC", _target))
    return table + [GraphInput(member, "uint8", 1, "", partial(_encoded, member)) for member in reader.members]


def graph_inputs(table: Sequence[GraphInput], reader: FilmReader, request: FilmRequest) -> tuple[Array, ...]:
    """Return a film's value for each row of the reader's input table."""
    film = _Film(reader, request, reader.parameters(request), reader.stored(request))
    return tuple(row.value(film) for row in table)


def _warp(film: _Film) -> npt.NDArray[np.float32]:
    """Return the 2x3 map from the network's input to the stored image, without the distortion."""
    return matrix(film.parameters.geometry, film.reader.input_spec.size, film.stored).astype(np.float32)


def _tone(film: _Film) -> npt.NDArray[np.float32]:
    """Return gain, offset in grey levels, gamma, whether to apply CLAHE, grey levels per unit of noise, and the share
    of the stored film's mean to add.
    """
    drawn = film.parameters
    noise = drawn.noise_sigma * 255.0 / NOISE_LEVEL
    return np.array(
        (drawn.gain, drawn.offset * 255.0, drawn.gamma, float(drawn.clahe), noise, drawn.mean_offset), np.float32
    )


def _noise(film: _Film) -> npt.NDArray[np.int8]:
    """Return the noise, (size, size, 1), or an empty array for a film without noise."""
    if film.parameters.noise_sigma == 0.0:
        return NO_NOISE
    return np.ascontiguousarray(noise_window(film.parameters, film.reader.input_spec.size)[..., None])


def _coarse_map(film: _Film) -> npt.NDArray[np.float32]:
    """Return the coarse map, (n, n, 2). On the CPU it is empty for a film without distortion."""
    input_spec, geometry = film.reader.input_spec, film.parameters.geometry
    if geometry.warp is None and input_spec.device_id is None:
        return NO_COARSE_MAP
    return coarse_map(geometry, input_spec.size, film.stored)


def _target(film: _Film) -> npt.NDArray[np.uint8]:
    return target(film.reader, film.request, film.parameters)[..., None]


def _encoded(member: str, film: _Film) -> npt.NDArray[np.uint8]:
    return film.reader.read_member(film.request, member)


def _has_coarse_map(reader: FilmReader) -> bool:
    """Return whether films are resampled by coarse maps, as distortions need.

    On a GPU reflected borders need them too, because DALI's affine warp cannot reflect.
    """
    is_distorted = reader.augment is not None and reader.augment.distortion.p > 0
    return is_distorted or (reader.border != "constant" and reader.input_spec.device_id is not None)
