"""Draws a film with the outlines of its label and its prediction, above a margin with a legend and text."""

import textwrap
from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from shards.arrays import Image, Mask
from shards.drawing import Picture, outline
from shards.palette import BACKGROUND, LABEL, PREDICTION, TEXT, Colour

# Text is this small on small pictures, in OpenCV's scale of fonts, and grows with the width of large ones.
SMALLEST_TEXT, WIDTH_OF_ONE = 0.36, 1860
# Outlines have one pixel of width for each of these pixels of the longer side.
SIDE_OF_ONE = 260


@dataclass(frozen=True)
class Line:
    """How an outline is drawn."""

    name: str
    colour: Colour
    is_dashed: bool


LABEL_LINE, PREDICTION_LINE = Line("label", LABEL, False), Line("prediction", PREDICTION, True)

_FONT = cv2.FONT_HERSHEY_SIMPLEX
_SAMPLE = "----"


def draw_overlay(
    pixels: Image,
    label: Mask | None,
    predicted: Mask | None,
    caption: Sequence[str] = (),
    fill: float = 0.0,
    scale: float | None = None,
) -> Picture:
    """Draw a film with its label outlined solid in blue and its predicted mask dashed in orange, above a caption.

    Args:
        pixels: The film, uint8 (height, width).
        label: 0/1 mask that covers the film, of any size; None if it is not known.
        predicted: The same of the prediction.
        caption: Lines of text below the film and the legend. They are wrapped. The font has characters of ASCII only.
        fill: Share of the prediction's colour inside its outline. It needs a mask of the film's own size.
        scale: Scale of OpenCV's font. None fits it to the width of the film.

    Returns:
        RGB, uint8 (height + margin, width, 3).
    """
    legend = [each for each, mask in ((LABEL_LINE, label), (PREDICTION_LINE, predicted)) if mask is not None]
    return np.vstack([outlined(pixels, label, predicted, fill), margin(pixels.shape[1], caption, legend, scale)])


def outlined(pixels: Image, label: Mask | None, predicted: Mask | None, fill: float = 0.0) -> Picture:
    """Draw a film as `draw_overlay` does, without legend and caption, RGB uint8 (height, width, 3)."""
    picture = np.repeat(pixels[:, :, None], 3, axis=2)
    if fill and predicted is not None:
        inside = predicted != 0
        picture[inside] = np.rint(picture[inside] * (1 - fill) + np.array(PREDICTION) * fill).astype(np.uint8)
    width = max(1, round(max(pixels.shape) / SIDE_OF_ONE))
    for line, mask in ((LABEL_LINE, label), (PREDICTION_LINE, predicted)):
        if mask is not None:
            outline(picture, mask, line.colour, width, line.is_dashed)
    return picture


def margin(width: int, lines: Sequence[str], legend: Sequence[Line] = (), scale: float | None = None) -> Picture:
    """Return a dark strip with a legend and lines of text, RGB uint8 (height, width, 3). Lines are wrapped.

    The height is 0 without legend and lines.
    """
    scale = max(SMALLEST_TEXT, width / WIDTH_OF_ONE) if scale is None else scale
    thick = max(1, round(scale))
    (_, high), low = cv2.getTextSize("Ag", _FONT, scale, thick)
    step, side = round((high + low) * 1.25), max(2, round(high / 2))
    placed = _placed(legend, scale, width, side)
    first = placed[-1][1] + 1 if placed else 0
    wrapped = [row for line in lines for row in _wrapped(_ascii(line), scale, width - 2 * side)]
    rows = first + len(wrapped)
    strip = np.full((step * rows + side if rows else 0, width, 3), BACKGROUND, np.uint8)

    def write(text: str, left: int, row: int) -> None:
        cv2.putText(strip, text, (left, row * step + side + high), _FONT, scale, TEXT, thick, cv2.LINE_AA)

    for line, row, left in placed:
        sample, middle = _wide(_SAMPLE, scale), row * step + side + high // 2
        parts = ((0.0, 0.25), (0.35, 0.6), (0.7, 0.95)) if line.is_dashed else ((0.0, 0.95),)
        for start, end in parts:
            ends = [(left + round(sample * share), middle) for share in (start, end)]
            cv2.line(strip, ends[0], ends[1], line.colour, max(1, round(2 * scale)))
        write(line.name, left + sample + side // 2, row)
    for row, text in enumerate(wrapped, first):
        write(text, side, row)
    return strip


def _placed(legend: Sequence[Line], scale: float, width: int, side: int) -> list[tuple[Line, int, int]]:
    """Return each line of a legend with its row and the left end of its sample."""
    placed: list[tuple[Line, int, int]] = []
    row, left = 0, side
    for line in legend:
        wide = _wide(_SAMPLE, scale) + side // 2 + _wide(line.name, scale)
        if left > side and left + wide > width:
            row, left = row + 1, side
        placed.append((line, row, left))
        left += wide + 3 * side
    return placed


def _wide(text: str, scale: float) -> int:
    return int(cv2.getTextSize(text, _FONT, scale, max(1, round(scale)))[0][0])


def _ascii(text: str) -> str:
    return text.encode("ascii", "replace").decode()


def _wrapped(text: str, scale: float, width: int) -> list[str]:
    """Break a text into lines of at most `width` pixels, if a letter is not wider."""
    columns = max(1, len(text))
    while True:
        lines = textwrap.wrap(text, columns, subsequent_indent="  " if columns > 2 else "")
        widest = max((_wide(line, scale) for line in lines), default=0)
        if widest <= width or columns <= 1:
            return lines
        columns = max(1, min(columns - 1, columns * width // widest))
