"""Fixtures of the tests of DICOM films."""

import numpy as np
import numpy.typing as npt
import pytest

from shards.phantom.dataset import render_film


@pytest.fixture(scope="module")
def phantom() -> npt.NDArray[np.uint8]:
    return render_film(np.random.default_rng(5), 96, True).image
