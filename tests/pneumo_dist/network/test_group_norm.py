"""Group norm and standardised weights: the definitions, which layers get them, and weights of batch-norm encoders."""

import hashlib
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydantic
import pytest
import torch
from builders import experiment_of
from timm.layers.std_conv import StdConv2d
from torch import nn

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.data.films import Batch
from pneumo_dist.doctor.inputs import weights_mismatch
from pneumo_dist.network.batch_norm import recompute_statistics
from pneumo_dist.network.build import build_model, encoder_state
from pneumo_dist.network.fit import check_input, meta_model
from pneumo_dist.network.group_norm import GroupNorm, with_group_norm
from pneumo_dist.network.sync_batch_norm import norm_statistics
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.step import Learner
from shards.errors import InputError

Floats = npt.NDArray[np.float64]
UNET = {"arch": "unet", "encoder": "resnet18", "decoder_channels": (48, 24, 8, 8, 8)}
STATISTICS = ("running_mean", "running_var", "num_batches_tracked")


def config_of(**values: Any) -> ModelConfig:
    return ModelConfig.model_validate({**UNET, "norm": "group_ws", **values})


def model_of(**values: Any) -> nn.Module:
    torch.manual_seed(0)
    return build_model(config_of(**values), pretrained=False)


def without_statistics(state: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: value for name, value in state.items() if not name.endswith(STATISTICS)}


# -- the definitions


def standardised(weight: Floats) -> Floats:
    """Qiao and others, equation 10, with the epsilon inside the root."""
    rows = weight.reshape(len(weight), -1)
    rows = (rows - rows.mean(1, keepdims=True)) / np.sqrt(rows.var(1, keepdims=True) + 1e-6)
    return np.asarray(rows.reshape(weight.shape))


def convolved(images: Floats, weight: Floats) -> Floats:
    """A 3x3 convolution with a border of zeros."""
    padded = np.pad(images, ((0, 0), (0, 0), (1, 1), (1, 1)))
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), axis=(2, 3))
    return np.asarray(np.einsum("nchwij,ocij->nohw", windows, weight))


def grouped(images: Floats, groups: int, weight: Floats, bias: Floats) -> Floats:
    """Wu and He, equations 1 to 3: mean and deviation over the channels and pixels of a group, in each film."""
    out = np.empty_like(images)
    size = images.shape[1] // groups
    for film in range(len(images)):
        for first in range(0, images.shape[1], size):
            part = images[film, first : first + size]
            out[film, first : first + size] = (part - part.mean()) / np.sqrt(part.var() + 1e-5)
    return np.asarray(out * weight[:, None, None] + bias[:, None, None])


@pytest.mark.parametrize(("channels", "groups", "expected"), [(12, 4, 4), (12, 32, 4), (48, 32, 16), (7, 32, 1)])
def test_block_equals_the_definitions_in_numpy(channels: int, groups: int, expected: int) -> None:
    torch.manual_seed(1)
    conv, norm = nn.Conv2d(3, channels, 3, padding=1, bias=False).double(), nn.BatchNorm2d(channels).double()
    nn.init.normal_(norm.weight)
    nn.init.normal_(norm.bias)
    weight, scale, shift = (value.detach().numpy() for value in (conv.weight, norm.weight, norm.bias))
    images = torch.randn(2, 3, 9, 8, dtype=torch.float64) + 5
    model = with_group_norm(nn.Sequential(conv, norm).double(), groups, 3)
    assert model.get_submodule("1").num_groups == expected
    with torch.no_grad():
        found = model(images).numpy()
    correct = grouped(convolved(images.numpy(), standardised(weight)), expected, scale, shift)
    np.testing.assert_allclose(found, correct, atol=1e-10)
    assert model.get_submodule("0").weight is conv.weight


