"""DICOM films for tests, and references for their grey levels."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from dicom_streams import recode
from film_files import write_film
from pydicom import uid

from shards.dicom.film import Film, FilmRules, read_film
from shards.phantom.dataset import render_film

ANY_FILM = FilmRules(any_film=True)
# Tags that cause no warning.
CHEST = {"ViewPosition": "PA", "BodyPartExamined": "CHEST"}
SMALL_FILM, FILM = (render_film(np.random.default_rng(5), size, True).image for size in (96, 256))
RAMP12 = np.arange(0, 4096, 37, dtype=np.uint16)[:110].reshape(10, 11)
SECRET = b"DOE^JANE"
END = b"\xff\xd9"


def read(path: Path) -> Film:
    """Read a film of any size and kind."""
    return read_film(path, ANY_FILM)


def write(
    path: Path, stream: bytes, pixels: npt.NDArray[Any] = FILM, syntax: uid.UID = uid.JPEGBaseline8Bit, **more: Any
) -> Path:
    """Write a film whose compressed frame is `stream`."""
    return recode(write_film(path / "a.dcm", pixels, **more), syntax, [stream])


def secret(marker: int) -> bytes:
    """Return a JPEG segment that contains SECRET."""
    return bytes([0xFF, marker]) + (len(SECRET) + 2).to_bytes(2, "big") + SECRET


def naive_unit(values: npt.NDArray[Any], low: float, high: float, inverted: bool = False) -> list[list[int]]:
    """Return values from low..high as 0..255, one by one."""

    def one(value: float) -> int:
        unit = min(max((value - low) / (high - low), 0.0), 1.0)
        return round((1.0 - unit if inverted else unit) * 255.0)

    return [[one(float(value)) for value in row] for row in values]
