"""Recomputed batch-norm statistics: equal to torch's and to the definition; fillers and dropout do not matter."""

import copy
from collections.abc import Iterator

import numpy as np
import pytest
import torch
from tensors import same
from torch import nn
from torch.optim.swa_utils import update_bn

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.data.films import Batch
from pneumo_dist.network.batch_norm import recompute_statistics
from pneumo_dist.network.build import build_model
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import StopRequested
from shards.errors import InputError

ALONE = Ranks.alone()
SIZE = 64
FCN = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 6, 8), "norm": True}}
MODELS = {
    "fcn": FCN,
    "resnet18": {"arch": "unet", "encoder": "resnet18", "in_channels": 1, "decoder_channels": (8, 8, 8, 8, 8)},
    "timm": {"arch": "unet", "encoder": "tu-resnet18", "in_channels": 1, "decoder_channels": (8, 8, 8, 8, 8)},
}


def model_of(name: str = "fcn") -> nn.Module:
    """A network whose statistics match none of its inputs."""
    torch.manual_seed(0)
    model = build_model(ModelConfig.model_validate(MODELS[name]), pretrained=False)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert layer.running_mean is not None and layer.running_var is not None
            nn.init.normal_(layer.running_mean)
            nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return model


def batches_of(*sizes: int, filled_to: int | None = None) -> list[Batch]:
    """Return batches of noise, each film with its own mean and spread; short batches may be filled up."""
    chance = np.random.default_rng(1)
    batches, first = [], 0
    for size in sizes:
        films = chance.normal(chance.normal(0, 2, (size, 1, 1, 1)), 1 + chance.random(), (size, 1, SIZE, SIZE))
        filling = np.full(((filled_to or size) - size, 1, SIZE, SIZE), 1e4)
        images = torch.from_numpy(np.concatenate([films, filling]).astype(np.float32))
        batches.append(Batch(images, torch.empty(0), np.arange(first, first + size)))
        first += size
    return batches


def buffers_of(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.named_buffers()}


@pytest.mark.parametrize("name", MODELS)
def test_statistics_are_those_of_torch_and_fillers_do_not_count(name: str) -> None:
    model = model_of(name)
    expected = copy.deepcopy(model)
    update_bn([batch.images for batch in batches_of(3, 3, 3, 2)], expected)
    recompute_statistics(model, batches_of(3, 3, 3, 2, filled_to=3), ALONE, "float32")
    actual, before = buffers_of(model), buffers_of(model_of(name))
    assert len(actual) >= 3 * (6 if name == "fcn" else 20)
    for key, value in buffers_of(expected).items():
        torch.testing.assert_close(actual[key], value, rtol=1e-6, atol=1e-6)
        assert not torch.allclose(actual[key].float(), before[key].float())


def test_first_layer_has_the_mean_of_its_batches_in_float64() -> None:
    model = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3))
    batches = batches_of(2, 2, 1)
    recompute_statistics(model, batches, ALONE, "float32")
    with torch.no_grad():
        seen = [model[0](batch.images).double().numpy() for batch in batches]
    mean = np.mean([part.mean((0, 2, 3)) for part in seen], axis=0)
    variance = np.mean([part.var((0, 2, 3), ddof=1) for part in seen], axis=0)
    actual = buffers_of(model)
    np.testing.assert_allclose(actual["1.running_mean"].numpy(), mean, rtol=1e-6)
    np.testing.assert_allclose(actual["1.running_var"].numpy(), variance, rtol=1e-6)
    assert int(actual["1.num_batches_tracked"]) == 3


def test_earlier_statistics_and_dropout_do_not_matter() -> None:
    recomputed = []
    for seed in (1, 2):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.Dropout(0.5), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3))
        model.append(nn.BatchNorm2d(4)).train()
        torch.manual_seed(seed)
        model(torch.randn(2, 1, SIZE, SIZE))
        recompute_statistics(model, batches_of(2, 2), ALONE, "float32")
        assert not model.training
        recomputed.append(buffers_of(model))
    assert same(*recomputed)


def test_synchronised_layers_have_the_statistics_of_plain_ones() -> None:
    model = model_of()
    synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(copy.deepcopy(model))
    for each in (model, synchronised):
        recompute_statistics(each, batches_of(2, 2, 1), ALONE, "float32")
    assert any(isinstance(layer, nn.SyncBatchNorm) for layer in synchronised.modules())
    assert same(buffers_of(model), buffers_of(synchronised))


def test_statistics_follow_autocast_if_it_is_on() -> None:
    plain, cast = model_of(), model_of()
    recompute_statistics(plain, batches_of(2, 2), ALONE, "float32")
    recompute_statistics(cast, batches_of(2, 2), ALONE, "bf16")
    assert not same(buffers_of(plain), buffers_of(cast))
    for name, value in buffers_of(plain).items():
        assert value.dtype == buffers_of(cast)[name].dtype
        torch.testing.assert_close(buffers_of(cast)[name], value, rtol=0.05, atol=0.05)


def test_model_without_batch_norm_reads_no_film() -> None:
    def refuse() -> Iterator[Batch]:
        raise AssertionError("a film is read")
        yield

    for model in (nn.Conv2d(1, 2, 3), nn.InstanceNorm2d(2), nn.BatchNorm2d(1, track_running_stats=False)):
        recompute_statistics(model, refuse(), ALONE, "float32")


def test_layer_that_no_film_reaches_is_left_alone() -> None:
    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.used, self.unused = nn.BatchNorm2d(1), nn.BatchNorm2d(1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.used(self.used(images))
            return result

    model = Beside()
    assert model.unused.running_mean is not None
    nn.init.constant_(model.unused.running_mean, 7.0)
    recompute_statistics(model, batches_of(2, 2), ALONE, "float32")
    assert model.unused.running_mean.item() == 7.0
    assert int(model.used.num_batches_tracked or 0) == 4, "a layer that is called twice counts each batch twice"


POOLED = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(1))


def test_batch_with_one_value_per_channel_does_not_count() -> None:
    model, expected = copy.deepcopy(POOLED), copy.deepcopy(POOLED)
    *whole, single = batches_of(3, 2, 1)
    recompute_statistics(model, [*whole, single], ALONE, "float32")
    update_bn([batch.images for batch in whole], expected)
    for name, value in buffers_of(expected).items():
        torch.testing.assert_close(buffers_of(model)[name], value, rtol=1e-6, atol=1e-6)
    with pytest.raises(InputError, match=r"batch norm 1: .* raise eval_batch"):
        recompute_statistics(model, batches_of(1, 1), ALONE, "float32")


@pytest.mark.parametrize("after", [0, 2])
def test_stop_between_batches_ends_the_pass(after: int) -> None:
    calls, read = iter(range(after + 1)), []

    def check() -> None:
        if next(calls) == after:
            raise StopRequested

    def listed() -> Iterator[Batch]:
        for batch in batches_of(1, 1, 1):
            read.append(batch)
            yield batch

    model = model_of()
    with pytest.raises(StopRequested):
        recompute_statistics(model, listed(), ALONE, "float32", check)
    assert len(read) == after
    assert not any(layer._forward_pre_hooks for layer in model.modules()), "a hook is left behind"
