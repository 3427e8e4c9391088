"""Stored predictions: tars of p8 PNGs with a table. They are small, viewable, and exact for the threshold search."""

import copy
import zlib
from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from pneumo_dist.config.schema import LARGEST_SIDE
from pneumo_dist.maps.store_content import ROWS, ManifestModel
from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.masks import Rule
from shards.dataset import rle
from shards.dataset.grid import Padding
from shards.dataset.table import LabelGrid, Shards
from shards.dataset.tar import MemberReader, index_tar, write_tar
from shards.drawing import encode_image
from shards.errors import InputError
from shards.files import atomic_open, sha256_file, write_json
from shards.stored import KindModel, first_fault, picture_size, read_json, read_parquet

FORMAT, FORMAT_VERSION = "pneumo_dist-predictions", 2
MANIFEST, TABLE = "manifest.json", "predictions.parquet"
MEMBER = "p8"
# By benchmarks/inference.py, half the reading time and a fifth less space than with OpenCV's default settings.
PNG = (cv2.IMWRITE_PNG_COMPRESSION, 4, cv2.IMWRITE_PNG_FILTER, cv2.IMWRITE_PNG_FILTER_UP)
SCHEMA = pa.schema(
    [
        *[(name, pa.string()) for name in ("key", "image_id", "group", "split", "rle")],
        *[
            (name, pa.int32())
            for name in (
                "fold",
                "label_height",
                "label_width",
                "pad_top",
                "pad_bottom",
                "pad_left",
                "pad_right",
                "stored",
            )
        ],
        ("class_probability", pa.float32()),
        ("tar", pa.string()),
        *[(name, pa.int64()) for name in ("offset", "size", "crc32")],
    ]
)


def film_facts(shards: Shards, index: int) -> dict[str, Any]:
    """Return the facts of a film that a prediction's row holds, so that predictions are usable without their shards."""
    grid = shards.grid(index)
    fold = int(shards.column("fold")[index])
    return {
        **{name: shards.table[name][index].as_py() for name in ("key", "image_id", "group", "split", "rle")},
        "fold": None if fold < 0 else fold,
        "label_height": grid.height,
        "label_width": grid.width,
        "pad_top": grid.padding.top,
        "pad_bottom": grid.padding.bottom,
        "pad_left": grid.padding.left,
        "pad_right": grid.padding.right,
        "stored": grid.stored,
    }


def encode_map(p8: Map) -> bytes:
    """Return a p8 map, uint8 (size, size), as it is stored."""
    return encode_image(p8, settings=PNG)


def write_block(path: Path, films: Sequence[tuple[Mapping[str, Any], bytes]]) -> list[dict[str, Any]]:
    """Write one tar of encoded maps atomically, and return its table rows.

    Films without maps, whose content is b"", have rows and no tar.
    """
    if not any(content for _, content in films):
        return [{**facts, "tar": None, "size": None, "crc32": None, "offset": None} for facts, _ in films]
    rows = []
    with write_tar(path) as writer:
        for facts, content in films:
            writer.write({"__key__": facts["key"], f"{MEMBER}.png": content})
            rows.append({**facts, "tar": path.name, "size": len(content), "crc32": zlib.crc32(content)})
    offsets, _ = index_tar(path)
    return [{**row, "offset": offsets[row["key"], MEMBER]} for row in rows]


