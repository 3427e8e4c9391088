"""What an ensemble came to, on one self-contained HTML page: scores, curves, subgroups and films."""

import base64
import difflib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2
import numpy as np

from pneumo_dist.inference import plots
from pneumo_dist.inference.calibration import calibrate
from pneumo_dist.inference.evaluate import by_size, surface
from pneumo_dist.inference.measures import (
    AVERAGED,
    FalsePositives,
    Measures,
    false_positives,
    fold_average,
    image_scores,
    measure,
    predicted_pixels,
)
from pneumo_dist.inference.paired import Paired, differences
from pneumo_dist.inference.report_films import (
    CELL,
    choose_films,
    contact_sheet,
    draw_film,
    encode_png,
    sheet_films,
)
from pneumo_dist.inference.report_inputs import (
    RunFigures,
    Scored,
    Thresholds,
    environment,
    experiments_of,
    lesion_sensitivity,
    open_predictions,
    read_history,
    run_figures,
    score_films,
    shard_rows,
    split_counts,
    thresholds_of,
)
from pneumo_dist.inference.store import MANIFEST, Predictions
from pneumo_dist.inference.subgroups import SMALLEST_CELL, cells, split_by
from pneumo_dist.inference.tune import Estimate
from pneumo_dist.metrics import Score, Triplet, film_dice, score
from shards.errors import InputError
from shards.files import atomic_write
from shards.table import Shards

PAGE, OVERLAYS = "report.html", "overlays.png"
COLUMNS = ("view", "sex", "age")
# Films on the page are drawn with this many pixels along their longer edge.
SIDE = 480


@dataclass(frozen=True)
class Part:
    """A checkpoint that the predictions are a mean of; `weight` is nan and `fold` None where they are not noted."""

    name: str
    weight: float
    fold: int | None


@dataclass(frozen=True)
class Headline:
    """What is said of all films of a split; `lesions` counts label parts, `lesion_sensitivity` is the share touched."""

    title: str
    measures: Measures
    wrong: FalsePositives
    lesions: int
    lesion_sensitivity: Estimate
    unseen: Estimate | None


@dataclass(frozen=True)
class Written:
    """The files of a report, and the figures that its command prints: of the out-of-fold films and of training."""

    page: Path
    overlays: Path
    score: Score
    figures: RunFigures


def write_report(
    shards: Shards,
    runs: Path,
    name: str,
    against: str | None = None,
    by: Sequence[str] = COLUMNS,
    on_film: Callable[[], None] | None = None,
) -> Written:
    """Write report.html and overlays.png below RUNS/NAME, for its out-of-fold and, where there, holdout predictions.

    `against` names another run for paired differences, `by` columns of the sample table. `on_film` is called for each
    film that was scored. Raises InputError for missing predictions, other shards and an unknown column.
    """
    if against == name:
        raise InputError(f"--against {against}: is the ensemble of the report itself; name another one of {runs}")
    _check_columns(shards, by)
    predictions = open_predictions(runs / name / "oof" / "predictions")
    other = None if against is None else open_predictions(runs / against / "oof" / "predictions")
    rows = shard_rows(shards, predictions)
    scored = score_films(predictions, on_film)
    thresholds = thresholds_of(scored)
    held_out = _holdout(runs / name, on_film)
    triplet = thresholds.triplet
    compared: list[Paired] = []
    if other is not None and against is not None:
        rival = score_films(other, on_film)
        rival_triplet = thresholds_of(rival).triplet
        compared = differences("out of fold", scored, triplet, rival, rival_triplet)
        rival_held_out = _holdout(runs / against, on_film)
        if held_out is not None and rival_held_out is not None:
            compared += differences("holdout", held_out, triplet, rival_held_out, rival_triplet)
    histories = {each: read_history(runs / each) for each in experiments_of(predictions, runs, name)}
    figures = run_figures(list(histories.values()))
    sheet = _sheet(shards, rows.tolist(), scored, triplet)
    headlines = [_headline("Out of fold", scored, triplet, thresholds.unseen)]
    if held_out is not None:
        headlines.insert(0, _headline("Holdout", held_out, triplet, None))
    content = {
        "name": name,
        "against": against,
        "headlines": headlines,
        "lead": headlines[0],
        "is_held_out": held_out is not None,
        "thresholds": thresholds,
        "folds": _fold_rows(scored, triplet),
        "curves": [
            (f"{each}, stage {stage}" if len(histories) > 1 else f"Stage {stage}", _inline(plots.draw_curves(folds)))
            for each, stages in histories.items()
            for stage, folds in stages.items()
        ],
        "figures": figures,
        "ranking": _ranking(scored, held_out, triplet),
        "surface": _surface(scored, thresholds),
        "parts": _parts(predictions),
        "predicted": _how_predicted(predictions),
        "differences": compared,
        "counts": split_counts(shards),
        "manifest": shards.manifest["counts"],
        "environment": environment(predictions),
        "smallest": SMALLEST_CELL,
        "grouped": len(np.unique(scored.groups)) < len(scored.groups),
        "groups": len(np.unique(scored.groups)),
        "films": _films(shards, rows.tolist(), scored, triplet),
        "subgroups": [
            (column, cells(split_by(column, shards.column(column)[rows]), scored.histograms, triplet)) for column in by
        ],
        **_sizes(scored, triplet),
        **_calibration(scored, triplet),
    }
    page, overlays = runs / name / PAGE, runs / name / OVERLAYS
    atomic_write(overlays, sheet)
    atomic_write(page, render(content))
    return Written(page, overlays, score(scored.histograms, triplet), figures)


