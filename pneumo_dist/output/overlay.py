"""Draws a film with what was found on it above a margin of text."""

from collections.abc import Sequence

from pneumo_dist.scoring.arrays import Map
from shards.overlay import draw_overlay

NOTE = "For research use only, not for diagnosis"
FOUND, EMPTY = "pneumothorax found", "no pneumothorax found"
FILL = 0.2


def draw_film(image: Map, mask: Map, warnings: Sequence[str] = (), caption: Sequence[str] = ()) -> Map:
    """Draw a film with its mask outlined and lightly filled, above a margin with the finding and more lines.

    Film and 0/1 mask are uint8 (height, width). The picture is RGB, uint8 (height + margin, width, 3). The caption and
    the warnings are wrapped. Their characters are those of ASCII, as the font has no others.
    """
    lines = [FOUND if mask.any() else EMPTY, NOTE, *caption, *(f"warning: {text}" for text in warnings)]
    return draw_overlay(image, None, mask, lines, FILL)
