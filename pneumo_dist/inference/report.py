"""What a run came to: figures, learning curves and overlays, on one self-contained HTML page."""

import base64
import io
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cv2
import jinja2
import matplotlib.figure
import numpy as np
import numpy.typing as npt

from pneumo_dist.inference.postprocess import label_map
from pneumo_dist.inference.store import Predictions
from pneumo_dist.inference.tune import Tuned
from pneumo_dist.metrics import Histograms, Triplet, film_dice, level
from pneumo_dist.monitor import LABEL_COLOUR, METRICS, PREDICTION_COLOUR, read_epochs
from shards import rle
from shards.files import atomic_write
from shards.table import Shards

CELL = 256
COLUMNS = 4


@dataclass(frozen=True)
class RunFigures:
    """What the folds' logs say: median training speed over epochs, films/s; largest resident size of a rank, MiB."""

    images_per_s: float
    peak_memory_mb: float


def read_history(run: Path) -> dict[str, list[dict[str, Any]]]:
    """Return `fold0/stage` -> its validated epochs, for the folds that have any."""
    return {str(path.parent.relative_to(run)): read_epochs(path) for path in sorted(run.glob(f"fold*/*/{METRICS}"))}


def run_figures(history: dict[str, list[dict[str, Any]]]) -> RunFigures:
    """Return speed and memory over all folds and stages; nan where nothing was logged."""
    # An epoch that was resumed after its last step has no speed.
    lines = [line for part in history.values() for line in part if line["images_per_s"] > 0]
    if not lines:
        return RunFigures(math.nan, math.nan)
    return RunFigures(
        float(np.median([line["images_per_s"] for line in lines])), max(line["peak_memory_mb"] for line in lines)
    )


def draw_films(
    shards: Shards, predictions: Predictions, histograms: Histograms, triplet: Triplet, count: int = 12
) -> npt.NDArray[np.uint8]:
    """Return an RGB contact sheet of positive films from best to worst Dice: label green, prediction red."""
    dices = film_dice(histograms, triplet)
    positive = np.flatnonzero(histograms[:, 1].sum(-1) > 0)
    ranked = positive[np.argsort(-dices[positive], kind="stable")]
    chosen = ranked[np.unique(np.linspace(0, len(ranked) - 1, min(count, len(ranked))).round().astype(int))]
    row_of = {str(key): number for number, key in enumerate(shards.column("key"))}
    cells = [
        _cell(shards, row_of[predictions.rows[i]["key"]], predictions, int(i), triplet, float(dices[i])) for i in chosen
    ]
    cells += [np.full((CELL, CELL, 3), 255, np.uint8)] * (-len(cells) % COLUMNS)
    return np.vstack([np.hstack(cells[start : start + COLUMNS]) for start in range(0, len(cells), COLUMNS)])


def _cell(
    shards: Shards, row: int, predictions: Predictions, index: int, triplet: Triplet, dice: float
) -> npt.NDArray[np.uint8]:
    grid = predictions.grid(index)
    stored = np.asarray(
        cv2.imdecode(np.frombuffer(shards.read(row, "image"), np.uint8), cv2.IMREAD_GRAYSCALE), np.uint8
    )
    film = cv2.resize(label_map(stored, grid), (CELL, CELL), interpolation=cv2.INTER_AREA)
    picture = np.repeat(np.asarray(film, np.uint8)[:, :, None], 3, axis=2)
    p8 = label_map(predictions.p8(index), grid)
    kept = (p8 > level(triplet.top)).sum() >= triplet.area
    masks = (
        (rle.decode(str(predictions.rows[index]["rle"]), grid.height, grid.width), LABEL_COLOUR),
        ((p8 > level(triplet.bottom)).astype(np.uint8) * np.uint8(kept), PREDICTION_COLOUR),
    )
    for mask, colour in masks:
        small = cv2.resize(mask * np.uint8(255), (CELL, CELL), interpolation=cv2.INTER_AREA)
        outlines, _ = cv2.findContours((small > 127).astype(np.uint8), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 1)
    cv2.putText(
        picture, f"Dice {dice:.2f}", (6, CELL - 8), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA
    )
    return picture


