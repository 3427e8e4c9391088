"""Run folders with out-of-fold predictions that a selection can take, made from labels and noise."""

import json
from pathlib import Path
from typing import Any

from report_runs import store

from pneumo_dist.maps.store import MANIFEST, Predictions
from shards.dataset.table import Shards

CHECKPOINT = "step-00000010-abc.pt"
DATASET = "1" * 64


def candidate(films: Shards, run: Path, **given: Any) -> Predictions:
    """Store predictions of a run, its members in the manifest, and empty files in the place of its checkpoints."""
    predictions = store(films, run, **given)
    folds = {row["fold"] for row in predictions.rows}
    for fold in folds:
        path = run / f"fold{fold}/main/checkpoints/{CHECKPOINT}"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    members = [{"experiment": run.name, "stage": "main", "checkpoints": "best", "tta": {"hflip": True}}]
    change(run, members=members, dataset=DATASET)
    return Predictions(predictions.folder)


def change(run: Path, **values: Any) -> None:
    """Change values of a run's manifest."""
    path = run / "oof/predictions" / MANIFEST
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))