def test_a_film_does_not_depend_on_its_batch_and_a_single_one_trains() -> None:
    model, images = model_of(encoder_weights=None), torch.randn(3, 3, 64, 64)
    with torch.no_grad():
        torch.testing.assert_close(model.train()(images)[:1], model(images[:1]), rtol=1e-4, atol=1e-4)
        torch.testing.assert_close(model.eval()(images), model.train()(images))
    model(images[:1]).square().mean().backward()
    gradients = [parameter.grad for parameter in model.parameters()]
    assert all(each is not None and bool(each.isfinite().all()) for each in gradients)
    deeplab = meta_model(config_of(arch="deeplabv3", decoder_channels=None))
    check_input(deeplab, 1, 3, 64, training=True)  # with batch norm, one value per channel is an error


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.float16])
def test_half_precision_standardises_in_float32(kind: torch.dtype) -> None:
    """Weights of a tiny deviation would vanish in half precision."""
    model, images = model_of().eval(), torch.randn(2, 3, 64, 64)
    for layer in model.modules():
        if isinstance(layer, StdConv2d):
            layer.weight.data.mul_(1e-2).add_(1.0)
    with torch.no_grad(), torch.autocast("cpu", dtype=kind):
        logits = model(images).float()
    with torch.no_grad():
        expected = model(images)
    assert bool(logits.isfinite().all())
    assert float((logits - expected).abs().mean()) < 0.05 * float(expected.std())


# -- which layers are replaced


def test_names_and_weights_are_those_of_the_network_with_batch_norm() -> None:
    model = model_of()
    torch.manual_seed(0)
    plain = build_model(config_of(norm="batch"), pretrained=False)
    before = without_statistics(plain.state_dict())
    assert list(model.state_dict()) == list(before) and len(before) < len(plain.state_dict())
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    layers = dict(model.named_modules())
    for name, layer in plain.named_modules():
        assert isinstance(layers[name], GroupNorm) == isinstance(layer, nn.BatchNorm2d)
    # All convolutions of a ResNet and of the decoder are before a norm, but not the head.
    standard = {name for name, layer in layers.items() if isinstance(layer, StdConv2d)}
    convs = {name for name, layer in layers.items() if isinstance(layer, nn.Conv2d)}
    assert convs - standard == {"segmentation_head.0"}
    assert {"encoder.conv1", "encoder.layer2.0.downsample.0", "decoder.blocks.0.conv1.0"} <= standard
    groups = {layer.num_channels: layer.num_groups for layer in layers.values() if isinstance(layer, GroupNorm)}
    assert groups == {64: 32, 128: 32, 256: 32, 512: 32, 48: 16, 24: 8, 8: 8}


class Odd(nn.Module):
    """Convolutions of which only `direct` is read by a batch norm as it is."""

    def __init__(self) -> None:
        super().__init__()
        self.direct, self.changed, self.joined, self.single = (nn.Conv2d(4, 4, 3, padding=1) for _ in range(4))
        self.single = nn.Conv2d(4, 4, 1, groups=4)
        self.norms = nn.ModuleList(nn.BatchNorm2d(width) for width in (4, 4, 8, 4))
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        maps = self.norms[0](self.direct(images))
        maps = self.norms[1](self.relu(self.changed(maps)))
        maps = self.norms[2](torch.cat((self.joined(maps), maps), 1))[:, :4]
        last: torch.Tensor = self.norms[3](self.single(maps))
        return last


def test_only_convolutions_that_a_norm_follows_at_once_are_standardised() -> None:
    model = with_group_norm(Odd(), 2, 4)
    assert {name for name, layer in model.named_modules() if isinstance(layer, StdConv2d)} == {"direct"}
    assert [type(layer) for layer in model.get_submodule("norms").children()] == [GroupNorm] * 4
    assert model.get_submodule("direct").bias is not None and model.training


def test_a_layer_with_two_names_stays_one_layer() -> None:
    norm = nn.BatchNorm2d(4)
    model = with_group_norm(nn.Sequential(nn.Conv2d(4, 4, 1), norm, nn.Conv2d(4, 4, 1), norm), 4, 4)
    assert model.get_submodule("1") is model.get_submodule("3") and isinstance(model.get_submodule("1"), GroupNorm)


