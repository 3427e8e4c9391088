"""The resampling of the DALI graph on a GPU. All operators except remap itself also run on the CPU.

Points are pixels of the stored image, counted from the corner of the first pixel, as in geometry.py. No condition here
depends on a film, so DALI does not have to convert the functions to conditional graphs, which restricts their Python.
"""

from typing import Any

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import do_not_convert

# Pixels of zeros around a film, so that a point beyond its edge is still inside the image that remap reads.
MARGIN = 2
KINDS = (types.INTERP_LINEAR, types.INTERP_NN)


@do_not_convert  # type: ignore[untyped-decorator]
def warped_by_matrix(images: list[Any], warp: Any, size: int) -> list[Any]:
    """Return image and mask at the points of a 2x3 map, each (size, size, 1), with zeros beyond the film."""
    side = float(size)
    return [
        fn.warp_affine(image, matrix=warp, size=(side, side), fill_value=0, interp_type=kind)
        for image, kind in zip(images, KINDS, strict=False)
    ]


@do_not_convert  # type: ignore[untyped-decorator]
def warped_by_coarse_map(
    images: list[Any], coarse_map: Any, last: Any, extent: Any, canvas: Any, size: int, border: str
) -> list[Any]:
    """Return image and mask at the points of a coarse map, each (size, size, 1).

    `coarse_map` and `extent` (rows and columns of the film, float32) are on the device of the images; `last`, from
    `last_of`, and `canvas`, from `canvas_of`, are on the host.
    """
    x, y = dense_points(coarse_map, last, size)
    if border != "constant":
        # Within half a pixel of the edge, remap would mix in zeros; a reflected border has the edge's own pixel there.
        x, y = (
            dali_math.clamp(reflected(points, side, border), 0.5, side - 0.5)
            for points, side in ((x, extent[1]), (y, extent[0]))
        )
    x, y = (_on_canvas(points, side, canvas) for points, side in ((x[:, :, 0], extent[1]), (y[:, :, 0], extent[0])))
    return [_remapped(image, x, y, canvas, size, kind) for image, kind in zip(images, KINDS, strict=False)]


def canvas_of(shape: Any, size: int) -> Any:
    """Return the rows and columns of a canvas for a film with its margin and for the output.

    `shape` int32 begins with the film's rows and columns. DALI's remap requires images and maps of one size, the maps
    without a channel axis, and leaves a pixel unwritten if its point is outside the image. So the film is placed on a
    canvas of zeros that contains every point.
    """
    return dali_math.max(shape[0:2] + 2 * MARGIN, size)


def _on_canvas(points: Any, side: Any, canvas: Any) -> Any:
    """Return a map (size, size) as one of the whole canvas; clamp points to the middle of the margin, which is zero."""
    inner = MARGIN - 0.5
    shifted = dali_math.clamp(points + float(MARGIN), inner, side + (2 * MARGIN - inner))
    return _cut(shifted, (0, 0), canvas, fill=inner)


def _remapped(image: Any, x: Any, y: Any, canvas: Any, size: int, kind: Any) -> Any:
    padded = _cut(image, (-MARGIN, -MARGIN), canvas, fill=0.0)
    remapped = fn.experimental.remap(padded, x, y, interp=kind, pixel_origin="corner")
    return _cut(remapped, (0, 0), (size, size), fill=0.0)


def _cut(image: Any, start: tuple[int, int], shape: Any, fill: float) -> Any:
    return fn.slice(image, start=start, shape=shape, axes=(0, 1), out_of_bounds_policy="pad", fill_values=fill)


def last_of(coarse_map: Any) -> Any:
    """Return the end of the last cell of the input in a coarse map, along each axis. Films differ in their cells."""
    return coarse_map.shape(dtype=types.FLOAT)[0:2] - 1.0


def dense_points(coarse_map: Any, last: Any, size: int) -> tuple[Any, Any]:
    """Interpolate a coarse map to the x and y of every pixel, (size, size, 1) each: geometry's dense_map in DALI."""
    dense: Any = fn.resize(
        coarse_map,
        size=(size, size),
        roi_start=(1.0, 1.0),
        roi_end=last,
        interp_type=types.INTERP_LINEAR,
        antialias=False,
    )
    return dense[:, :, 0:1], dense[:, :, 1:2]


def reflected(points: Any, extent: Any, border: str) -> Any:
    """Return coordinates reflected into 0..extent, as between two mirrors.

    The mirrors are at the edges, or at the centres of the first and last pixel (`reflect_101`).
    """
    inset = 0.5 if border == "reflect_101" else 0.0
    length = dali_math.max(extent - 2.0 * inset, 1.0)
    beyond = points - inset
    inside = beyond - 2.0 * length * dali_math.floor(beyond / (2.0 * length))
    return inset + length - dali_math.abs(inside - length)
