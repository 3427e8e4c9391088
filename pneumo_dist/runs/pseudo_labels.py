"""Pseudo-labels of a stage: maps of films without labels, by networks that have not seen the fold's other films."""

from pathlib import Path
from typing import Any

import pydantic

from pneumo_dist.config.experiment import StageConfig
from pneumo_dist.data.plan import Indices
from pneumo_dist.maps.labels import MapLabels, labels_folder
from pneumo_dist.maps.store import MANIFEST, open_predictions, read_manifest
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.state import LineageModel
from shards.errors import InputError
from shards.stored import first_fault

_LINEAGE: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(LineageModel)


def maps_folder(run: FoldRun, stage: StageConfig) -> Path | None:
    """Return the folder of a stage's pseudo-labels, None if it learns from none."""
    if stage.unlabelled is None or stage.unlabelled.source is None:
        return None
    return labels_folder(run.folder.parent.parent, stage.unlabelled.source, run.fold)


def read_teachers(folder: Path, fold: int) -> tuple[list[dict[str, Any]], str]:
    """Return the lineage of the networks that made the maps in a folder, and the digest of the maps.

    Raises InputError if there are no finished maps, or they are not those of films without labels for this fold.
    """
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"{folder}: no pseudo-labels; write them with 'python -m pneumo_dist predict --split unlabelled --fold "
            f"{fold}', with the same --shards and --runs, then train again"
        )
    manifest = read_manifest(folder)
    path, fix = folder / MANIFEST, f"predict again with --split unlabelled --fold {fold}"
    if manifest.get("split") != "unlabelled" or manifest.get("fold") != fold:
        raise InputError(f"{path}: its maps are not pseudo-labels of fold {fold}; {fix}")
    try:
        _LINEAGE.validate_python(manifest.get("lineage"))
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: lineage: {first_fault(error)}; {fix}") from None
    return manifest["lineage"], str(manifest["predictions_sha256"])


def map_labels(run: FoldRun, stage: StageConfig, rows: Indices) -> MapLabels | None:
    """Return the pseudo-labels of the films in these rows, None if a stage learns from none.

    Raises InputError if the maps are of other films, or damaged.
    """
    folder = maps_folder(run, stage)
    return None if folder is None else MapLabels.of(open_predictions(folder), run.shards, rows)
