"""Whether a configured network can be built and takes its input: tried on the meta device, which computes no value."""

from collections.abc import Mapping

import torch

from pneumo_dist.config.model import ModelConfig
from pneumo_dist.network.build import build_model, split_outputs
from shards.errors import InputError


class OneValue(InputError):
    """A batch norm in training gets one value a channel, which has no variance."""


def meta_model(config: ModelConfig) -> torch.nn.Module:
    """Return the network on the meta device: names and shapes without values. Raises InputError as `build_model`."""
    try:
        with torch.device("meta"):
            return build_model(config, pretrained=False)
    except InputError:
        # Some encoders compute with values while they are made; an error of the config comes again.
        return build_model(config, pretrained=False).to("meta")


def check_input(model: torch.nn.Module, films: int, channels: int, size: int, training: bool) -> None:
    """Raise InputError, with the library's reason, where a network of `meta_model` cannot take so many films.

    Raises OneValue where another number of films would do.
    """
    model.train(training)
    try:
        with torch.no_grad():
            logits, _ = split_outputs(model(torch.empty(films, channels, size, size, device="meta")))
    except NotImplementedError:
        return  # an operation that the meta device does not have
    except Exception as error:  # whatever a library raises for a size
        reason = " ".join(str(error).split())
        if "meta" in reason:
            return  # one that needs values
        kind = OneValue if "more than 1 value per channel" in reason else InputError
        raise kind(reason) from None
    if logits.shape != (films, 1, size, size):
        raise InputError(f"its map is {tuple(logits.shape[1:])}")


def check_weights(weights: Mapping[str, torch.Tensor], model: torch.nn.Module, stage: str) -> None:
    """Raise InputError where a stage cannot start from the weights of another."""
    shapes = {name: value.shape for name, value in model.state_dict().items()}
    if {name: value.shape for name, value in weights.items()} != shapes:
        raise InputError(
            f"stage {stage}: the checkpoint that it starts from is of another network; give it the same model, or "
            "change init"
        )


def checkpoint_bytes(model: torch.nn.Module, copies: int) -> int:
    """Return the size of a checkpoint that holds so many values for each weight, in bytes."""
    values: Mapping[str, torch.Tensor] = model.state_dict()
    return copies * sum(value.numel() * value.element_size() for value in values.values())
