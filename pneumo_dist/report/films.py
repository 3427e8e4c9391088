"""Films to look at: which to show, and their pictures with the outlines of label (green) and prediction (red)."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

from pneumo_dist.predict.store import Predictions
from pneumo_dist.scoring.counts import Outcome
from pneumo_dist.scoring.masks import Map, Rule, apply_rule, label_map
from shards.dataset import rle
from shards.dataset.show import stored_content
from shards.dataset.table import Shards
from shards.drawing import LABEL_COLOUR, PREDICTION_COLOUR

Picture = npt.NDArray[np.uint8]

CELL = 256
COLUMNS = 4
SHOWN = 4
# Of the films on the page; the sheet is PNG.
JPEG_QUALITY = 88
# polylines takes coordinates in 1/16 pixel.
SHIFT = 4


@dataclass(frozen=True)
class Choice:
    """Films to show under one heading, as positions in the predictions."""

    title: str
    films: tuple[int, ...]


def choose_films(outcome: Outcome, count: int = SHOWN) -> list[Choice]:
    """Return the best, median and worst positive films by Dice, and the negative ones with the most predicted pixels.

    No film stands twice; a heading without films is left out.
    """
    pixels, ranked = outcome.predicted, ranked_films(outcome)
    best, rest = ranked[:count], ranked[count:]
    worst, rest = rest[-count:][::-1], rest[:-count]
    start = max(0, (len(rest) - count) // 2)
    wrong = np.flatnonzero(~outcome.positive & outcome.called)
    choices = [
        ("Best positive films", best),
        ("Positive films around the median", rest[start : start + count]),
        ("Worst positive films", worst),
        ("Negative films with the largest false-positive area", wrong[np.argsort(-pixels[wrong], kind="stable")]),
    ]
    assert np.all(np.diff(outcome.dice[ranked]) <= 0)
    return [Choice(title, tuple(films[:count].tolist())) for title, films in choices if len(films)]


def ranked_films(outcome: Outcome) -> npt.NDArray[np.int64]:
    """Return the positions of the positive films from the best Dice to the worst."""
    positive = np.flatnonzero(outcome.positive)
    return positive[np.argsort(-outcome.dice[positive], kind="stable")]


def draw_film(shards: Shards, row: int, predictions: Predictions, index: int, rule: Rule, side: int) -> Picture:
    """Return one film, RGB uint8 with `side` pixels along its longer edge, outlined.

    `row` is the film's in the shards, `index` its position in the predictions.
    """
    grid = predictions.grid(index)
    film = stored_content(shards, row)
    scale = side / max(grid.height, grid.width)
    width, height = (max(1, round(edge * scale)) for edge in (grid.width, grid.height))
    kind = cv2.INTER_AREA if film.shape[0] > height else cv2.INTER_CUBIC
    grey = cv2.resize(film, (width, height), interpolation=kind)
    canvas = np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)
    facts = predictions.rows[index]
    truth = rle.decode(str(facts["rle"]), grid.height, grid.width)
    predicted = apply_rule(label_map(predictions.p8(index), grid), rule, facts["class_probability"])
    _outline(canvas, truth, LABEL_COLOUR)
    _outline(canvas, predicted, PREDICTION_COLOUR)
    return canvas


def _outline(canvas: Picture, mask: Map, colour: tuple[int, int, int]) -> None:
    outlines, _ = cv2.findContours(mask, cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    # Contours are traced through pixel centres on the label grid, which covers the film exactly.
    factor = np.array([canvas.shape[1] / mask.shape[1], canvas.shape[0] / mask.shape[0]])
    points = [np.rint(((outline + 0.5) * factor - 0.5) * 2**SHIFT).astype(np.int32) for outline in outlines]
    cv2.polylines(canvas, points, True, colour, max(1, max(canvas.shape) // 240), cv2.LINE_AA, SHIFT)


def contact_sheet(pictures: Sequence[Picture], captions: Sequence[str], cell: int = CELL) -> Picture:
    """Return pictures of at most `cell` pixels a side in rows of four, RGB uint8, each with a line of text on it."""
    cells = []
    for picture, text in zip(pictures, captions, strict=True):
        square = np.zeros((cell, cell, 3), np.uint8)
        top, left = (cell - picture.shape[0]) // 2, (cell - picture.shape[1]) // 2
        square[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
        cv2.putText(square, text, (6, cell - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        cells.append(square)
    cells += [np.full((cell, cell, 3), 255, np.uint8)] * (-len(cells) % COLUMNS)
    return np.vstack([np.hstack(cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)])


def sheet_films(outcome: Outcome, count: int = 12) -> list[int]:
    """Return up to `count` positive films evenly from the best Dice to the worst; any films where none is positive."""
    ranked = ranked_films(outcome)
    if not len(ranked):
        ranked = np.arange(len(outcome))
    return [
        int(i) for i in ranked[np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))]
    ]


def encode_png(picture: Picture) -> bytes:
    """Return an RGB picture as a PNG file."""
    done, encoded = cv2.imencode(".png", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR))
    assert done
    return bytes(encoded.tobytes())


def encode_jpeg(picture: Picture) -> bytes:
    """Return an RGB picture as a JPEG file, its colours at full resolution as outlines are thin."""
    settings = [cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY, cv2.IMWRITE_JPEG_SAMPLING_FACTOR]
    settings += [cv2.IMWRITE_JPEG_SAMPLING_FACTOR_444]
    done, encoded = cv2.imencode(".jpg", cv2.cvtColor(picture, cv2.COLOR_RGB2BGR), settings)
    assert done
    return bytes(encoded.tobytes())
