"""The schema of networks."""

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from pneumo_dist.config.schema import Channels, FilePath, LibraryName, Schema

Dropout = Annotated[float, Field(ge=0, lt=1)]


class FcnConfig(Schema):
    """The small baseline: three strided convolutions, one 1x1, three transposed convolutions."""

    widths: Annotated[tuple[Channels, ...], Field(min_length=3, max_length=3)] = (32, 64, 128)
    """Channels after each strided convolution."""
    norm: bool = False
    """Batch norm after each convolution."""
    dropout: Dropout = 0.0
    """Share of channels dropped after each convolution."""


class ClassificationConfig(Schema):
    """A second output: whether the film shows a pneumothorax at all."""

    dropout: Dropout = 0.0
    """Dropout before the linear layer, which follows global average pooling of the deepest features."""


class ModelConfig(Schema):
    """A network with one output map: one of segmentation_models_pytorch, or the small `fcn`."""

    arch: LibraryName = "unet"
    """Architecture, by the library's name: unet, unetplusplus, fpn, deeplabv3plus, …; or fcn."""
    encoder: LibraryName = "resnet34"
    """Encoder, by the library's name: resnet34, se_resnext50_32x4d, senet154, efficientnet-b4, tu-…"""
    encoder_weights: LibraryName | None = None
    """Pretrained encoder weights by the library's name (imagenet), fetched on rank 0; null starts from scratch."""
    encoder_weights_file: FilePath | None = None
    """A file with the encoder's weights (`fetch-weights` writes one), in place of encoder_weights."""
    encoder_weights_sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")] | None = None
    """What the file's content must hash to."""
    in_channels: Literal[1, 3] = 3
    """Channels the encoder takes; the grey film is repeated for 3."""
    decoder_channels: Annotated[tuple[Channels, ...], Field(min_length=1, max_length=16)] | None = None
    """Widths of the decoder blocks; null is the library's default."""
    decoder_use_norm: bool | Literal["batchnorm", "identity", "instancenorm"] | None = None
    """Normalisation in the decoder; false is none; null is the library's default."""
    decoder_attention_type: Literal["scse"] | None = None
    """Attention in the decoder blocks."""
    decoder_interpolation: Literal["nearest", "bilinear", "bicubic"] | None = None
    """Upsampling in the decoder; null is the library's default."""
    sync_batch_norm: bool = False
    """Batch-norm statistics over all ranks' films, on GPUs only; recommended below 4 films a rank."""
    classification: ClassificationConfig | None = None
    """A classification head on the encoder; null is none."""
    fcn: FcnConfig | None = None
    """Of arch fcn: its layers; null is the default."""

    @model_validator(mode="after")
    def _weights(self) -> Self:
        if self.encoder_weights_file is not None and self.encoder_weights is not None:
            raise ValueError("give encoder_weights or encoder_weights_file, not both")
        if (self.encoder_weights_file is None) != (self.encoder_weights_sha256 is None):
            raise ValueError("encoder_weights_file and encoder_weights_sha256 go together")
        return self

    @model_validator(mode="after")
    def _fcn(self) -> Self:
        if self.arch != "fcn":
            if self.fcn is not None:
                raise ValueError(f"fcn is set, but arch is {self.arch}")
            return self
        others = set(type(self).model_fields) - {"arch", "encoder", "in_channels", "sync_batch_norm", "fcn"}
        given = sorted(name for name in others if getattr(self, name) is not None)
        if given:
            raise ValueError(f"arch fcn has no {', '.join(given)}")
        return self
