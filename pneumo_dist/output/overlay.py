"""Draws a film with its mask above a margin of text."""

import textwrap
from collections.abc import Sequence

import cv2
import numpy as np

from pneumo_dist.scoring.arrays import Map
from shards.drawing import outline_pixels

NOTE = "For research use only, not for diagnosis"
FOUND, EMPTY = "pneumothorax: outlined in red", "no pneumothorax found"
RED = (255, 0, 0)
FILL = 0.2
# Width of the longest line in the margin, as a share of the film's width.
TEXT_SHARE = 0.4

_FONT = cv2.FONT_HERSHEY_SIMPLEX


def draw_film(image: Map, mask: Map, warnings: Sequence[str] = (), caption: Sequence[str] = ()) -> Map:
    """Draw a film with its mask outlined in red and lightly filled, above a margin with the finding and more lines.

    Film and 0/1 mask are uint8 (height, width). The picture is RGB, uint8 (height + margin, width, 3). The caption and
    the warnings are wrapped. Their characters are those of ASCII, as the font has no others.
    """
    picture = np.repeat(image[:, :, None], 3, axis=2)
    inside = mask != 0
    picture[inside] = np.rint(picture[inside] * (1 - FILL) + np.array(RED) * FILL).astype(np.uint8)
    outline_pixels(picture, mask, RED, max(1, round(max(image.shape) / 600)))
    lines = [FOUND if inside.any() else EMPTY, NOTE]
    return np.vstack([picture, _margin(image.shape[1], lines, [*caption, *(f"warning: {text}" for text in warnings)])])


def _margin(width: int, lines: Sequence[str], more: Sequence[str]) -> Map:
    """Return a dark strip with text scaled to the width of `lines`, uint8 (height, width, 3). `more` is wrapped."""
    sizes = [cv2.getTextSize(line, _FONT, 1.0, 1) for line in lines]
    scale = TEXT_SHARE * width / max(size[0] for size, _ in sizes)
    step = max(4, round(scale * 1.3 * max(size[1] + below for size, below in sizes)))
    wrapped = [line for text in more for line in _wrapped(text, scale, width - step)]
    strip = np.zeros((step * (len(lines) + len(wrapped)) + step // 2, width, 3), np.uint8)
    for number, line in enumerate([*lines, *wrapped], 1):
        origin = (step // 2, number * step)
        cv2.putText(strip, line, origin, _FONT, scale, (255, 255, 255), max(1, round(scale)), cv2.LINE_AA)
    return strip


def _wrapped(text: str, scale: float, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels, if a letter is not wider."""
    columns = max(1, len(text))
    while True:
        lines = textwrap.wrap(text, columns, subsequent_indent="  " if columns > 2 else "")
        widest = max((cv2.getTextSize(line, _FONT, scale, max(1, round(scale)))[0][0] for line in lines), default=0)
        if widest <= width or columns <= 1:
            return lines
        columns = max(1, min(columns - 1, columns * width // widest))
