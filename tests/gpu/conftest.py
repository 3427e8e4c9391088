"""Checks that run on the CPU and, if there is one, on a GPU.

    python -m pytest -q tests/gpu -m gpu

Run this on a GPU machine. Without a CUDA device, the GPU's half of the tests skips.
"""

import os
from collections.abc import Iterator

# Deterministic runs need it. cuBLAS reads it at its first use, perhaps in an earlier test.
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")

import pytest
import torch
from builders import phantom_shards

from pneumo_dist.config.experiment import RuntimeConfig
from pneumo_dist.ranks.precision import configure
from pneumo_dist.ranks.ranks import Ranks, pick_device
from shards.dataset.table import Shards


def alone(kind: str) -> Ranks:
    """Return a single rank on the CPU or on the first GPU. Skips without a GPU."""
    if kind == "cuda" and not torch.cuda.is_available():
        pytest.skip("no CUDA device")
    return Ranks.alone(pick_device(0, cpu=kind == "cpu"))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def ranks(request: pytest.FixtureRequest) -> Ranks:
    """A single rank on each kind of device."""
    return alone(request.param)


@pytest.fixture
def gpu() -> Ranks:
    """A single rank on a GPU."""
    return alone("cuda")


@pytest.fixture(autouse=True)
def exact() -> Iterator[None]:
    """Compute in IEEE float32, so that devices can be compared. Restores the settings afterwards."""
    switches = torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark
    configure(RuntimeConfig(tf32=False))
    yield
    torch.use_deterministic_algorithms(False)
    torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32, torch.backends.cudnn.benchmark = switches


@pytest.fixture(scope="session")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Shards]:
    """Twelve phantom films of 96 x 96 pixels in two folds, by codec."""
    return {codec: phantom_shards(tmp_path_factory.mktemp(codec), codec=codec) for codec in ("png", "jpeg")}
