"""Runs to report on: predictions made from the labels of films, with thresholds and training logs."""

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from pneumo_dist.maps.store import Predictions, encode_map, film_facts, write_block, write_table
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.thresholds.file import read_thresholds, write_thresholds
from pneumo_dist.thresholds.objective import Objective
from pneumo_dist.thresholds.rules import ThresholdsFile
from pneumo_dist.thresholds.tune import film_measures, tune
from shards.dataset import rle
from shards.dataset.table import Shards

ALONE = Ranks.alone()


def store(  # noqa: PLR0913  # one parameter per property of the predictions
    shards: Shards,
    run: Path,
    split: str = "oof",
    rows: Sequence[int] | None = None,
    noise: float = 15,
    shift: int = 0,
    specks: float = 0,
    wrong: int = 0,
    with_classes: bool = False,
    **changes: Any,
) -> Predictions:
    """Store blurred noisy labels, moved `shift` pixels to the right, as predictions.

    The labels of the films must have the size of the stored image. `specks` is the share of pixels with a bright
    neighbourhood, `wrong` the side of a bright square on films without a label. `with_classes` adds class
    probabilities that mostly fit the labels, and `changes` replaces columns of every row.
    """
    random, chance = np.random.default_rng(4), np.random.default_rng(5)
    content = []
    for index in range(len(shards)) if rows is None else rows:
        grid = shards.grid(index)
        truth = shards.label(index) * 200.0
        probable = cv2.blur(np.roll(truth, shift, axis=1), (5, 5)) + random.normal(20, noise, truth.shape)
        probable += 150.0 * cv2.dilate(
            (chance.random(truth.shape) < specks).astype(np.uint8), np.ones((3, 3), np.uint8)
        )
        if wrong and not truth.any():
            probable[20 : 20 + wrong, 30 : 30 + wrong] += 220.0
        pad = grid.padding
        p8 = np.pad(np.clip(probable, 0, 255).astype(np.uint8), ((pad.top, pad.bottom), (pad.left, pad.right)))
        facts = {**film_facts(shards, index), **changes}
        if with_classes:
            likely = chance.uniform(0.3, 1) if truth.any() else chance.uniform(0, 0.6)
            facts["class_probability"] = float(np.float32(likely))
        content.append((facts, p8))
    folder = run / split / "predictions"
    folder.mkdir(parents=True)
    parts = [{"name": f"{run.name}/fold{fold}/step-00000010-abc.pt", "weight": 0.5, "fold": fold} for fold in (0, 1)]
    side = len(content[0][1])
    known = {"image_size": side} if all(len(p8) == side for _, p8 in content) else {}
    manifest = {"experiment": run.name, "split": split, **known, "tta": {"hflip": True}, "parts": parts}
    encoded = [(facts, encode_map(p8)) for facts, p8 in content]
    write_table(folder, write_block(folder / "pred-00000.tar", encoded), manifest)
    return Predictions(folder)


def naive_dices(predictions: Predictions, rule: Rule) -> dict[str, float]:
    """Return the Dice of each film by its key, counted from the masks."""
    dices = {}
    for index, (row, p8) in enumerate(predictions):
        mask = apply_rule(label_map(p8, predictions.grid(index)), rule, row["class_probability"])
        truth = rle.decode(row["rle"], *mask.shape)
        total = int(mask.sum()) + int(truth.sum())
        dices[row["key"]] = 2 * int((mask & truth).sum()) / total if total else 1.0
    return dices


def worth_of(predictions: Predictions, rule: Rule) -> tuple[float, float]:
    """Return the mean Dice and the share of films with a mask, from the masks themselves."""
    masks = [
        apply_rule(label_map(p8, predictions.grid(index)), rule, row["class_probability"])
        for index, (row, p8) in enumerate(predictions)
    ]
    dices = list(naive_dices(predictions, rule).values())
    return float(np.mean(dices)), float(np.mean([mask.any() for mask in masks]))


def tune_run(predictions: Predictions, objective: Objective | None = None, threshold: float = 0.5) -> ThresholdsFile:
    """Write thresholds.json for predictions, as the command does, and read it back."""
    path = predictions.folder.parent / "thresholds.json"
    histograms, parts = film_measures(predictions, ALONE, threshold)
    write_thresholds(path, tune(predictions, histograms, objective, parts, threshold), predictions)
    return read_thresholds(path)


def log_epochs(run: Path, stage: str = "only", folds: Sequence[int] = (0, 1), epochs: int = 3) -> None:
    """Write the training logs of a stage for some folds."""
    for fold in folds:
        folder = run / f"fold{fold}" / stage
        folder.mkdir(parents=True)
        lines = [
            {
                **{"stage": stage, "epoch": epoch, "step": 10 * (epoch + 1), "loss": 1 / (epoch + 1)},
                **{"training_dice": 0.2 * epoch, "validation_loss": 1.1 / (epoch + 1), "score": 0.3 * epoch},
                **{"positive_dice": 0.2 * epoch, "images_per_s": 7.0 + fold, "peak_memory_mb": 512.0},
            }
            for epoch in range(epochs)
        ]
        (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


class Page(HTMLParser):
    """A parsed page: its rows of table cells, its pictures, and its unbalanced tags."""

    EMPTY = frozenset({"meta", "br", "img", "link"})

    def __init__(self, text: str) -> None:
        super().__init__()
        self.rows: list[list[str]] = []
        self.pictures: list[dict[str, str | None]] = []
        self.tags: set[str] = set()
        self.wrong: list[str] = []
        self._open: list[str] = []
        self._cell = False
        self.feed(text)
        self.close()
        self.wrong += self._open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.EMPTY:
            self._open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self._cell = True
        if tag == "img":
            self.pictures.append(dict(attrs))

    def handle_endtag(self, tag: str) -> None:
        if not self._open or self._open.pop() != tag:
            self.wrong.append(tag)
        self._cell = self._cell and tag not in ("td", "th")

    def handle_data(self, data: str) -> None:
        if self._cell:
            self.rows[-1][-1] += data

    def row(self, title: str) -> list[str]:
        """Return the cells after the heading in the first row whose heading starts with `title`."""
        return self.rows_of(title)[0]

    def rows_of(self, title: str) -> list[list[str]]:
        """Return the cells after the heading in every row whose heading starts with `title`."""
        found = [row for row in self.rows if row and " ".join(row[0].split()).startswith(title)]
        return [[" ".join(cell.split()) for cell in row[1:]] for row in found]
