"""The classifier: an encoder with a pooled head, its loss, and the configs that it refuses."""

from typing import Any

import pydantic
import pytest
import segmentation_models_pytorch as smp
import torch
from builders import experiment_of
from torch.nn.functional import binary_cross_entropy_with_logits

from pneumo_dist.config.loss import LossConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model, freeze_encoder, split_outputs
from pneumo_dist.network.fit import check_input, meta_model
from pneumo_dist.network.losses import combo_loss, loss_terms
from shards.errors import InputError

MODEL: dict[str, Any] = {"arch": "classifier", "encoder": "resnet18", "in_channels": 1, "classification": {}}
LOSS: dict[str, Any] = {"bce": 0, "dice": 0, "focal": 0, "classification": 2}


def model_of(**values: Any) -> torch.nn.Module:
    torch.manual_seed(0)
    return build_model(ModelConfig.model_validate({**MODEL, **values}), pretrained=False)


def test_class_logits_are_a_linear_layer_on_the_mean_of_the_deepest_features() -> None:
    model = model_of().eval()
    images = torch.randn(3, 1, 64, 96)
    maps, logits = split_outputs(model(images))
    assert maps is None and logits is not None and logits.shape == (3, 1)
    encoder = smp.encoders.get_encoder("resnet18", in_channels=1, depth=5, weights=None).eval()
    encoder.load_state_dict(model.get_submodule("encoder").state_dict())
    state = model.state_dict()
    (weight,) = [value for name, value in state.items() if name.startswith("classification_head") and value.ndim == 2]
    (bias,) = [value for name, value in state.items() if name.startswith("classification_head") and value.ndim == 1]
    expected = encoder(images)[-1].mean((2, 3)) @ weight.T + bias
    torch.testing.assert_close(logits, expected)


@pytest.mark.parametrize("dropout", [0.0, 0.4])
def test_dropout_is_that_of_the_config(dropout: float) -> None:
    model = model_of(classification={"dropout": dropout})
    assert [each.p for each in model.modules() if isinstance(each, torch.nn.Dropout)] == ([dropout] if dropout else [])


def test_encoder_is_frozen_and_fits_any_side() -> None:
    model = model_of()
    freeze_encoder(model, True)
    assert {name.split(".")[0] for name, each in model.named_parameters() if each.requires_grad} == {
        "classification_head"
    }
    check_input(meta_model(ModelConfig.model_validate(MODEL)), 2, 1, 96, training=True)


def test_loss_is_binary_cross_entropy_against_a_mask_with_a_pixel() -> None:
    config = LossConfig.model_validate(LOSS)
    masks = torch.zeros(4, 1, 8, 8)
    masks[1, 0, 3, 3] = masks[2, 0, 1] = 1
    logits = torch.tensor([[0.3], [-0.2], [2.0], [-1.5]], requires_grad=True)
    expected = binary_cross_entropy_with_logits(logits[:, 0], torch.tensor([0.0, 1, 1, 0]))
    for autocast in (False, True):
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            terms = combo_loss(None, masks, config, logits)
        assert tuple(terms) == loss_terms(config) == ("loss", "classification")
        torch.testing.assert_close(terms["classification"], expected)
        torch.testing.assert_close(terms["loss"], 2 * expected)
        assert terms["loss"].dtype == torch.float32


@pytest.mark.parametrize(
    ("model", "loss", "says"),
    [
        (MODEL, {**LOSS, "bce": 1}, "stage s0: arch classifier has no map for loss.bce; set bce: 0"),
        (MODEL, {"classification": 1}, "for loss.bce and loss.dice and loss.focal; set bce: 0, dice: 0, focal: 0"),
        (MODEL, {**LOSS, "classification": 0, "lovasz": 1}, "set model.classification and loss.classification above 0"),
        ({**MODEL, "classification": None}, LOSS, "set classification: {}"),
        ({**MODEL, "decoder_channels": (8,) * 5}, LOSS, "arch classifier has no decoder; remove decoder_channels"),
        ({**MODEL, "arch": "unet"}, LOSS, "loss.classification alone does not train the map of arch unet"),
    ],
)
def test_losses_and_options_of_another_kind_are_refused(model: dict[str, Any], loss: dict[str, Any], says: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=says):
        experiment_of({"loss": loss}, model=model)


def test_unknown_encoder_is_an_input_error() -> None:
    with pytest.raises(InputError, match="did you mean resnet18"):
        model_of(encoder="resnet19")
