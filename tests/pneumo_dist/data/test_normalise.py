"""A single film as a network's input: the same numbers as from the torch loader."""

import pytest
import torch
from images import decode

from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.data.films import FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.normalise import single_batch
from pneumo_dist.data.torch_loader import Films
from shards.dataset.table import Shards


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [32, 64, 96])
@pytest.mark.parametrize("more", [{}, {"channels_last": True}, {"image_dtype": "float16"}])
def test_a_batch_of_one_film_is_that_of_the_torch_loader(
    films: Shards, channels: int, size: int, more: dict[str, object]
) -> None:
    data = DataConfig.model_validate({"mean": (0.1, 0.2, 0.3), "std": (1, 0.5, 0.25), **more})
    input_spec = InputSpec(size, channels, data)
    batch = single_batch(decode(films.read(3, "image")), input_spec)
    expected = Films(FilmReader(films, input_spec, with_mask=False))[FilmRequest(3)][0]
    if data.channels_last:
        expected = expected.permute(2, 0, 1)
    assert batch.images.shape == (1, channels, size, size) and batch.images.dtype == expected.dtype
    assert torch.equal(batch.images[0], expected) and batch.indices.tolist() == [0]
    layout = torch.channels_last if data.channels_last else torch.contiguous_format
    assert batch.images.is_contiguous(memory_format=layout)
