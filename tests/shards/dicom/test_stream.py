"""The size of a compressed frame, and the ends of its rows, without decoding."""

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest
from dicom_films import write
from dicom_streams import recode
from film_files import write_film
from pydicom import uid
from pydicom.encaps import get_frame
from pydicom.filereader import dcmread

from shards.dicom.film import read_film
from shards.errors import RejectedFilm

Pixels = npt.NDArray[Any]
DEEP = np.kron(np.random.default_rng(1).integers(0, 4096, (10, 12)), np.ones((8, 8), int)).astype(np.uint16)


def test_a_picture_without_all_its_tiles_is_refused(tmp_path: Path) -> None:
    path = recode(write_film(tmp_path / "a.dcm", DEEP, BitsStored=12, HighBit=11), uid.JPEG2000Lossless)
    frame = bytearray(get_frame(dcmread(path).PixelData, 0, number_of_frames=1))
    size = frame.index(b"\xff\x51")
    rows, columns = DEEP.shape
    frame[size + 6 : size + 14] = (columns * 2).to_bytes(4, "big") + (rows * 3).to_bytes(4, "big")
    large = np.tile(DEEP, (3, 2))
    with pytest.raises(RejectedFilm, match="lacks tiles"):
        read_film(write(tmp_path, bytes(frame), large, uid.JPEG2000Lossless, BitsStored=12, HighBit=11))
