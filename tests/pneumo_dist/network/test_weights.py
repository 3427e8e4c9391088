"""Encoder weights from a file, under various names, and the differences if they do not fit."""

import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import experiment_of

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model
from pneumo_dist.network.fit import meta_model
from pneumo_dist.network.weights import load_encoder_file, load_network_file, weights_line
from shards.errors import InputError

Weights = dict[str, torch.Tensor]
UNET = {"arch": "unet", "encoder": "resnet18", "decoder_channels": (8, 8, 8, 8, 8)}


def prefixed(prefix: str, state: Weights) -> Weights:
    return {f"{prefix}{name}": value for name, value in state.items()}


@pytest.fixture(scope="module")
def whole() -> Weights:
    """Return the weights of a whole U-Net with a resnet18 encoder."""
    torch.manual_seed(3)
    return build_model(ModelConfig.model_validate(UNET), pretrained=False).state_dict()


@pytest.fixture(scope="module")
def own(whole: Weights) -> Weights:
    return {name.removeprefix("encoder."): value for name, value in whole.items() if name.startswith("encoder.")}


def config_of(folder: Path, content: Any, **model: Any) -> ModelConfig:
    path = folder / "weights.pt"
    torch.save(content, path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    file_values = {"encoder_weights_file": str(path), "encoder_weights_sha256": digest}
    return ModelConfig.model_validate({**UNET, **file_values, **model})


KINDS: dict[str, Callable[[Weights, Weights], Any]] = {
    "plain": lambda own, whole: own,
    "of DDP": lambda own, whole: prefixed("module.", own),
    "a whole network": lambda own, whole: whole,
    "a whole network of DDP": lambda own, whole: prefixed("module.", whole),
    "Lightning's": lambda own, whole: {"epoch": 3, "state_dict": prefixed("model.", whole), "optimizer": {}},
    "a state beside a number": lambda own, whole: {"step": torch.tensor(4), "model": prefixed("module.", whole)},
    "twice wrapped": lambda own, whole: {"model": {"state_dict": own}},
    "with a classifier": lambda own, whole: {**own, "fc.weight": torch.zeros(2, 512), "fc.bias": torch.zeros(2)},
    "with an average": lambda own, whole: {"model": prefixed("x.", whole), "averaged": None},
}


@pytest.mark.parametrize("kind", KINDS)
def test_file_loads_whatever_the_prefix_of_its_names(tmp_path: Path, own: Weights, whole: Weights, kind: str) -> None:
    config = config_of(tmp_path, KINDS[kind](own, whole))
    torch.manual_seed(4)
    loaded = build_model(config, pretrained=True).get_submodule("encoder").state_dict()
    assert list(loaded) == list(own)
    assert all(torch.equal(loaded[name], own[name]) for name in own)
    load_encoder_file(meta_model(config).get_submodule("encoder"), config, assign=True)


def test_timms_own_names_load_into_the_librarys_encoder(tmp_path: Path) -> None:
    model = {"encoder": "tu-resnet18"}
    encoder = build_model(ModelConfig.model_validate({**UNET, **model}), pretrained=False).get_submodule("encoder")
    state = {name.removeprefix("model."): value for name, value in encoder.state_dict().items()}
    loaded = build_model(config_of(tmp_path, state, **model), pretrained=True).get_submodule("encoder.model")
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


def refusal(config: ModelConfig) -> str:
    with pytest.raises(InputError) as caught:
        build_model(config, pretrained=True)
    with pytest.raises(InputError) as again:
        load_encoder_file(meta_model(config).get_submodule("encoder"), config, assign=True)
    assert str(again.value) == str(caught.value) and "\n" not in str(caught.value)
    return str(caught.value)


def test_differences_are_counted_and_named(tmp_path: Path, own: Weights) -> None:
    state = {name: value for name, value in own.items() if not name.startswith("layer4.1")}
    state |= {"conv1.weight": torch.zeros(64, 1, 7, 7), "head.weight": torch.zeros(1)}
    message = refusal(config_of(tmp_path, prefixed("module.", state)))
    assert "holds no weights of resnet18: of its 120 tensors 10 missing (layer4.1.conv1.weight, layer4.1.bn1" in message
    assert "…), 1 of another shape (conv1.weight (64, 1, 7, 7) for (64, 3, 7, 7)), 1 unknown (head.weight); " in message


def test_weights_of_another_encoder_are_described_by_their_names(tmp_path: Path, own: Weights) -> None:
    message = refusal(config_of(tmp_path, own, encoder="efficientnet-b0"))
    assert "holds no weights of efficientnet-b0: of its" in message and "missing (_conv_stem.weight" in message


@pytest.mark.parametrize("content", [[1, 2], {"epoch": 3}, {"state_dict": {}}, {"state_dict": "x"}, {}])
def test_a_file_without_tensors_is_one_line(tmp_path: Path, content: Any) -> None:
    assert "holds no weights of resnet18; give another file" in refusal(config_of(tmp_path, content))


def test_line_says_which_weights_a_network_starts_from() -> None:
    digest = "0" * 64
    init = {"file": "all.pt", "sha256": digest}
    assert weights_line(experiment_of(init=init)) == "the network starts from all.pt"
    assert (
        weights_line(experiment_of(init={"experiment": "a", "stage": "b"}))
        == "the network starts from the stage b of a"
    )
    for model, words in (
        ({}, "encoder resnet34 starts from random weights (model.encoder_weights: null)"),
        ({"encoder_weights": "imagenet"}, "encoder resnet34 starts from imagenet weights"),
        ({"encoder_weights_file": "w.pt", "encoder_weights_sha256": digest}, "encoder resnet34 starts from w.pt"),
        ({"arch": "fcn"}, "the network starts from random weights, as fcn has no pretrained ones"),
    ):
        assert weights_line(experiment_of(model=model)) == words


WHOLE: dict[str, Callable[[Weights], Any]] = {
    "plain": lambda whole: whole,
    "of DDP": lambda whole: prefixed("module.", whole),
    "Lightning's": lambda whole: {"epoch": 3, "state_dict": prefixed("model.", whole)},
    "a checkpoint of this project": lambda whole: {"model": {}, "averaged": whole, "position": {"epoch": 1}},
}


def start_of(folder: Path, content: Any) -> Experiment:
    path = folder / "weights.pt"
    torch.save(content, path)
    init = {"file": str(path), "sha256": hashlib.sha256(path.read_bytes()).hexdigest()}
    return experiment_of(model=UNET, init=init)


@pytest.mark.parametrize("kind", WHOLE)
def test_whole_network_loads_from_a_file(tmp_path: Path, whole: Weights, kind: str) -> None:
    experiment = start_of(tmp_path, WHOLE[kind](whole))
    torch.manual_seed(4)
    network = build_model(experiment.model, pretrained=False)
    load_network_file(network, experiment)
    assert all(torch.equal(value, whole[name]) for name, value in network.state_dict().items())


BAD: dict[str, tuple[Callable[[Weights, Weights], Any], str]] = {
    "an encoder": (lambda whole, own: own, "missing (decoder"),
    "one more layer": (lambda whole, own: {**whole, "decoder.extra": torch.zeros(1)}, "1 unknown (decoder.extra)"),
    "another width": (lambda whole, own: {**whole, "segmentation_head.0.bias": torch.zeros(2)}, "(2,) for (1,)"),
    "nothing": (lambda whole, own: {"epoch": 3}, "holds no weights of unet with resnet18; give another file"),
    "no numbers": (lambda whole, own: {**whole, "segmentation_head.0.bias": torch.tensor([torch.nan])}, "not finite"),
}


@pytest.mark.parametrize("kind", BAD)
def test_file_of_another_network_is_refused(tmp_path: Path, whole: Weights, own: Weights, kind: str) -> None:
    content, words = BAD[kind]
    experiment = start_of(tmp_path, content(whole, own))
    with pytest.raises(InputError) as caught:
        load_network_file(build_model(experiment.model, pretrained=False), experiment)
    message = str(caught.value)
    assert message.startswith(f"init.file {tmp_path}") and words in message and "\n" not in message


def test_file_with_another_digest_is_refused(tmp_path: Path, whole: Weights) -> None:
    experiment = start_of(tmp_path, whole)
    torch.save(whole, tmp_path / "weights.pt")
    (tmp_path / "weights.pt").write_bytes((tmp_path / "weights.pt").read_bytes() + b" ")
    with pytest.raises(InputError, match=r"init\.file .*its SHA-256 is [0-9a-f]{64}; give that file or that digest"):
        load_network_file(build_model(experiment.model, pretrained=False), experiment)
