"""Check on the meta device, which computes no values, that a network can be built and accepts its input."""

from collections.abc import Mapping

import torch

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model, split_outputs
from shards.errors import InputError


class OneValue(InputError):
    """A batch norm in training gets one value per channel, which has no variance."""


def meta_model(config: ModelConfig) -> torch.nn.Module:
    """Build a network on the meta device: names and shapes without values. Raises as `build_model`."""
    try:
        with torch.device("meta"):
            return build_model(config, pretrained=False)
    except InputError:
        # Some encoders compute with values during construction. An error in the config is raised again here.
        return build_model(config, pretrained=False).to("meta")


def check_input(model: torch.nn.Module, films: int, channels: int, size: int, training: bool) -> None:
    """Raise InputError, with the library's reason, if a network of `meta_model` does not accept a batch.

    Raises OneValue if it would accept another number of films.
    """
    model.train(training)
    try:
        with torch.no_grad():
            logits, classes = split_outputs(model(torch.empty(films, channels, size, size, device="meta")))
    except NotImplementedError:
        return  # the meta device lacks an operation
    except Exception as error:  # libraries raise many types for a wrong size
        reason = " ".join(str(error).split())
        if "meta" in reason:
            return  # the operation needs values
        kind = OneValue if "more than 1 value per channel" in reason else InputError
        raise kind(reason) from None
    if logits is None:
        assert classes is not None and classes.shape == (films, 1), "a classifier has one output per film"
    elif logits.shape != (films, 1, size, size):
        raise InputError(f"its output is {tuple(logits.shape[1:])}")


def check_weights(weights: Mapping[str, torch.Tensor], model: torch.nn.Module, stage: str) -> None:
    """Raise InputError if a stage cannot start from the weights of another."""
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise InputError(
            f"stage {stage}: the checkpoint that it starts from has another network; use the same model, or change init"
        )


def checkpoint_bytes(model: torch.nn.Module, copies: int) -> int:
    """Return the size in bytes of a checkpoint with `copies` values for each weight."""
    values: Mapping[str, torch.Tensor] = model.state_dict()
    return copies * sum(value.numel() * value.element_size() for value in values.values())


def activation_bytes(model: torch.nn.Module, channels: int, size: int) -> int:
    """Return the bytes of float32 values that a network of `meta_model` keeps of one film for the backward pass."""
    parameters = {parameter.untyped_storage()._cdata for parameter in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        # The storages stay alive until they are counted, because an address may be used again.
        kept[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    model.train()
    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        output = model(torch.empty(1, channels, size, size, device="meta"))
    assert output is not None
    return sum(storage.nbytes() for address, storage in kept.items() if address not in parameters)