def draw_curves(history: dict[str, list[dict[str, Any]]]) -> bytes:
    """Return a PNG of training loss, validation loss and score over steps, folds overlaid."""
    figure = matplotlib.figure.Figure(figsize=(9, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for name, lines in history.items():
        steps = [line["step"] for line in lines]
        (drawn,) = left.plot(steps, [line["loss"] for line in lines], label=name)
        left.plot(steps, [line["validation_loss"] for line in lines], linestyle="--", color=drawn.get_color())
        right.plot(steps, [line["score"] for line in lines], label=name)
        right.plot(steps, [line["positive_dice"] for line in lines], linestyle=":", color=drawn.get_color())
    left.set(xlabel="optimizer step", ylabel="loss", title="Loss (dashed: validation)")
    right.set(xlabel="optimizer step", ylabel="Dice", title="Validation Dice (dotted: positives only)", ylim=(0, 1))
    for axes in (left, right):
        axes.grid(alpha=0.3)
        axes.legend(fontsize="small")
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130)
    return buffer.getvalue()


_PAGE = jinja2.Template(
    """<!doctype html>
<html lang="en"><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ experiment }}: report</title>
<style>
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 1.5rem auto; padding: 0 1rem; color: #222; }
table { border-collapse: collapse; } td, th { border-bottom: 1px solid #ccc; padding: .3rem .8rem; text-align: right; }
td:first-child, th:first-child { text-align: left; } img { max-width: 100%; } .note { color: #555; }
</style>
<h1>{{ experiment }}</h1>
<p class="note">For research. Not for diagnosis.</p>
<h2>Out-of-fold scores</h2>
<p>Mean Dice over {{ score.films }} films ({{ score.positives }} positive) on the label grid. Epochs and thresholds were
picked on the same films, so these figures are optimistic.</p>
<table><tr><th>films</th><th>mean Dice</th><th>always empty</th><th>positives only</th></tr>
{% for name, s in rows %}<tr><td>{{ name }}</td><td>{{ "%.4f"|format(s.dice) }}</td>
<td>{{ "%.4f"|format(s.always_empty) }}</td><td>{{ "%.4f"|format(s.positive_dice) }}</td></tr>
{% endfor %}</table>
<p>Thresholds: fewer than {{ triplet.area }} pixels above {{ "%.3f"|format(triplet.top) }} make a film empty, else its
mask is everything above {{ "%.3f"|format(triplet.bottom) }}.</p>
<h2>Learning curves</h2><img alt="loss and Dice over optimizer steps" src="data:image/png;base64,{{ curves }}">
<h2>Films, best to worst</h2><p>Label outlined in green, prediction in red.</p>
<img alt="films with outlines of label and prediction" src="data:image/png;base64,{{ films }}">
<h2>Training</h2><p>{{ "%.1f"|format(figures.images_per_s) }} films/s (median over epochs), largest memory of a rank
{{ "%.0f"|format(figures.peak_memory_mb) }} MiB.</p>
</html>
""",
    autoescape=True,
)


def write_report(
    folder: Path, experiment: str, tuned: Tuned, history: dict[str, list[dict[str, Any]]], films: npt.NDArray[np.uint8]
) -> tuple[Path, Path]:
    """Write report.html and overlays.png; return their paths."""
    done, picture = cv2.imencode(".png", cv2.cvtColor(films, cv2.COLOR_RGB2BGR))
    assert done
    overlays, page = folder / "overlays.png", folder / "report.html"
    atomic_write(overlays, picture.tobytes())
    rows = [("all folds", tuned.score), *((f"fold {fold}", s) for fold, s in sorted(tuned.folds.items()))]
    content = _PAGE.render(
        experiment=experiment,
        score=tuned.score,
        rows=rows,
        triplet=tuned.triplet,
        curves=base64.b64encode(draw_curves(history)).decode(),
        films=base64.b64encode(picture.tobytes()).decode(),
        figures=run_figures(history),
    )
    atomic_write(page, content)
    return page, overlays
