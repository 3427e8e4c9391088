"""Networks from segmentation_models_pytorch, by configuration."""

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
    options: dict[str, Any] = {
        "decoder_channels": config.decoder_channels,
        "decoder_use_norm": config.decoder_use_norm,
        "decoder_attention_type": config.decoder_attention_type,
        "decoder_interpolation": config.decoder_interpolation,
    }
    weights = config.encoder_weights if pretrained else None
    try:
        model: torch.nn.Module = smp.create_model(
            config.arch,
            encoder_name=config.encoder,
            encoder_weights=weights,
            in_channels=config.in_channels,
            classes=1,
            **{name: value for name, value in options.items() if value is not None},
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
