"""The small FCN: the shape of its output, its layers, and the options that it shares with no other architecture."""

from typing import Any

import pydantic
import pytest
import torch

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("size", [(64, 64), (32, 72)])
def test_fcn_maps_films_to_one_map_of_logits(channels: int, size: tuple[int, int]) -> None:
    model = build_model(ModelConfig.model_validate({"arch": "fcn", "in_channels": channels}), pretrained=True)
    logits = model(torch.randn(2, channels, *size))
    assert logits.shape == (2, 1, *size)


@pytest.mark.parametrize(("norm", "dropout"), [(False, 0.0), (True, 0.3)])
def test_fcn_has_the_configured_layers(norm: bool, dropout: float) -> None:
    fcn = {"widths": (4, 6, 10), "norm": norm, "dropout": dropout}
    model = build_model(ModelConfig.model_validate({"arch": "fcn", "in_channels": 1, "fcn": fcn}), pretrained=False)
    layers = [module for module in model.modules() if not list(module.children())]
    shapes = [
        (type(layer).__name__, layer.in_channels, layer.out_channels, layer.stride[0])
        for layer in layers
        if isinstance(layer, torch.nn.Conv2d | torch.nn.ConvTranspose2d)
    ]
    assert shapes == [
        ("Conv2d", 1, 4, 2),
        ("Conv2d", 4, 6, 2),
        ("Conv2d", 6, 10, 2),
        ("Conv2d", 10, 10, 1),
        ("ConvTranspose2d", 10, 6, 2),
        ("ConvTranspose2d", 6, 4, 2),
        ("ConvTranspose2d", 4, 1, 2),
    ]
    names = [type(layer).__name__ for layer in layers]
    assert names.count("ReLU") == 6 and names[-1] == "ConvTranspose2d"
    assert names.count("BatchNorm2d") == (6 if norm else 0)
    assert [layer.p for layer in layers if isinstance(layer, torch.nn.Dropout2d)] == ([dropout] * 6 if dropout else [])


def skip_fcn(channels: int = 1, **fcn: Any) -> Any:
    values = {"arch": "fcn", "in_channels": channels, "fcn": {"skips": True, **fcn}}
    return build_model(ModelConfig.model_validate(values), pretrained=False)


def test_network_of_recipe_d_has_its_number_of_parameters() -> None:
    assert sum(each.numel() for each in skip_fcn(norm=True).parameters()) == 352_417


def test_skips_join_features_of_the_same_size() -> None:
    torch.manual_seed(0)
    model = skip_fcn(widths=(4, 6, 10), norm=True).eval()
    images = torch.randn(2, 1, 32, 72)
    quarter, half = model.encoder[1](model.encoder[0](images)), model.encoder[0](images)
    maps = model.decoder[0](model.middle(model.encoder[2](quarter)))
    maps = model.decoder[1](torch.cat([maps, quarter], 1))
    expected = model.last(torch.cat([maps, half], 1))
    assert torch.equal(model(images), expected) and expected.shape == (2, 1, 32, 72)
    layers = [each for each in model.modules() if isinstance(each, torch.nn.Conv2d | torch.nn.ConvTranspose2d)]
    assert {layer.kernel_size for layer in layers} == {(3, 3)}


@pytest.mark.parametrize(
    "values",
    [
        {"decoder_channels": (8, 8, 8, 8, 8)},
        {"decoder_use_norm": False},
        {"decoder_attention_type": "scse"},
        {"decoder_interpolation": "nearest"},
        {"encoder_weights": "imagenet"},
        {"encoder_weights_file": "x.pt", "encoder_weights_sha256": "0" * 64},
        {"classification": {}},
    ],
)
def test_fcn_refuses_options_that_it_does_not_have(values: dict[str, Any]) -> None:
    with pytest.raises(pydantic.ValidationError, match=f"arch fcn does not support {next(iter(values))}"):
        ModelConfig.model_validate({"arch": "fcn", **values})


def test_layers_of_the_fcn_are_refused_by_other_architectures() -> None:
    with pytest.raises(pydantic.ValidationError, match="fcn is set, but arch is unet"):
        ModelConfig.model_validate({"arch": "unet", "fcn": {"norm": True}})
