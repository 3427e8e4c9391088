"""Fixtures of the tests of builds."""

from pathlib import Path

import pytest

from shards.phantom.dataset import synthesize


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty labelled films of 96 px in `dicom-images`, half positive, and their CSV."""
    folder = tmp_path_factory.mktemp("films") / "set"
    synthesize(folder, images=30, size=96, positive_rate=0.5, seed=4)
    return folder
