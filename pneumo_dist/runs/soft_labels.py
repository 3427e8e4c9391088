"""Maps that a stage learns from: pseudo-labels of films without labels, and the maps of a teacher for its own films.

The networks that made them have not seen the fold's validation films and the holdout.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pydantic

from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.plan import FoldSplit
from pneumo_dist.maps.labels import LearnSplit, MapLabels, SoftLabels, labels_folder
from pneumo_dist.maps.store import MANIFEST, open_predictions, read_manifest
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.state import LineageModel
from shards.errors import InputError
from shards.stored import first_fault

_LINEAGE: pydantic.TypeAdapter[Any] = pydantic.TypeAdapter(LineageModel)


def maps_folders(run: FoldRun, stage: StageConfig) -> Iterator[tuple[LearnSplit, Path]]:
    """Yield the splits and folders of the maps that a stage learns from."""
    learns: tuple[tuple[LearnSplit, str | None], ...] = (
        ("train", stage.distillation.source if stage.distillation else None),
        ("unlabelled", stage.unlabelled.source if stage.unlabelled else None),
    )
    for split, source in learns:
        if source is not None:
            yield split, labels_folder(run.folder.parent.parent, source, split, run.fold)


def read_teachers(folder: Path, split: LearnSplit, fold: int) -> tuple[list[dict[str, Any]], str]:
    """Return the lineage of the networks that made the maps in a folder, and the digest of the maps.

    Raises InputError if there are no finished maps, or they are not of this split for this fold.
    """
    if not (folder / MANIFEST).exists():
        raise InputError(
            f"{folder}: no maps to learn from; write them with 'python -m pneumo_dist predict --split {split} --fold "
            f"{fold}', with the same --shards and --runs, then train again"
        )
    manifest = read_manifest(folder)
    path, fix = folder / MANIFEST, f"predict again with --split {split} --fold {fold}"
    if manifest.get("split") != split or manifest.get("fold") != fold:
        raise InputError(f"{path}: its maps are not of split {split} for fold {fold}; {fix}")
    try:
        _LINEAGE.validate_python(manifest.get("lineage"))
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: lineage: {first_fault(error)}; {fix}") from None
    return manifest["lineage"], str(manifest["predictions_sha256"])


def soft_labels(run: FoldRun, stage: StageConfig, films: FoldSplit) -> SoftLabels | None:
    """Return the maps that a stage learns from, None without any.

    Raises InputError if a film has no map, or the maps are damaged.
    """
    rows = {"train": films.train, "unlabelled": films.unlabelled}
    maps = {
        split: MapLabels.of(open_predictions(folder), run.shards, rows[split])
        for split, folder in maps_folders(run, stage)
    }
    share = stage.distillation.share if stage.distillation else 0.0
    return SoftLabels(maps.get("unlabelled"), maps.get("train"), share) if maps else None
