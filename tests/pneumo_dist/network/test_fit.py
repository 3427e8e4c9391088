"""Networks on the meta device: inputs that they do not accept are found without computing a value."""

from typing import Any

import pytest
import torch

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model
from pneumo_dist.network.fit import OneValue, check_input, checkpoint_bytes, meta_model
from shards.errors import InputError


def model_of(**values: Any) -> torch.nn.Module:
    return meta_model(ModelConfig.model_validate({"encoder": "resnet18", **values}))


@pytest.mark.parametrize("arch", ["deeplabv3", "deeplabv3plus", "pan", "upernet"])
def test_a_pooling_branch_needs_two_films_in_training(arch: str) -> None:
    model = model_of(arch=arch)
    with pytest.raises(OneValue):
        check_input(model, 1, 3, 128, training=True)
    check_input(model, 2, 3, 128, training=True)
    check_input(model, 1, 3, 128, training=False)


def test_deepest_map_of_one_pixel_needs_two_films_too() -> None:
    model = model_of(arch="unet", in_channels=1)
    with pytest.raises(OneValue):
        check_input(model, 1, 1, 32, training=True)
    check_input(model, 1, 1, 64, training=True)


@pytest.mark.parametrize(
    ("values", "size", "words"),
    [
        ({"arch": "pan"}, 64, "Output size is too small"),
        ({"arch": "linknet"}, 48, "Wrong input shape"),
        ({"arch": "unet", "encoder": "tu-swin_tiny_patch4_window7_224"}, 256, "doesn't match model"),
        ({"arch": "fcn", "encoder": "resnet34"}, 36, "its output is"),
    ],
)
def test_unsupported_size_is_reported_with_its_reason(values: dict[str, Any], size: int, words: str) -> None:
    with pytest.raises(InputError, match=words) as caught:
        check_input(model_of(**values), 2, 3, size, training=True)
    assert not isinstance(caught.value, OneValue)


def test_encoder_that_computes_with_values_is_built_anyway() -> None:
    model = model_of(arch="unet", encoder="mit_b0")
    assert all(value.is_meta for value in model.state_dict().values())
    check_input(model, 2, 3, 64, training=True)


def test_errors_are_those_of_the_network_itself() -> None:
    for values in ({"encoder": "resnet19"}, {"arch": "fpn", "decoder_attention_type": "scse"}, {"arch": "unett"}):
        messages = []
        for make in (meta_model, lambda config: build_model(config, pretrained=False)):
            with pytest.raises(InputError) as caught:
                make(ModelConfig.model_validate(values))
            messages.append(str(caught.value))
        assert messages[0] == messages[1]


def test_the_size_of_a_checkpoint() -> None:
    model = model_of(arch="fcn", encoder="resnet34", fcn={"widths": [4, 6, 8]})
    state = build_model(ModelConfig.model_validate({"arch": "fcn", "fcn": {"widths": [4, 6, 8]}}), False).state_dict()
    assert checkpoint_bytes(model, 3) == 3 * 4 * sum(value.numel() for value in state.values())
