"""The resampling of the DALI graph on a GPU, of operators that are the same on both sides but for remap itself.

Points are pixels of the stored image, counted from the corner of the first one, as geometry.py has them. Nothing here
is decided by a film, so DALI need not convert it to a graph's conditions (what it converts may not be all of Python).
"""

from typing import Any

from nvidia.dali import fn, types
from nvidia.dali import math as dali_math
from nvidia.dali.pipeline import do_not_convert

from pneumo_dist.data.geometry import cells

# Pixels of zeros around a film: a point beyond its edge is then still a point of the image that remap reads.
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
    images: list[Any], coarse_map: Any, extent: Any, canvas: Any, size: int, border: str
) -> list[Any]:
    """Return image and mask at the points of a coarse map, each (size, size, 1).

    `coarse_map` and `extent` (rows and columns of the film, float32) are where the images are; `canvas`, from
    `canvas_of`, is on the host.
    """
    x, y = grown(coarse_map, size)
    if border == "reflect":
        # Half a pixel from the edge, remap would mix in what lies beyond it; mirrored, that is the edge's own pixel.
        x, y = (
            dali_math.clamp(reflected(points, side), 0.5, side - 0.5)
            for points, side in ((x, extent[1]), (y, extent[0]))
        )
    x, y = (_on_canvas(points, side, canvas) for points, side in ((x[:, :, 0], extent[1]), (y[:, :, 0], extent[0])))
    return [_remapped(image, x, y, canvas, size, kind) for image, kind in zip(images, KINDS, strict=False)]


def canvas_of(shape: Any, size: int) -> Any:
    """Return rows and columns that hold a film with its margin, and the output; `shape` int32 begins with the film's.

    DALI's remap makes images of its input's size, from maps of that size without a channel axis; and a pixel whose
    point lies outside the input keeps what was in memory. So a film is laid on zeros that are large enough for all of
    it, and no point is left outside.
    """
    return dali_math.max(shape[0:2] + 2 * MARGIN, size)


def _on_canvas(points: Any, side: Any, canvas: Any) -> Any:
    """Return a map (size, size) as one of the whole canvas; points beyond the margin's middle are all zeros anyway."""
    inner = MARGIN - 0.5
    moved = dali_math.clamp(points + float(MARGIN), inner, side + (2 * MARGIN - inner))
    return _cut(moved, (0, 0), canvas, fill=inner)


def _remapped(image: Any, x: Any, y: Any, canvas: Any, size: int, kind: Any) -> Any:
    laid = _cut(image, (-MARGIN, -MARGIN), canvas, fill=0.0)
    moved = fn.experimental.remap(laid, x, y, interp=kind, pixel_origin="corner")
    return _cut(moved, (0, 0), (size, size), fill=0.0)


def _cut(image: Any, start: tuple[int, int], shape: Any, fill: float) -> Any:
    return fn.slice(image, start=start, shape=shape, axes=(0, 1), out_of_bounds_policy="pad", fill_values=fill)


def grown(coarse_map: Any, size: int) -> tuple[Any, Any]:
    """Return the x and y of every pixel, (size, size, 1) each, from a coarse map: geometry's dense_map in DALI."""
    last = cells(size) + 1.0
    dense: Any = fn.resize(
        coarse_map,
        size=(size, size),
        roi_start=(1.0, 1.0),
        roi_end=(last, last),
        interp_type=types.INTERP_LINEAR,
        antialias=False,
    )
    return dense[:, :, 0:1], dense[:, :, 1:2]


def reflected(points: Any, extent: Any) -> Any:
    """Return coordinates folded into 0..extent, as if the image stood between mirrors."""
    period = 2.0 * extent
    inside = points - period * dali_math.floor(points / period)
    return extent - dali_math.abs(inside - extent)
