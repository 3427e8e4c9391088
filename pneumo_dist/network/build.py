"""Build networks from the configuration: segmentation_models_pytorch's, the first place's, and a small FCN."""

import difflib
import inspect
import io
from collections.abc import Container, Mapping
from typing import Any

import torch
from torch.nn.modules.batchnorm import _BatchNorm

from pneumo_dist.config.model import FcnConfig, ModelConfig
from pneumo_dist.network.fcn import Fcn, SkipFcn
from pneumo_dist.network.first_place import DECODER_WIDTHS, replace_decoder
from pneumo_dist.network.group_norm import with_group_norm
from pneumo_dist.network.weights import load_encoder_file
from shards.errors import InputError, InputErrors

CLASSIFIER = "classifier"


def build_model(config: ModelConfig, pretrained: bool) -> torch.nn.Module:
    """Build a network that maps float32 (n, in_channels, h, w) to logits (n, 1, h, w); h, w multiples of 32.

    With a classification head the network returns (logits, class logits (n, 1)), a classifier (None, class logits);
    `split_outputs` accepts all forms.

    Args:
        pretrained: Load the configured encoder weights, from the library's hub or from a file. If False, no hub is
            contacted: ranks other than 0 receive the weights, and inference loads a checkpoint.

    Raises:
        InputError: The architecture, the encoder or a decoder option is unknown, pretrained weights are unavailable, or
            the network's batch norms cannot be replaced.
    """
    if config.arch == "fcn":
        fcn = config.fcn or FcnConfig()
        return (SkipFcn if fcn.skips else Fcn)(fcn, config.in_channels)
    from_file = pretrained and config.encoder_weights_file is not None
    weights = config.encoder_weights if pretrained else None
    # A file holds weights for three channels; the library then adapts the first layer, as it does with its own weights.
    channels = 3 if from_file else config.in_channels
    model = _create(config, weights, channels)
    if config.norm == "group_ws":
        model = with_group_norm(model, config.norm_groups, channels)
    if from_file:
        _load_encoder(model, config)
    return model


def split_outputs(
    outputs: torch.Tensor | tuple[torch.Tensor | None, torch.Tensor],
) -> tuple[torch.Tensor | None, torch.Tensor | None]:
    """Return logits, None for a classifier, and class logits, None without a classification head."""
    return outputs if isinstance(outputs, tuple) else (outputs, None)


def freeze_encoder(model: torch.nn.Module, frozen: bool) -> None:
    """Exclude the encoder from training, or include it again; wrap the model in a new DDP afterwards."""
    encoder = model.get_submodule("encoder")
    encoder.requires_grad_(not frozen)
    # Sets the mode of its batch norms and dropout too: statistics must not change either.
    encoder.train(not frozen)


def freeze_batch_norm(model: torch.nn.Module) -> None:
    """Exclude statistics and weights of all batch norms from training; `train()` includes the statistics again."""
    for layer in model.modules():
        if isinstance(layer, _BatchNorm):
            layer.eval()
            layer.requires_grad_(False)


def encoder_state(config: ModelConfig) -> bytes:
    """Return the configured pretrained encoder weights as content for an `encoder_weights_file`."""
    model = _create(config, config.encoder_weights, 3)
    buffer = io.BytesIO()
    torch.save(model.get_submodule("encoder").state_dict(), buffer)
    return buffer.getvalue()


def _create(config: ModelConfig, weights: str | None, in_channels: int) -> torch.nn.Module:
    # Its import takes longer than torch's, and the other architectures do not need it.
    import segmentation_models_pytorch as smp

    norm = config.decoder_use_norm
    options: dict[str, Any] = {
        "decoder_channels": config.decoder_channels,
        # By default the library's instance norm has no weights, but the library still initialises them.
        "decoder_use_norm": {"type": "instancenorm", "affine": True} if norm == "instancenorm" else norm,
        "decoder_attention_type": config.decoder_attention_type,
        "decoder_interpolation": config.decoder_interpolation,
        "aux_params": config.classification and {"classes": 1, "dropout": config.classification.dropout or None},
    }
    options = {name: value for name, value in options.items() if value is not None}
    _check_options(config.arch, options, smp.MODEL_ARCHITECTURES_MAPPING)
    is_first_place = config.arch in DECODER_WIDTHS
    widths = options.pop("decoder_channels", None) if is_first_place else None
    model: torch.nn.Module
    try:
        if config.is_classifier:
            from pneumo_dist.network.classifier import Classifier

            assert config.classification is not None
            return Classifier(config.encoder, weights, in_channels, config.classification.dropout)
        model = smp.create_model(
            "unet" if is_first_place else config.arch,
            encoder_name=config.encoder,
            encoder_weights=weights,
            in_channels=in_channels,
            classes=1,
            **options,
        )
        if is_first_place:
            replace_decoder(model, config.arch, widths)
    except (KeyError, ValueError, TypeError) as error:
        if "encoder name" in str(error):
            near = difflib.get_close_matches(config.encoder, smp.encoders.get_encoder_names())
            hint = f"did you mean {' or '.join(near)}?" if near else "names of timm encoders start with tu-"
            raise InputError(f"model.encoder {config.encoder}: unknown; {hint}") from None
        raise InputError(
            f"model {config.arch} with encoder {config.encoder}: {error}; change model.* in the config"
        ) from None
    except (OSError, RuntimeError) as error:
        if weights is None:
            raise InputError(f"model {config.arch} with encoder {config.encoder} cannot be built: {error}") from None
        raise InputError(
            f"pretrained weights of {config.encoder} cannot be fetched ({type(error).__name__}); "
            "run 'python -m pneumo_dist fetch-weights' where the hub can be reached, or set model.encoder_weights: null"
        ) from None
    return model


def _load_encoder(model: torch.nn.Module, config: ModelConfig) -> None:
    encoder: Any = model.get_submodule("encoder")
    load_encoder_file(encoder, config)
    if config.in_channels != 3:
        if config.encoder.startswith("tu-"):
            raise InputError(f"model.in_channels 1: weights of {config.encoder} from a file need in_channels: 3")
        encoder.set_in_channels(config.in_channels, pretrained=True)


def _check_options(arch: str, options: dict[str, Any], architectures: Mapping[str, type]) -> None:
    """Raise InputError for options that the architecture lacks; the library would ignore them."""
    if arch == CLASSIFIER:
        return
    if arch in DECODER_WIDTHS:
        supported: Container[str] = ("decoder_channels", "aux_params")
    elif arch.lower() in architectures:
        supported = inspect.signature(architectures[arch.lower()]).parameters
    else:
        names = ", ".join([*architectures, *DECODER_WIDTHS, "fcn", CLASSIFIER])
        raise InputError(f"model.arch {arch}: unknown; choose from {names}")
    unknown = [name for name in options if name not in supported]
    if unknown:
        raise InputErrors([f"model.{name}: {arch} has no such option; remove it from the config" for name in unknown])