@pytest.mark.parametrize(
    ("model", "message"),
    [
        ({"encoder": "timm-efficientnet-b0"}, "of the kind BatchNormAct2d cannot be replaced; set it to batch, or"),
        ({"encoder": "efficientnet-b0"}, "of the kind Conv2dStaticSamePadding cannot be replaced"),
    ],
)
def test_networks_that_cannot_have_group_norm_are_refused(model: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        build_model(config_of(**model), pretrained=False)


def test_a_network_without_batch_norm_is_refused() -> None:
    with pytest.raises(InputError, match="has no batch norm to replace; set it to batch"):
        with_group_norm(nn.Sequential(nn.Conv2d(3, 4, 3)), 32, 3)


# -- weights of other networks


@pytest.fixture(scope="module")
def original() -> dict[str, torch.Tensor]:
    """An encoder's weights with the names and shapes of ImageNet's."""
    torch.manual_seed(7)
    model = build_model(ModelConfig.model_validate(UNET), pretrained=False)
    state: dict[str, torch.Tensor] = model.get_submodule("encoder").state_dict()
    return {name: torch.rand_like(value) if value.is_floating_point() else value for name, value in state.items()}


def file_of(state: dict[str, torch.Tensor], folder: Path) -> dict[str, str]:
    path = folder / "weights.pt"
    torch.save(state, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    return {"encoder_weights_file": str(path), "encoder_weights_sha256": digest}


@pytest.mark.parametrize(("channels", "has_statistics"), [(1, True), (3, False)])
def test_encoders_that_were_trained_with_either_norm_load(
    original: dict[str, torch.Tensor], tmp_path: Path, channels: int, has_statistics: bool
) -> None:
    state = original if has_statistics else without_statistics(original)
    config = config_of(in_channels=channels, **file_of(state, tmp_path))
    assert weights_mismatch(config) is None
    found = build_model(config, pretrained=True).get_submodule("encoder").state_dict()
    first = found.pop("conv1.weight")
    assert torch.equal(
        first, original["conv1.weight"].sum(1, keepdim=True) if channels == 1 else original["conv1.weight"]
    )
    assert found and all(torch.equal(value, original[name]) for name, value in found.items())


def test_fetched_weights_and_the_network_without_values_have_the_same_names() -> None:
    """fetch-weights writes the library's encoder, with its statistics."""
    fetched = torch.load(io.BytesIO(encoder_state(config_of())), weights_only=True)
    assert any(name.endswith(STATISTICS) for name in fetched)
    names = list(meta_model(config_of()).state_dict())
    assert names == list(model_of().state_dict())
    assert list(without_statistics(fetched)) == [name[8:] for name in names if name.startswith("encoder.")]


# -- with everything that is about batch norm


def test_nothing_is_measured_or_synchronised() -> None:
    def untouched() -> Iterator[Batch]:
        raise AssertionError("no film is needed")
        yield

    model = model_of()
    recompute_statistics(model, untouched(), Ranks.alone(), "float32")
    assert norm_statistics(model, 2, 2) is None


@pytest.mark.parametrize(
    ("model", "stage", "message"),
    [
        ({"norm": "group_ws", "sync_batch_norm": True}, {}, "sync_batch_norm is about batch norms"),
        ({"norm": "group_ws"}, {"freeze_batch_norm": True}, "stage s0: freeze_batch_norm is about batch norms"),
        ({"norm": "group_ws", "arch": "fcn"}, {}, "arch fcn does not support norm"),
        ({"norm": "layer"}, {}, "'batch' or 'group_ws'"),
        ({"norm": "group_ws", "norm_groups": 0}, {}, "greater than or equal to 1"),
    ],
)
def test_settings_that_contradict_group_norm_are_refused(
    model: dict[str, Any], stage: dict[str, Any], message: str
) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        experiment_of(stage, model=model)


def test_a_learner_takes_steps_of_one_film_each() -> None:
    stage = {"micro_batch": 1, "global_batch": 2, "optim": {"name": "sgd", "lr": 0.1, "ema_decay": 0.9}}
    experiment = experiment_of(stage, model={**UNET, "norm": "group_ws", "in_channels": 1})
    network = build_model(experiment.model, pretrained=False)
    learner = Learner(experiment, experiment.stages[0], Ranks.alone(), "float32", network)
    learner.start_epoch(0)
    before = {name: value.clone() for name, value in network.state_dict().items()}
    masks = torch.zeros(1, 1, 64, 64)
    masks[..., 20:40, 20:40] = 1
    batches = [Batch(masks + torch.randn(1, 1, 64, 64) * number, masks, np.array([number])) for number in (1, 2)]
    step = learner.step(iter(batches), 2, 0, lambda micro: None)
    assert not step.is_bad and step.grad_norm > 0
    assert all(not torch.equal(value, before[name]) for name, value in network.state_dict().items())
    again = build_model(experiment.model, pretrained=False)
    again.load_state_dict(learner.state()["averaged"])
