"""Networks of the first place: published sizes, and their decoders compared with plain function calls."""

from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn.functional import conv2d, interpolate, max_pool2d, relu

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model, freeze_encoder
from pneumo_dist.network.first_place import MaxScse
from shards.errors import InputError

ENCODERS = {"albunet": "resnet34", "scse_unet": "se_resnext50_32x4d", "resnet_unet": "resnet50"}


def network_of(arch: str, **values: Any) -> Any:
    return build_model(
        ModelConfig.model_validate({"arch": arch, "encoder": ENCODERS[arch], **values}), pretrained=False
    )


@pytest.mark.parametrize(
    ("arch", "parameters"), [("albunet", 34_604_897), ("scse_unet", 41_249_489), ("resnet_unet", 34_458_177)]
)
def test_number_of_parameters_is_the_published_one(arch: str, parameters: int) -> None:
    with torch.device("meta"):
        network = network_of(arch)
    assert sum(each.numel() for each in network.parameters()) == parameters


def convolutions(module: nn.Module) -> Callable[[torch.Tensor], torch.Tensor]:
    """Return a function that applies the module's next 3x3 convolution and a ReLU at each call."""
    layers = iter([each for each in module.modules() if isinstance(each, nn.Conv2d) and each.kernel_size == (3, 3)])

    def call(maps: torch.Tensor) -> torch.Tensor:
        layer = next(layers)
        return relu(conv2d(maps, layer.weight, layer.bias, padding=1))

    return call


def albunet(network: Any, images: torch.Tensor) -> torch.Tensor:
    encoder, conv = network.encoder, convolutions(network.decoder)
    skips: list[torch.Tensor] = []
    maps = max_pool2d(encoder.relu(encoder.bn1(encoder.conv1(images))), 2)
    for layer in (encoder.layer1, encoder.layer2, encoder.layer3, encoder.layer4):
        maps = layer(maps)
        skips.append(maps)
    maps = max_pool2d(maps, 2)
    for skip in (*reversed(skips), None, None):
        maps = conv(conv(interpolate(maps, scale_factor=2, mode="bilinear")))
        maps = maps if skip is None else torch.cat([maps, skip], 1)
    head = network.segmentation_head
    return conv2d(conv(maps), head.weight, head.bias)


def concat_unet(network: Any, images: torch.Tensor) -> torch.Tensor:
    _, half, quarter, eighth, sixteenth, maps = network.encoder(images)
    up, join = convolutions(network.decoder.up), convolutions(network.decoder.join)
    for number, skip in enumerate((sixteenth, eighth, quarter, half)):
        maps = join(torch.cat([up(maps.repeat_interleave(2, 2).repeat_interleave(2, 3)), skip], 1))
        for scse in (each for each in network.decoder.join[number] if isinstance(each, MaxScse)):
            maps = naive_scse(scse, maps)
    head = network.segmentation_head
    return conv2d(up(maps.repeat_interleave(2, 2).repeat_interleave(2, 3)), head.weight, head.bias)


def naive_scse(scse: Any, maps: torch.Tensor) -> torch.Tensor:
    _, squeeze, _, excite, _ = scse.channel
    means = maps.mean((2, 3))
    channel = torch.sigmoid(
        relu(means @ squeeze.weight[:, :, 0, 0].T + squeeze.bias) @ excite.weight[:, :, 0, 0].T + excite.bias
    )
    spatial = torch.sigmoid((maps * scse.spatial[0].weight[0, :, 0, 0, None, None]).sum(1, keepdim=True))
    assert squeeze.out_channels * 2 == maps.shape[1]
    return torch.maximum(maps * channel[:, :, None, None], maps * spatial)


@pytest.mark.parametrize(
    ("arch", "reference"), [("albunet", albunet), ("scse_unet", concat_unet), ("resnet_unet", concat_unet)]
)
def test_logits_are_those_of_plain_calls(arch: str, reference: Callable[[Any, torch.Tensor], torch.Tensor]) -> None:
    torch.manual_seed(0)
    network = network_of(arch).eval()
    images = torch.randn(2, 3, 64, 128)
    with torch.no_grad():
        torch.testing.assert_close(network(images), reference(network, images), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("arch", ENCODERS)
def test_encoder_freezes_and_one_channel_and_a_class_head_are_possible(arch: str) -> None:
    network = network_of(arch, in_channels=1, classification={})
    freeze_encoder(network, True)
    logits, classes = network.train()(torch.randn(2, 1, 64, 64))
    (logits.sum() + classes.sum()).backward()
    assert (logits.shape, classes.shape) == ((2, 1, 64, 64), (2, 1))
    trained = {name.split(".")[0] for name, each in network.named_parameters() if each.grad is not None}
    assert trained == {"decoder", "segmentation_head", "classification_head"}


@pytest.mark.parametrize(
    ("arch", "values", "reason"),
    [
        ("albunet", {"encoder": "se_resnext50_32x4d"}, "needs a ResNet"),
        ("albunet", {"decoder_channels": (256, 128, 64, 32, 16, 8)}, "fixed decoder_channels"),
        ("resnet_unet", {"decoder_channels": (256, 128)}, "needs 5 decoder_channels"),
        ("scse_unet", {"decoder_attention_type": "scse"}, "model.decoder_attention_type: scse_unet has no such option"),
    ],
)
def test_impossible_options_are_named(arch: str, values: dict[str, Any], reason: str) -> None:
    with pytest.raises(InputError, match=reason):
        network_of(arch, **values)


def test_decoder_channels_set_the_widths() -> None:
    widths: Sequence[int] = (64, 32, 16, 8, 4)
    network = network_of("resnet_unet", encoder="resnet18", decoder_channels=widths)
    assert [block[0].out_channels for block in network.decoder.up] == list(widths)


def test_albunet_needs_sides_that_are_multiples_of_64() -> None:
    with pytest.raises(ValueError, match="multiples of 64"):
        network_of("albunet")(torch.zeros(1, 3, 96, 64))