def render(content: Mapping[str, Any]) -> str:
    """Return the page; every text of `content` is escaped."""
    pages = jinja2.Environment(
        loader=jinja2.PackageLoader("pneumo_dist.inference", ""),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    pages.tests["known"] = lambda value: value is not None and not math.isnan(value)
    return pages.get_template("report.html.j2").render(content)


def _check_columns(shards: Shards, by: Sequence[str]) -> None:
    for column in by:
        if column not in shards.table.schema.names:
            near = difflib.get_close_matches(column, shards.table.schema.names, n=1)
            hint = f"did you mean {near[0]}?" if near else "give one of " + ", ".join(shards.table.schema.names)
            raise InputError(f"--by {column}: the sample table of {shards.folder} has no such column; {hint}")


def _holdout(run: Path, on_film: Callable[[], None] | None) -> Scored | None:
    folder = run / "holdout" / "predictions"
    return score_films(open_predictions(folder), on_film) if (folder / MANIFEST).exists() else None


def _headline(title: str, scored: Scored, triplet: Triplet, unseen: Estimate | None) -> Headline:
    lesions, touched = lesion_sensitivity(scored, triplet)
    measures = measure(scored.histograms, scored.groups, triplet)
    return Headline(title, measures, false_positives(scored.histograms, triplet), lesions, touched, unseen)


def _fold_rows(scored: Scored, triplet: Triplet) -> dict[str, Any]:
    folds = np.unique(scored.folds)
    own = [scored.folds == fold for fold in folds]
    found = [measure(scored.histograms[films], scored.groups[films], triplet) for films in own]
    names = [f"fold {fold}" if fold >= 0 else "no fold" for fold in folds.tolist()]
    averages = {name: fold_average(found, name) for name in AVERAGED} if len(found) > 1 else None
    return {"rows": list(zip(names, found, strict=True)), "averages": averages}


def _ranking(scored: Scored, held_out: Scored | None, triplet: Triplet) -> str | None:
    named = {"holdout": held_out, "out of fold": scored}
    curves = {
        title: (films.positive, image_scores(films.histograms, triplet.area))
        for title, films in named.items()
        if films is not None and 0 < films.positive.sum() < len(films.positive)
    }
    return _inline(plots.draw_ranking(curves)) if curves else None


def _surface(scored: Scored, thresholds: Thresholds) -> str:
    weights = thresholds.objective.film_weights(scored.positive)
    return _inline(plots.draw_surface(surface(scored.histograms, thresholds.triplet, weights), thresholds.triplet))


def _sizes(scored: Scored, triplet: Triplet) -> dict[str, Any]:
    # Ten parts where each then has enough films to be shown.
    parts = min(10, int(scored.positive.sum()) // SMALLEST_CELL)
    sizes = by_size(scored.histograms, triplet, parts) if parts else []
    return {"sizes": sizes, "sizes_plot": _inline(plots.draw_sizes(sizes)) if sizes else None}


def _calibration(scored: Scored, triplet: Triplet) -> dict[str, Any]:
    found = calibrate(image_scores(scored.histograms, triplet.area), scored.positive, scored.folds)
    return {
        "calibration": found,
        "calibration_plot": None if found is None else _inline(plots.draw_reliability(found)),
    }


def _parts(predictions: Predictions) -> list[Part]:
    manifest = predictions.manifest
    parts = manifest.get("parts") or [{"name": name} for name in manifest.get("members", [])]
    return [Part(str(part["name"]), float(part.get("weight", math.nan)), part.get("fold")) for part in parts]


def _how_predicted(predictions: Predictions) -> str:
    """Return the manifest's settings in words: `image_size 512, hflip yes, scales 1.0`."""
    found: dict[str, Any] = {}
    for key in ("stage", "image_size", "hflip", "tta"):
        value = predictions.manifest.get(key)
        found |= value if isinstance(value, dict) else {} if value is None else {key: value}
    return ", ".join(f"{key} {_in_words(value)}" for key, value in found.items())


def _in_words(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return " and ".join(map(str, value)) if isinstance(value, list) else str(value)


def _films(
    shards: Shards, rows: Sequence[int], scored: Scored, triplet: Triplet
) -> list[tuple[str, list[dict[str, Any]]]]:
    dices, pixels = film_dice(scored.histograms, triplet), predicted_pixels(scored.histograms, triplet)
    truth = scored.histograms[:, 1].sum(-1)
    return [
        (
            choice.title,
            [
                {
                    "picture": _inline(encode_png(draw_film(shards, rows[i], scored.predictions, i, triplet, SIDE))),
                    "id": scored.predictions.rows[i]["image_id"],
                    "dice": float(dices[i]),
                    "label": int(truth[i]),
                    "predicted": int(pixels[i]),
                }
                for i in choice.films
            ],
        )
        for choice in choose_films(scored.histograms, triplet)
    ]


def _sheet(shards: Shards, rows: Sequence[int], scored: Scored, triplet: Triplet) -> bytes:
    dices, shown = film_dice(scored.histograms, triplet), sheet_films(scored.histograms, triplet)
    pictures = [draw_film(shards, rows[i], scored.predictions, i, triplet, CELL) for i in shown]
    return encode_png(contact_sheet(pictures, [f"Dice {dices[i]:.2f}" for i in shown]))


def _inline(png: bytes) -> str:
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
