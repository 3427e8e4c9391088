"""Exports films, labels and folds for other tools: as PNG folders, or in nnU-Net's raw format."""

import re
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from shards.arrays import Image
from shards.dataset.show import stored_content
from shards.dataset.table import Shards
from shards.drawing import encode_image
from shards.errors import InputError
from shards.files import atomic_write, write_json
from shards.spreadsheet import csv_text

FACTS = ("group", "split", "fold", "has_mask", "mask_area", "view", "sex", "age")
_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 3)


def export_png(shards: Shards, out: Path, on_film: Callable[[], None] | None = None) -> None:
    """Write OUT/images/{image_id}.png, OUT/masks/{image_id}.png (0 and 255) and, last, OUT/films.csv.

    Films have no padding and are resized to their label grid. Masks are exact on that grid; test films have none.
    `--folds-csv` and `--groups` of a build accept films.csv. `on_film` is called after each film. Raises InputError for
    an OUT that is not a new or empty folder, for an image id that cannot be a file name, and as `stored_content` does.
    """
    _refuse_used_folder(out)
    ids = [str(image_id) for image_id in shards.column("image_id")]
    for image_id in ids:
        if not _is_file_name(image_id):
            raise InputError(f"{shards.folder}: image id {image_id[:80]!r} cannot name a file; export with --nnunet")
    for index, image_id in enumerate(ids):
        _write_png(out / "images" / f"{image_id}.png", film_on_label_grid(shards, index))
        if _is_labelled(shards, index):
            _write_png(out / "masks" / f"{image_id}.png", shards.label(index) * np.uint8(255))
        if on_film:
            on_film()
    _write_films_csv(out / "films.csv", shards, ("image_id",))


def export_nnunet(
    shards: Shards,
    out: Path,
    dataset_id: int = 501,
    name: str = "Pneumothorax",
    on_film: Callable[[], None] | None = None,
) -> Path:
    """Write OUT/DatasetNNN_Name in nnU-Net v2's raw format and return that folder.

    The names of cases are the keys of samples; films.csv lists their image ids. Films have no padding and are resized
    to their label grid. Training films (including `always_train`) are in imagesTr and labelsTr (0 and 1), held-out
    films in imagesTs and labelsTs, test films in imagesTs. splits_final.json contains the folds of `fold_lists`;
    nnU-Net reads it from nnUNet_preprocessed/DatasetNNN_Name. `on_film` is called after each film.

    Raises InputError as `export_png` does, and for a dataset without training films, an id outside 1 to 999, and a name
    with characters other than letters, digits, - and _.
    """
    if not 1 <= dataset_id <= 999:
        raise InputError(f"dataset id {dataset_id}: give 1 to 999 (nnU-Net's own use the lowest)")
    if not re.fullmatch(r"[A-Za-z0-9_-]+", name):
        raise InputError(f"dataset name {name!r}: use letters, digits, - and _ only")
    splits = fold_lists(shards)
    _refuse_used_folder(out)
    folder = out / f"Dataset{dataset_id:03d}_{name}"
    training = np.isin(shards.column("split"), ("train", "always_train"))
    for index, key in enumerate(shards.column("key").tolist()):
        part = "Tr" if training[index] else "Ts"
        _write_png(folder / f"images{part}" / f"{key}_0000.png", film_on_label_grid(shards, index))
        if _is_labelled(shards, index):
            _write_png(folder / f"labels{part}" / f"{key}.png", shards.label(index))
        if on_film:
            on_film()
    _write_films_csv(folder / "films.csv", shards, ("key", "image_id"))
    write_json(folder / "splits_final.json", splits)
    description = {
        # nnU-Net normalises a channel with an unknown name by the mean and deviation of each film.
        "channel_names": {"0": "x-ray"},
        "labels": {"background": 0, "pneumothorax": 1},
        "numTraining": int(training.sum()),
        "file_ending": ".png",
        "overwrite_image_reader_writer": "NaturalImage2DIO",
        "name": name,
    }
    write_json(folder / "dataset.json", description)
    return folder


def fold_lists(shards: Shards) -> list[dict[str, list[str]]]:
    """Return the keys that each fold trains and validates on, as nnU-Net's splits_final.json lists them.

    Raises InputError for a dataset without training films.
    """
    if not shards.folds():
        raise InputError(f"{shards.folder}: no training films, so no folds to export")
    keys = shards.column("key")
    rows = [shards.fold_rows(fold, always_train=True) for fold in shards.folds()]
    return [{"train": keys[train].tolist(), "val": keys[validation].tolist()} for train, validation in rows]


def film_on_label_grid(shards: Shards, index: int) -> Image:
    """Return a film without padding on its label grid, shrunk by area averaging or enlarged by cubic interpolation."""
    film, grid = stored_content(shards, index), shards.grid(index)
    if film.shape == (grid.height, grid.width):
        return film
    shrinks = grid.height <= film.shape[0] and grid.width <= film.shape[1]
    kind = cv2.INTER_AREA if shrinks else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(film, (grid.width, grid.height), interpolation=kind), np.uint8)


def _is_labelled(shards: Shards, index: int) -> bool:
    return shards.column("split")[index] != "test" and shards.column("rle")[index] is not None


def _is_file_name(text: str) -> bool:
    return bool(text) and not re.search(r"[/\\\x00-\x1f]", text) and text.strip(". ") != "" and len(text.encode()) < 200


def _refuse_used_folder(out: Path) -> None:
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out}: exists and is not an empty folder; give a new folder, or empty this one")


def _write_png(path: Path, image: Image) -> None:
    if path.exists():  # the folder was empty: two ids are one name, on this file system or in the table
        raise InputError(f"{path}: is the name of two films here; export to a file system that tells their ids apart")
    atomic_write(path, encode_image(image, settings=_PNG))


def _write_films_csv(path: Path, shards: Shards, names: Sequence[str]) -> None:
    """Write one row per film. Unknown values are blank, and booleans are 0 and 1.

    A film without a fold has its split; --folds-csv reads both columns.
    """
    columns: list[list[Any]] = [shards.table[name].to_pylist() for name in (*names, *FACTS)]
    rows = [
        [int(value) if isinstance(value, bool) else "" if value is None else value for value in row]
        for row in zip(*columns, strict=True)
    ]
    atomic_write(path, csv_text([[*names, *FACTS], *rows]))
