"""Decoders of the first-place solution, for encoders of segmentation_models_pytorch.

Aimoldin Anuar, SIIM-ACR Pneumothorax Segmentation, 2019. None of them has batch norm, and each ends in a 1x1 head.
In the library's U-Net, a skip enters one convolution earlier, scSE adds its branches and has a reduction of 16, and the
head is 3x3.
"""

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import nn
from torch.nn.functional import interpolate, max_pool2d

DECODER_WIDTHS = {
    "albunet": (256, 256, 256, 64, 128, 32),
    "scse_unet": (384, 256, 128, 64, 32),
    "resnet_unet": (256, 256, 128, 64, 64),
}
"""Channels after each block of a decoder, from the deepest, by the name of the architecture."""


class AlbuNetDecoder(nn.Module):
    """AlbuNet's decoder: a centre block at 1/64, then five blocks of bilinear upsampling and two convolutions.

    There is no skip at 1/2. Sides of the input are multiples of 64.

    `encoder_channels` are those of the encoder's features, from the input to 1/32.
    """

    # Of the centre block and of the five after it: their output, and between their two convolutions.
    WIDTHS = DECODER_WIDTHS["albunet"]
    INNER = (512, 512, 512, 256, 128, 128)

    def __init__(self, encoder_channels: Sequence[int]) -> None:
        super().__init__()
        # The two blocks at the end have no skip.
        skips = (*reversed(encoder_channels[2:]), 0, 0)
        incoming = (encoder_channels[-1], *(width + skip for width, skip in zip(self.WIDTHS, skips, strict=False)))
        self.blocks = nn.ModuleList(
            nn.Sequential(*_conv(before, inner), *_conv(inner, width))
            for before, inner, width in zip(incoming, self.INNER, self.WIDTHS, strict=False)
        )
        self.last = nn.Sequential(*_conv(self.WIDTHS[-1], self.WIDTHS[-1]))

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return maps (n, 32, h, w) from an encoder's features."""
        deepest = features[-1]
        if features[0].shape[-1] % 64 or features[0].shape[-2] % 64:
            raise ValueError("AlbuNet needs sides that are multiples of 64")
        maps = max_pool2d(deepest, 2)
        skips = (*reversed(features[2:]), None, None)
        for block, skip in zip(self.blocks, skips, strict=True):
            maps = block(interpolate(maps, scale_factor=2, mode="bilinear", align_corners=False))
            if skip is not None:
                maps = torch.cat((maps, skip), 1)
        last: torch.Tensor = self.last(maps)
        return last


class ConcatDecoder(nn.Module):
    """Four blocks of nearest upsampling and a convolution, each then joined with a skip, and a last one without a skip.

    Args:
        encoder_channels: Channels of the encoder's features, from the input to 1/32.
        widths: Channels of the five blocks, from 1/16 to the input's size.
        has_scse: Whether scSE follows each block with a skip.
    """

    def __init__(self, encoder_channels: Sequence[int], widths: Sequence[int], has_scse: bool) -> None:
        super().__init__()
        skips = encoder_channels[-2:0:-1]
        self.up = nn.ModuleList(nn.Sequential(*_conv(*pair)) for pair in pairwise((encoder_channels[-1], *widths)))
        self.join = nn.ModuleList(
            nn.Sequential(*_conv(width + skip, width), *([MaxScse(width)] if has_scse else []))
            for width, skip in zip(widths, skips, strict=False)
        )

    def forward(self, features: Sequence[torch.Tensor]) -> torch.Tensor:
        """Return maps (n, widths[-1], h, w) from an encoder's features."""
        maps = features[-1]
        for up, join, skip in zip(self.up, self.join, features[-2:0:-1], strict=False):
            maps = join(torch.cat((up(interpolate(maps, scale_factor=2.0, mode="nearest")), skip), 1))
        last: torch.Tensor = self.up[-1](interpolate(maps, scale_factor=2.0, mode="nearest"))
        return last


class MaxScse(nn.Module):
    """Spatial and channel squeeze and excitation, joined by their maximum (Roy et al., arXiv:1803.02579)."""

    def __init__(self, channels: int, reduction: int = 2) -> None:
        super().__init__()
        self.channel = nn.Sequential(
            nn.AdaptiveAvgPool2d(1),
            nn.Conv2d(channels, channels // reduction, 1),
            nn.ReLU(inplace=True),
            nn.Conv2d(channels // reduction, channels, 1),
            nn.Sigmoid(),
        )
        self.spatial = nn.Sequential(nn.Conv2d(channels, 1, 1, bias=False), nn.Sigmoid())

    def forward(self, maps: torch.Tensor) -> torch.Tensor:
        """Return the maps scaled by the larger of the two excitations of each value."""
        return torch.maximum(maps * self.channel(maps), maps * self.spatial(maps))


def replace_decoder(model: Any, arch: str, widths: Sequence[int] | None) -> None:
    """Replace decoder and head of a library's U-Net by those of `arch`, one of DECODER_WIDTHS.

    Raises ValueError if `widths` do not fit the decoder, or the encoder of albunet is not a ResNet.
    """
    channels, chosen = model.encoder.out_channels, tuple(widths or DECODER_WIDTHS[arch])
    if arch == "albunet":
        if chosen != AlbuNetDecoder.WIDTHS or not hasattr(model.encoder, "maxpool"):
            raise ValueError("albunet has fixed decoder_channels and needs a ResNet as encoder")
        # The original pools 2x2 after the stem, torchvision's ResNet 3x3.
        model.encoder.maxpool = nn.MaxPool2d(2, 2)
        model.decoder = AlbuNetDecoder(channels)
    else:
        if len(chosen) != len(channels) - 1:
            raise ValueError(f"{arch} needs {len(channels) - 1} decoder_channels")
        model.decoder = ConcatDecoder(channels, chosen, has_scse=arch == "scse_unet")
    model.segmentation_head = nn.Conv2d(chosen[-1], 1, 1)


def _conv(channels: int, out: int) -> tuple[nn.Module, ...]:
    return nn.Conv2d(channels, out, 3, padding=1), nn.ReLU(inplace=True)
