"""Schema of the network."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumo_dist.config.schema import Channels, FilePath, LibraryName, Schema, Sha256

Dropout = Annotated[float, Field(ge=0, lt=1)]


class FcnConfig(Schema):
    """The small baseline network: three strided convolutions, a 1x1 convolution, three transposed convolutions."""

    widths: Annotated[tuple[Channels, ...], Field(min_length=3, max_length=3)] = (32, 64, 128)
    """Number of channels after each strided convolution."""
    norm: bool = False
    """Whether a batch norm follows each convolution."""
    dropout: Dropout = 0.0
    """Probability of dropping a channel after each convolution."""
    skips: bool = False
    """Whether the transposed convolutions also get the encoder's features of their size, and all kernels are 3x3."""


class ClassificationConfig(Schema):
    """A classification head, which predicts whether the film shows a pneumothorax."""

    dropout: Dropout = 0.0
    """Dropout between the global average pooling of the deepest features and the linear layer."""


class ModelConfig(Schema):
    """A segmentation network with one output map, or a classifier without one."""

    arch: LibraryName = "unet"
    """Architecture: a name of segmentation_models_pytorch (unet, fpn, deeplabv3plus, …), one of the first place's
    (albunet, scse_unet, resnet_unet), the small fcn, or classifier: an encoder with a pooled head, and no map."""
    encoder: LibraryName = "resnet34"
    """Encoder, by the library's name: resnet34, se_resnext50_32x4d, senet154, efficientnet-b4, or tu-… for timm's."""
    encoder_weights: LibraryName | None = None
    """Pretrained encoder weights, by the library's name (imagenet), downloaded by rank 0; null starts from random
    weights."""
    encoder_weights_file: FilePath | None = None
    """File with pretrained encoder weights, written by `fetch-weights`, to use instead of encoder_weights on nodes that
    cannot reach the hub."""
    encoder_weights_sha256: Sha256 | None = None
    """Expected SHA-256 of encoder_weights_file, in hexadecimal."""
    in_channels: Literal[1, 3] = 3
    """Number of input channels; with 3, the grey film is repeated."""
    decoder_channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=16)] | None = None
    """Number of channels of each decoder block; null is the library's default."""
    decoder_use_norm: bool | Literal["batchnorm", "identity", "instancenorm"] | None = None
    """Normalisation in the decoder; false disables it, null is the library's default."""
    decoder_attention_type: Literal["scse"] | None = None
    """Attention in the decoder blocks; null is none."""
    decoder_interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    """Upsampling method of the decoder; null is the library's default."""
    norm: Literal["batch", "group_ws"] = "batch"
    """batch: the library's batch norms; group_ws: group norms in their place, in encoder and decoder, and weight
    standardisation of the convolutions before them, which do not depend on the other films of a batch. Weights of an
    encoder with batch norm load, but the network needs more training to get used to the change."""
    norm_groups: Channels = 32
    """Number of groups of channels with group_ws; if a layer's channels are no multiple of it, the largest divisor of
    both."""
    sync_batch_norm: bool = False
    """Compute batch-norm statistics over the films of all ranks, on GPUs only; recommended below 4 films per rank."""
    classification: ClassificationConfig | None = None
    """Classification head on the encoder; null is none."""
    fcn: FcnConfig | None = None
    """Layers of arch fcn; null is the default. Only allowed with arch fcn."""

    @property
    def is_classifier(self) -> bool:
        """Whether the network has a class probability and no map."""
        return self.arch == "classifier"

    @model_validator(mode="after")
    def _classifier(self) -> Self:
        if not self.is_classifier:
            return self
        unsupported = [name for name in type(self).model_fields if name.startswith("decoder") and getattr(self, name)]
        if unsupported:
            raise ValueError(f"arch classifier has no decoder; remove {', '.join(unsupported)}")
        if self.classification is None:
            raise ValueError("arch classifier is an encoder with a classification head; set classification: {}")
        return self

    @model_validator(mode="after")
    def _weights(self) -> Self:
        if self.encoder_weights_file is not None and self.encoder_weights is not None:
            raise ValueError("set encoder_weights or encoder_weights_file, not both")
        if (self.encoder_weights_file is None) != (self.encoder_weights_sha256 is None):
            raise ValueError("encoder_weights_file and encoder_weights_sha256 must be set together")
        return self

    @model_validator(mode="after")
    def _no_batch_norm(self) -> Self:
        if self.norm != "batch" and self.sync_batch_norm:
            raise ValueError(f"sync_batch_norm is about batch norms, which norm: {self.norm} replaces; set it to false")
        return self

    @model_validator(mode="after")
    def _fcn(self) -> Self:
        if self.arch != "fcn":
            if self.fcn is not None:
                raise ValueError(f"fcn is set, but arch is {self.arch}")
            return self
        fields = type(self).model_fields
        others = set(fields) - {"arch", "encoder", "in_channels", "sync_batch_norm", "fcn"}
        unsupported = sorted(name for name in others if getattr(self, name) != fields[name].default)
        if unsupported:
            raise ValueError(f"arch fcn does not support {', '.join(unsupported)}")
        return self
