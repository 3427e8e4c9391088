"""Small fully convolutional networks, the baseline in the recipes."""

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


class SkipFcn(nn.Module):
    """The baseline of recipe D: 3x3 kernels, and skips that join the encoder's features of the same size.

    Maps (n, channels, h, w) to logits (n, 1, h, w); h and w are multiples of 8.
    """

    def __init__(self, config: FcnConfig, in_channels: int) -> None:
        super().__init__()
        first, second, third = config.widths

        def block(layer: nn.Conv2d | nn.ConvTranspose2d) -> nn.Sequential:
            return nn.Sequential(*_block(layer, config))

        self.encoder = nn.ModuleList(
            block(nn.Conv2d(*pair, 3, stride=2, padding=1))
            for pair in itertools.pairwise((in_channels, *config.widths))
        )
        self.middle = block(nn.Conv2d(third, third, 3, padding=1))
        self.decoder = nn.ModuleList([block(_double_3x3(third, second)), block(_double_3x3(2 * second, first))])
        self.last = _double_3x3(2 * first, 1)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return logits at the resolution of the images."""
        skips, maps = [], images
        for down in self.encoder:
            maps = down(maps)
            skips.append(maps)
        maps = self.middle(maps)
        for up, skip in zip(self.decoder, skips[-2::-1], strict=True):
            maps = torch.cat((up(maps), skip), 1)
        logits: torch.Tensor = self.last(maps)
        return logits


def _double_3x3(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, 3, stride=2, padding=1, output_padding=1)


def _double(channels: int, out: int) -> nn.ConvTranspose2d:
    return nn.ConvTranspose2d(channels, out, 4, stride=2, padding=1)


def _block(layer: nn.Conv2d | nn.ConvTranspose2d, config: FcnConfig) -> list[nn.Module]:
    norm = [nn.BatchNorm2d(layer.out_channels)] if config.norm else []
    return [layer, *norm, nn.ReLU(inplace=True), *([nn.Dropout2d(config.dropout)] if config.dropout else [])]
