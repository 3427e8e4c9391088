"""A small fully convolutional network, the baseline in the recipes."""

import itertools

import torch
from torch import nn

from pneumo_dist.config.model import FcnConfig


class Fcn(nn.Module):
    """Maps (n, channels, h, w) to logits (n, 1, h, w); h and w are multiples of 8."""

    def __init__(self, config: FcnConfig, in_channels: int) -> None:
        super().__init__()
        widths = (in_channels, *config.widths)
        last = widths[-1]
        pairs = list(itertools.pairwise(widths))
        self.encoder = nn.Sequential(
            *(layer for pair in pairs for layer in _block(nn.Conv2d(*pair, 3, stride=2, padding=1), config)),
            *_block(nn.Conv2d(last, last, 1), config),
        )
        self.decoder = nn.Sequential(
            *(layer for pair in reversed(pairs[1:]) for layer in _block(_double(pair[1], pair[0]), config)),
            _double(widths[1], 1),
        )

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits at the resolution of the images."""
        logits: torch.Tensor = self.decoder(self.encoder(images))
        return logits


def _double(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)


def _block(layer: nn.Conv2d | nn.ConvTranspose2d, config: FcnConfig) -> list[nn.Module]:
    norm = [nn.BatchNorm2d(layer.out_channels)] if config.norm else []
    return [layer, *norm, nn.ReLU(inplace=True), *([nn.Dropout2d(config.dropout)] if config.dropout else [])]
