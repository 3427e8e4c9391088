"""Group norm with weight standardisation in the place of batch norm, for micro-batches of one or two films.

Y. Wu and K. He, "Group Normalization", ECCV 2018; S. Qiao and others, "Weight Standardization", arXiv:1903.10520. The
weights and biases of all layers keep their names, so encoders that were trained with either kind of norm load.
"""

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from shards.errors import InputError

# Batch norm has these, and group norm has not.
_STATISTICS = ("running_mean", "running_var", "num_batches_tracked")
# Every architecture accepts this side.
_SIDE = 256


class GroupNorm(nn.GroupNorm):
    """nn.GroupNorm that takes the place of a batch norm. Statistics of a batch norm in a loaded state are dropped."""

    def _load_from_state_dict(self, state_dict: dict[str, Any], prefix: str, *arguments: Any) -> None:
        for name in _STATISTICS:
            state_dict.pop(prefix + name, None)
        super()._load_from_state_dict(state_dict, prefix, *arguments)


def with_group_norm(model: nn.Module, groups: int, in_channels: int) -> nn.Module:
    """Replace a model's batch norms by group norms, and standardise the weights of convolutions that they follow.

    The new layers take over the weights. A convolution is standardised if a batch norm reads its output and nothing
    comes between them, in all of the network. Its weights are kept as they are and standardised in each pass: per
    output channel, minus their mean and over their deviation.

    Args:
        model: The network, which is changed and returned.
        groups: Number of groups of channels. If a layer's channels are no multiple of it, the number is the largest
            divisor of both.
        in_channels: Channels of the network's images.

    Raises:
        InputError: The network has no batch norm, or has a layer of a kind that cannot be replaced.
    """
    followed = _followed_by_norm(model, in_channels)
    made: dict[nn.Module, nn.Module] = {}
    # A layer may have several names.
    for name, layer in list(model.named_modules(remove_duplicate=False)):
        if not isinstance(layer, _BatchNorm) and layer not in followed:
            continue
        if layer not in made:
            made[layer] = _replacement(layer, groups)
        parent, _, own = name.rpartition(".")
        setattr(model.get_submodule(parent), own, made[layer])
    if not any(isinstance(layer, GroupNorm) for layer in made.values()):
        raise InputError("model.norm group_ws: the network has no batch norm to replace; set it to batch")
    return model


def _replacement(layer: nn.Module, groups: int) -> nn.Module:
    """Return the layer that takes the place of a batch norm or of a convolution before one."""
    from timm.layers.std_conv import StdConv2d  # a large import, which only this needs

    if type(layer) is nn.BatchNorm2d:
        channels = layer.num_features
        norm = GroupNorm(math.gcd(groups, channels), channels, layer.eps, layer.affine, device="meta")
        norm.weight, norm.bias = layer.weight, layer.bias
        return norm.train(layer.training)
    if type(layer) is nn.Conv2d and layer.padding_mode == "zeros":
        shape = ("kernel_size", "stride", "padding", "dilation", "groups")
        options: dict[str, Any] = {name: getattr(layer, name) for name in shape}
        bias = layer.bias is not None
        conv: nn.Conv2d = StdConv2d(layer.in_channels, layer.out_channels, bias=bias, device="meta", **options)
        conv.weight, conv.bias = layer.weight, layer.bias
        return conv.train(layer.training)
    raise InputError(
        f"model.norm group_ws: a layer of the kind {type(layer).__name__} cannot be replaced; set it to batch, or "
        "choose another model.encoder"
    )


def _followed_by_norm(model: nn.Module, in_channels: int) -> set[nn.Module]:
    """Return the convolutions whose output a batch norm reads as it is, from a pass that computes only shapes."""
    # Tensors without values in the place of the model's, so that the copy needs no memory.
    bare = {id(tensor): tensor.detach().to("meta") for tensor in (*model.parameters(), *model.buffers())}
    skeleton = copy.deepcopy(model, dict(bare))
    try:
        names = _names_before_norms(skeleton, torch.zeros(1, in_channels, _SIDE, _SIDE, device="meta"))
    except NotImplementedError:  # the meta device lacks an operation
        device = next(model.parameters()).device
        if device.type == "meta":
            raise InputError("model.norm group_ws: the encoder cannot be traced; choose another one") from None
        names = _names_before_norms(model, torch.zeros(1, in_channels, _SIDE, _SIDE, device=device))
    # The weights of a single value would all become 0.
    found = (model.get_submodule(name) for name in names)
    return {conv for conv in found if isinstance(conv, nn.Conv2d) and conv.weight[0].numel() > 1}


def _names_before_norms(model: nn.Module, images: torch.Tensor) -> set[str]:
    # The outputs stay alive, so that no other tensor gets their identity. A version changes with each change in place.
    outputs: dict[int, tuple[str, torch.Tensor, int]] = {}
    names: set[str] = set()

    def wrote(name: str, output: torch.Tensor) -> None:
        outputs[id(output)] = name, output, output._version

    def reads(images: torch.Tensor) -> None:
        name, _, version = outputs.get(id(images), ("", images, -1))
        if version == images._version:
            names.add(name)

    with _hooks(model, wrote, reads), torch.no_grad():
        mode = model.training
        try:
            model.eval()(images)
        finally:
            model.train(mode)
    return names


@contextmanager
def _hooks(model: nn.Module, wrote: Any, reads: Any) -> Iterator[None]:
    """Call `wrote` with each convolution's name and output, and `reads` with each batch norm's input."""
    handles = []
    for name, layer in model.named_modules():
        if isinstance(layer, nn.Conv2d):
            handles.append(layer.register_forward_hook(lambda _, __, output, name=name: wrote(name, output)))
        elif isinstance(layer, _BatchNorm):
            handles.append(layer.register_forward_pre_hook(lambda _, inputs: reads(inputs[0])))
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()
