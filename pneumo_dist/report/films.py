"""Chooses films to show, and draws them with the outlines of label and prediction and a caption."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np

from pneumo_dist.report.evaluate import EvaluatedFilms
from pneumo_dist.scoring.arrays import Counts, Map
from pneumo_dist.scoring.counts import PixelCounts
from pneumo_dist.scoring.masks import apply_rule, label_map
from shards.arrays import Image
from shards.dataset.show import stored_content
from shards.dataset.table import Shards
from shards.drawing import Picture, below, centred, encode_image, fitted, tiled
from shards.overlay import LABEL_LINE, PREDICTION_LINE, draw_overlay, margin, outlined
from shards.palette import BACKGROUND

CELL = 256
COLUMNS = 4
GAP = 4
SHOWN = 4
# For films on the page. The contact sheet is a PNG file.
JPEG_QUALITY = 88
# The page shows films at half their size and more.
TEXT_SCALE = 0.6


@dataclass(frozen=True)
class Choice:
    """Films to show under one heading, as positions in the predictions."""

    title: str
    films: tuple[int, ...]


def choose_films(counts: PixelCounts, count: int = SHOWN) -> list[Choice]:
    """Return the best, median and worst positive films by Dice, and the negative films with the most predicted pixels.

    No film is chosen twice. Headings without films are left out.
    """
    ranked = ranked_films(counts)
    best, rest = ranked[:count], ranked[count:]
    worst, rest = rest[-count:][::-1], rest[:-count]
    start = max(0, (len(rest) - count) // 2)
    choices = [
        ("Best positive films", best),
        ("Positive films around the median", rest[start : start + count]),
        ("Worst positive films", worst),
        ("Negative films with the largest false-positive area", false_calls(counts)),
    ]
    assert np.all(np.diff(counts.dice[ranked]) <= 0)
    return [Choice(title, tuple(films[:count].tolist())) for title, films in choices if len(films)]


def ranked_films(counts: PixelCounts) -> Counts:
    """Return the positions of the positive films, from the best Dice to the worst."""
    positive = np.flatnonzero(counts.positive)
    return positive[np.argsort(-counts.dice[positive], kind="stable")]


def draw_film(shards: Shards, row: int, films: EvaluatedFilms, index: int, side: int) -> Picture:
    """Draw one film with both outlines and a caption, RGB uint8. The film has `side` pixels along its longer edge.

    `row` is the film's row in the shards, `index` its position in the predictions.
    """
    return draw_overlay(*_layers(shards, row, films, index, side), caption(films, index), scale=TEXT_SCALE)


def _layers(shards: Shards, row: int, films: EvaluatedFilms, index: int, side: int) -> tuple[Image, Map, Map]:
    """Return a film, its label and its mask under the rule."""
    predictions = films.predictions
    film = label_map(predictions.p8(index), predictions.grid(index))
    predicted = apply_rule(film, films.rule, predictions.rows[index]["class_probability"])
    return fitted(stored_content(shards, row), side), predictions.label(index), predicted


def caption(films: EvaluatedFilms, index: int) -> list[str]:
    """Return the lines below a film: its image id, its Dice, and its label and call."""
    counts = films.counts
    label, call = ("positive" if each[index] else "negative" for each in (counts.positive, counts.called))
    image_id = str(films.predictions.rows[index]["image_id"])
    return [image_id, f"Dice {counts.dice[index]:.2f}, label {label}, call {call}"]


def contact_sheet(
    shards: Shards, rows: Sequence[int], films: EvaluatedFilms, shown: Sequence[int], cell: int = CELL
) -> Picture:
    """Return films in rows of four, each with outlines, legend and caption, RGB uint8.

    `rows` holds the row in the shards of each film, `shown` the positions of the films to show.
    """
    pictures = [centred(outlined(*_layers(shards, rows[i], films, i, cell)), cell, 0) for i in shown]
    strips = [margin(cell, caption(films, i), [LABEL_LINE, PREDICTION_LINE]) for i in shown]
    return tiled(below(pictures, strips, BACKGROUND), min(COLUMNS, len(shown)), GAP, BACKGROUND)


def sheet_films(counts: PixelCounts, count: int = 12, wrong: int = 4) -> list[int]:
    """Return films for a contact sheet, as positions: positive films, then negative films that are called positive.

    Up to `count` positive films are spread evenly from best to worst Dice. Up to `wrong` negative films are those with
    the most predicted pixels. Films without a call are only returned if there are no others.
    """
    ranked, false = ranked_films(counts), false_calls(counts)[:wrong]
    if not len(ranked) and not len(false):
        ranked = np.arange(len(counts))
    positions = np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int)
    return [int(film) for film in (*ranked[np.unique(positions)], *false)]


def false_calls(counts: PixelCounts) -> Counts:
    """Return the positions of the negative films called positive, from the most predicted pixels to the fewest."""
    wrong = np.flatnonzero(~counts.positive & counts.called)
    return wrong[np.argsort(-counts.predicted[wrong], kind="stable")]


def encode_jpeg(picture: Picture) -> bytes:
    """Return an RGB picture as a JPEG file, without chroma subsampling because outlines are thin."""
    no_subsampling = [cv2.IMWRITE_JPEG_SAMPLING_FACTOR, cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    return encode_image(picture, ".jpg", [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, *no_subsampling])
