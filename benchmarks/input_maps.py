"""The price of a distortion on the CPU: drawing a film's map, and resampling the film by it."""

import statistics
import time
from collections.abc import Callable
from typing import Any

import cv2
import numpy as np

from benchmarks.common import Report
from pneumo_dist.data.elastic import ElasticField, InputElastic
from pneumo_dist.data.geometry import Geometry, GridSteps, Lens, Stored, Warp, coarse_map, matrix
from pneumo_dist.data.resample import by_coarse_map, by_matrix

SIDE, SIZES, REPEATS = 1024, (512, 1024), 60
CORNERS = (3.0, -2.0, 1.0, 3.0, -3.0, 2.0)
WARPS: dict[str, Warp | None] = {
    "no distortion": None,
    "grid": GridSteps((1.2, 0.9, 0.8, 1.1, 1.0), (0.9, 1.1, 1.0, 1.2, 0.8), True),
    "optical": Lens(1.5, (0.0004, -0.0002)),
    "elastic, pixels: film": ElasticField(1, 120 / SIDE, 6 / SIDE, tuple(corner / SIDE for corner in CORNERS)),
    "elastic, pixels: input": InputElastic(1, 120.0, 6.0, CORNERS),
}


def measure_maps(report: Report) -> None:
    """Time the maps of recipe A's distortions on one thread of one core."""
    cv2.setNumThreads(0)
    film = np.random.default_rng(0).integers(0, 256, (SIDE, SIDE), np.uint8)
    for size in SIZES:
        report.title(f"{SIDE} px to {size} px: a film's map, and film and mask resampled by it, median of {REPEATS}")
        for name, warp in WARPS.items():
            drawn, resampled = _milliseconds(Geometry(True, 0.3, 1.05, (0.03, -0.02), warp), size, film)
            report.row(name, f"{drawn:.2f} ms, {resampled:.2f} ms")


def _milliseconds(geometry: Geometry, size: int, film: np.ndarray) -> tuple[float, float]:
    stored = Stored(SIDE)
    draw, resample = (matrix, by_matrix) if geometry.warp is None else (coarse_map, by_coarse_map)
    drawn: Any = draw(geometry, size, stored)
    return (
        _median(lambda: draw(geometry, size, stored)),
        _median(lambda: resample((film, film), drawn, size, "reflect_101")),
    )


def _median(run: Callable[[], object]) -> float:
    """Return the median milliseconds of a call."""
    run()
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        run()
        times.append(time.perf_counter() - start)
    return statistics.median(times) * 1e3
