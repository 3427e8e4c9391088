"""Networks from segmentation_models_pytorch, by configuration."""

import inspect
from typing import Any

import segmentation_models_pytorch as smp
import torch

from pneumo_dist.config import ModelConfig
from shards.errors import InputError


def build_model(config: ModelConfig, pretrained: bool) -> torch.nn.Module:
    """Return a network that maps float32 (n, in_channels, h, w) to logits (n, 1, h, w); h, w multiples of 32.

    `pretrained` lets the library fetch the configured encoder weights; without it no hub is ever asked (ranks other
    than 0 receive the weights, and inference loads a checkpoint). Raises InputError for an unknown architecture,
    encoder or decoder option, and where pretrained weights cannot be had.
    """
    norm = config.decoder_use_norm
    options: dict[str, Any] = {
        "decoder_channels": config.decoder_channels,
        # The library initialises weights that its instance norm has only when asked for.
        "decoder_use_norm": {"type": "instancenorm", "affine": True} if norm == "instancenorm" else norm,
        "decoder_attention_type": config.decoder_attention_type,
        "decoder_interpolation": config.decoder_interpolation,
    }
    options = {name: value for name, value in options.items() if value is not None}
    _check_options(config.arch, options)
    weights = config.encoder_weights if pretrained else None
    try:
        model: torch.nn.Module = smp.create_model(
            config.arch,
            encoder_name=config.encoder,
            encoder_weights=weights,
            in_channels=config.in_channels,
            classes=1,
            **options,
        )
    except (KeyError, ValueError, TypeError) as error:
        raise InputError(
            f"model {config.arch} with encoder {config.encoder}: {error}; mend model.* in the config"
        ) from None
    except OSError as error:
        raise InputError(
            f"pretrained weights of {config.encoder} cannot be fetched ({type(error).__name__}); "
            "fetch them where the hub can be reached, or set model.encoder_weights: null"
        ) from None
    return model


def _check_options(arch: str, options: dict[str, Any]) -> None:
    """The library takes and ignores decoder options that an architecture does not have."""
    if arch.lower() not in smp.MODEL_ARCHITECTURES_MAPPING:
        names = ", ".join(smp.MODEL_ARCHITECTURES_MAPPING)
        raise InputError(f"model.arch {arch}: unknown; choose from {names}")
    known = inspect.signature(smp.MODEL_ARCHITECTURES_MAPPING[arch.lower()].__init__).parameters
    for name in options:
        if name not in known:
            raise InputError(f"model.{name}: {arch} has no such option; remove it from the config")