def write_table(folder: Path, rows: Sequence[Mapping[str, Any]], manifest: Mapping[str, Any]) -> None:
    """Write the table in key order, then the manifest with the table's digest."""
    ordered = sorted(rows, key=lambda row: str(row["key"]))
    with atomic_open(folder / TABLE) as stream:
        pq.write_table(pa.Table.from_pylist(ordered, schema=SCHEMA), stream, compression="zstd")
    content = {
        "format": FORMAT,
        "format_version": FORMAT_VERSION,
        **manifest,
        "films": len(ordered),
        "predictions_sha256": sha256_file(folder / TABLE),
    }
    write_json(folder / MANIFEST, content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of finished predictions. Raises InputError if it is missing or damaged."""
    path = folder / MANIFEST
    try:
        kind = read_json(path, KindModel, "predict again")
    except FileNotFoundError:
        raise InputError(f"{folder}: no finished predictions; run 'python -m pneumo_dist predict' first") from None
    if (kind.get("format"), kind.get("format_version")) != (FORMAT, FORMAT_VERSION):
        raise InputError(f"{path}: not predictions of format version {FORMAT_VERSION}; predict again")
    return read_json(path, ManifestModel, "predict again")


def stored_digest(folder: Path) -> str | None:
    """Return the digest of finished predictions, or None if there are none."""
    return str(read_manifest(folder)["predictions_sha256"]) if (folder / MANIFEST).exists() else None


class Predictions:
    """Random access to stored predictions, in key order.

    The table holds the CRC32 of every map, so its digest covers the maps too. Raises InputError if manifest or table
    are damaged, or hold values that no prediction writes. `outside` says that the class probabilities of `rows` are not
    those of the networks.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder)
        table = read_parquet(folder / TABLE, SCHEMA, self.digest, "predict again")
        self.rows: list[dict[str, Any]] = table.to_pylist()
        _check_rows(self.rows, int(self.manifest["films"]), self.has_maps, folder / TABLE)
        self.outside = False
        self._members = MemberReader(folder)

    def with_class_probabilities(self, values: Sequence[float]) -> "Predictions":
        """Return the same predictions with class probabilities (n,) from outside."""
        other = copy.copy(self)
        other.rows = [{**row, "class_probability": value} for row, value in zip(self.rows, values, strict=True)]
        other.outside = True
        return other

    @property
    def has_maps(self) -> bool:
        """Whether the films have maps; those that classifiers predicted have class probabilities alone."""
        return bool(self.manifest.get("maps", True))

    @property
    def digest(self) -> str:
        return str(self.manifest["predictions_sha256"])

    @cached_property
    def folds(self) -> npt.NDArray[np.int64]:
        """Each film's fold, int64 (n,); -1 for none."""
        return np.array([-1 if row["fold"] is None else row["fold"] for row in self.rows], np.int64)

    @cached_property
    def groups(self) -> npt.NDArray[np.str_]:
        """Each film's group (n,): its patient, merged with near-duplicates; the film itself without a patient."""
        return np.array([str(row["group"]) for row in self.rows])

    def __len__(self) -> int:
        return len(self.rows)

    def grid(self, index: int) -> LabelGrid:
        """Return the label grid of a film."""
        row = self.rows[index]
        padding = Padding(row["pad_top"], row["pad_bottom"], row["pad_left"], row["pad_right"])
        return LabelGrid(row["label_height"], row["label_width"], padding, row["stored"])

    def p8(self, index: int) -> Map:
        """Return a film's stored map, uint8 (size, size). Raises CorruptSample if its CRC32 does not match."""
        row = self.rows[index]
        assert self.has_maps, "predictions of classifiers"
        label = f"{MEMBER} of {row['key']}"
        content = self._members.read(row["tar"], row["offset"], row["size"], row["crc32"], label)
        return decode_map(content, self.manifest.get("image_size"), self.folder / row["tar"], label)

    def label(self, index: int) -> Map:
        """Return a film's label on its grid, uint8 of 0 and 1. Raises InputError if it is not valid RLE."""
        row = self.rows[index]
        try:
            return rle.decode(str(row["rle"]), row["label_height"], row["label_width"])
        except InputError as error:
            raise InputError(f"{self.folder / TABLE}: the label of {row['key']}: {error}; predict again") from None

    def __iter__(self) -> Iterator[tuple[dict[str, Any], Map]]:
        for index, row in enumerate(self.rows):
            yield row, self.p8(index)


def decode_map(content: bytes, side: int | None, path: Path, label: str) -> Map:
    """Decode a stored map to uint8 (size, size).

    Raises InputError, naming the tar's `path` and `label`, for one that is not a square of `side` pixels.
    """
    size = picture_size(content)
    # Checked before decoding, which takes the memory of the declared size, however few bytes the PNG has.
    is_valid = size is not None and size[0] == size[1] <= LARGEST_SIDE and side in (None, size[0])
    image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_GRAYSCALE) if is_valid else None
    if image is None or image.shape != size:
        raise InputError(f"{path}: the {label} is not a map of the manifest's size; predict again")
    return np.asarray(image, np.uint8)


def _check_rows(rows: list[dict[str, Any]], films: int, has_maps: bool, path: Path) -> None:
    """Raise InputError if a table holds values that no prediction writes, or does not match its manifest."""
    try:
        ROWS.validate_python(rows)
    except pydantic.ValidationError as error:
        raise InputError(f"{path}: {first_fault(error)}; predict again") from None
    if any((row["tar"] is not None) != has_maps for row in rows):
        raise InputError(f"{path}: a film {'lacks the' if has_maps else 'has a'} map; predict again")
    if len(rows) != films or len({row["key"] for row in rows}) != films:
        raise InputError(
            f"{path}: holds {len(rows)} rows, but the manifest has {films} films with one row each; predict again"
        )


def open_predictions(folder: Path) -> Predictions:
    """Open predictions of maps. Raises InputError if they hold no films, or class probabilities alone."""
    predictions = Predictions(folder)
    if not predictions.has_maps:
        raise InputError(
            f"{folder}: has class probabilities and no maps, because its networks are classifiers; make them members "
            "of an ensemble with a segmenter"
        )
    if not len(predictions):
        raise InputError(f"{folder}: holds no films; predict again with shards that have some")
    return predictions


def check_gate(predictions: Predictions, rule: Rule) -> None:
    """Raise InputError if a rule needs class probabilities that the predictions do not have."""
    if not rule.needs_class:
        return
    if rule.outside and not predictions.outside:
        raise InputError(
            f"{predictions.folder}: the rule was tuned with class probabilities from outside; give those of these "
            "films with --class-probabilities"
        )
    if predictions.outside and not rule.outside:
        raise InputError(
            f"{predictions.folder}: the rule was tuned with the networks' own class probabilities; tune it with "
            "--class-probabilities, too, or leave them out here"
        )
    if any(row["class_probability"] is None for row in predictions.rows):
        raise InputError(
            f"{predictions.folder}: no class probability for the gate; its networks have no classification head"
        )


def is_whole(folder: Path, rows: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether the maps of these rows, if they have any, are stored in the folder's tars, undamaged."""
    reader = MemberReader(folder)
    try:
        for row in rows:
            if row["tar"] is not None:
                reader.read(row["tar"], row["offset"], row["size"], row["crc32"], MEMBER)
    except InputError:
        return False
    finally:
        reader.close()
    return True
