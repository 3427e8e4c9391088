"""Networks by configuration, without any hub."""

from typing import Any

import pytest
import torch

from pneumo_dist.config import ModelConfig
from pneumo_dist.models import build_model
from shards.errors import InputError

TINY = {"arch": "unet", "encoder": "resnet18", "in_channels": 1, "decoder_channels": (16, 16, 8, 8, 8)}


def model_of(**values: Any) -> torch.nn.Module:
    return build_model(ModelConfig.model_validate({**TINY, **values}), pretrained=False)


@pytest.mark.parametrize("channels", [1, 3])
def test_network_maps_films_to_one_map_of_logits(channels: int) -> None:
    model = model_of(in_channels=channels).eval()
    with torch.no_grad():
        logits = model(torch.randn(2, channels, 64, 96))
    assert logits.shape == (2, 1, 64, 96)
    assert float(logits.min()) < 0 or float(logits.max()) > 1  # logits, not probabilities


def kinds(model: torch.nn.Module) -> set[str]:
    decoder = model.decoder
    assert isinstance(decoder, torch.nn.Module)
    return {type(module).__name__ for module in decoder.modules()}


def test_decoder_options_reach_the_library() -> None:
    assert "SCSEModule" in kinds(model_of(decoder_attention_type="scse", decoder_channels=(64, 64, 32, 32, 16)))
    assert "SCSEModule" not in kinds(model_of())
    assert "BatchNorm2d" in kinds(model_of())
    assert "BatchNorm2d" not in kinds(model_of(decoder_use_norm=False))
    widths = [module.out_channels for module in model_of().modules() if isinstance(module, torch.nn.Conv2d)]
    assert widths[-3:] == [8, 8, 1]
    for interpolation in ("nearest", "bilinear"):
        model_of(decoder_interpolation=interpolation)


@pytest.mark.parametrize("norm", ["batchnorm", "identity", "instancenorm"])
def test_every_normalisation_that_the_schema_offers_can_be_built(norm: str) -> None:
    model = model_of(decoder_use_norm=norm).eval()
    with torch.no_grad():
        assert model(torch.zeros(1, 1, 32, 32)).shape == (1, 1, 32, 32)


@pytest.mark.parametrize(
    "values",
    [
        {"encoder": "resnet19"},
        {"arch": "unett"},
        {"decoder_channels": (16, 8)},
        {"arch": "linknet", "decoder_channels": (16, 16, 8, 8, 8)},
        {"arch": "fpn", "decoder_channels": None, "decoder_attention_type": "scse"},
    ],
)
def test_what_the_library_does_not_have_is_an_input_error(values: dict[str, Any]) -> None:
    with pytest.raises(InputError, match=r"model"):
        model_of(**values)


def test_no_hub_is_asked_unless_weights_are_wanted(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: object, **options: object) -> None:
        raise OSError("no network")

    monkeypatch.setattr("huggingface_hub.hf_hub_download", refuse)
    monkeypatch.setattr("torch.hub.load_state_dict_from_url", refuse)
    build_model(ModelConfig.model_validate({**TINY, "encoder_weights": "imagenet"}), pretrained=False)


def test_same_seed_gives_the_same_weights() -> None:
    states = []
    for _ in range(2):
        torch.manual_seed(4)
        states.append(model_of().state_dict())
    assert all(torch.equal(states[0][name], states[1][name]) for name in states[0])
