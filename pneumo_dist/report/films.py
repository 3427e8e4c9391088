"""Chooses films to show, and draws them with the outlines of label (green) and prediction (red)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pneumo_dist.predict.store import Predictions
from pneumo_dist.scoring.arrays import Counts
from pneumo_dist.scoring.counts import PixelCounts
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from shards.dataset.show import stored_content
from shards.dataset.table import Shards
from shards.drawing import LABEL_COLOUR, PREDICTION_COLOUR, Picture, centred, encode_image, fitted, outline, tiled

CELL = 256
COLUMNS = 4
SHOWN = 4
# For films on the page. The contact sheet is a PNG file.
JPEG_QUALITY = 88


@dataclass(frozen=True)
class Choice:
    """Films to show under one heading, as positions in the predictions."""

    title: str
    films: tuple[int, ...]


def choose_films(counts: PixelCounts, count: int = SHOWN) -> list[Choice]:
    """Return the best, median and worst positive films by Dice, and the negative films with the most predicted pixels.

    No film is chosen twice. Headings without films are left out.
    """
    pixels, ranked = counts.predicted, ranked_films(counts)
    best, rest = ranked[:count], ranked[count:]
    worst, rest = rest[-count:][::-1], rest[:-count]
    start = max(0, (len(rest) - count) // 2)
    wrong = np.flatnonzero(~counts.positive & counts.called)
    choices = [
        ("Best positive films", best),
        ("Positive films around the median", rest[start : start + count]),
        ("Worst positive films", worst),
        ("Negative films with the largest false-positive area", wrong[np.argsort(-pixels[wrong], kind="stable")]),
    ]
    assert np.all(np.diff(counts.dice[ranked]) <= 0)
    return [Choice(title, tuple(films[:count].tolist())) for title, films in choices if len(films)]


def ranked_films(counts: PixelCounts) -> Counts:
    """Return the positions of the positive films, from the best Dice to the worst."""
    positive = np.flatnonzero(counts.positive)
    return positive[np.argsort(-counts.dice[positive], kind="stable")]


def draw_film(shards: Shards, row: int, predictions: Predictions, index: int, rule: Rule, side: int) -> Picture:
    """Draw one film with both outlines, RGB uint8 with `side` pixels along its longer edge.

    `row` is the film's row in the shards, `index` its position in the predictions.
    """
    grid = predictions.grid(index)
    scale = side / max(grid.height, grid.width)
    width, height = (max(1, round(edge * scale)) for edge in (grid.width, grid.height))
    picture = fitted(stored_content(shards, row), width, height)
    probability = predictions.rows[index]["class_probability"]
    predicted = apply_rule(label_map(predictions.p8(index), grid), rule, probability)
    thickness = max(1, max(picture.shape) // 240)
    outline(picture, predictions.label(index), LABEL_COLOUR, thickness)
    outline(picture, predicted, PREDICTION_COLOUR, thickness)
    return picture


def contact_sheet(pictures: Sequence[Picture], captions: Sequence[str], cell: int = CELL) -> Picture:
    """Return pictures of at most `cell` pixels a side in rows of four, RGB uint8, each with its caption."""
    cells = []
    for picture, text in zip(pictures, captions, strict=True):
        square = centred(picture, cell, 0)
        cv2.putText(square, text, (6, cell - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        cells.append(square)
    return tiled(cells, COLUMNS, 0, 255)


def sheet_films(counts: PixelCounts, count: int = 12) -> list[int]:
    """Return up to `count` positive films, spread evenly from best to worst Dice; any films if none is positive."""
    ranked = ranked_films(counts)
    if not len(ranked):
        ranked = np.arange(len(counts))
    positions = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [int(film) for film in ranked[np.unique(positions)]]


def encode_jpeg(picture: Picture) -> bytes:
    """Return an RGB picture as a JPEG file, without chroma subsampling because outlines are thin."""
    no_subsampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return encode_image(picture, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, *no_subsampling])
