"""What the loaders hand over, whichever of them does."""

import pytest
import torch

from pneumo_dist.config.experiment import DataConfig, StageConfig
from pneumo_dist.data.films import Batch, InputSpec
from pneumo_dist.data.loader import eval_loader
from shards.dataset.table import Shards


def first_batch(films: Shards, loader: str, dtype: str, channels_last: bool = False) -> Batch:
    stage = StageConfig(name="x", image_size=64, eval_batch=3)
    data = DataConfig.model_validate({"loader": loader, "image_dtype": dtype, "channels_last": channels_last})
    rows = films.indices("train")[:3]
    (batch,) = eval_loader(films, rows, stage, InputSpec(64, 3, data), 0, 1, with_mask=True)
    return batch


@pytest.mark.parametrize("loader", ["dali", "torch", "synthetic"])
def test_half_precision_differs_by_its_rounding_alone(films: Shards, loader: str) -> None:
    whole, half = (first_batch(films, loader, dtype) for dtype in ("float32", "float16"))
    assert (whole.images.dtype, half.images.dtype) == (torch.float32, torch.float16)
    assert half.masks.dtype == torch.uint8
    torch.testing.assert_close(half.images.float(), whole.images, rtol=1e-3, atol=1e-3)
    assert not torch.equal(half.images.float(), whole.images)


@pytest.mark.parametrize("loader", ["dali", "torch", "synthetic"])
def test_channels_last_holds_the_same_values(films: Shards, loader: str) -> None:
    plain, last = (first_batch(films, loader, "float32", channels_last) for channels_last in (False, True))
    assert last.images.is_contiguous(memory_format=torch.channels_last)
    assert plain.images.is_contiguous()
    torch.testing.assert_close(last.images, plain.images, rtol=0, atol=0)
