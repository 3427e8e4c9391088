"""The sample table of a dataset, and random access to its samples."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pydantic

from shards.arrays import Integers, Mask
from shards.dataset import rle
from shards.dataset.check import LABELS, table_faults
from shards.dataset.grid import Padding
from shards.dataset.manifest import BUILD_STATE, MANIFEST, Texts, local_copy_name, read_manifest
from shards.dataset.mapped import mapped
from shards.dataset.tar import CorruptSample, MemberReader
from shards.errors import InputError
from shards.files import atomic_open
from shards.stored import Strict, parse_json, picture_size, read_parquet

TABLE = "samples.parquet"
MEMBERS = ("image", "mask", "json")
# From this size on, a table takes more memory than all else that a process holds of a dataset.
MAPPED_FILMS = 50_000

_OPTIONAL = {"group", "fold", *LABELS, "age", "spacing_row", "spacing_column", "spacing_tag"}
SCHEMA = pa.schema(
    [
        pa.field(name, kind, nullable=name in _OPTIONAL)
        for name, kind in [
            ("key", pa.string()),
            ("image_id", pa.string()),
            ("group", pa.string()),
            ("film_group", pa.string()),
            ("perceptual_hash", pa.string()),
            ("split", pa.string()),
            ("fold", pa.int32()),
            ("has_mask", pa.bool_()),
            ("mask_area", pa.int64()),
            ("rle", pa.string()),
            ("label_height", pa.int32()),
            ("label_width", pa.int32()),
            ("pad_top", pa.int32()),
            ("pad_bottom", pa.int32()),
            ("pad_left", pa.int32()),
            ("pad_right", pa.int32()),
            ("image_height", pa.int32()),
            ("image_width", pa.int32()),
            ("shard", pa.string()),
            *[(f"{m}_{what}", pa.int64()) for m in MEMBERS for what in ("offset", "size", "crc32")],
            ("view", pa.string()),
            ("sex", pa.string()),
            ("age", pa.int32()),
            ("spacing_row", pa.float64()),
            ("spacing_column", pa.float64()),
            ("spacing_tag", pa.string()),
        ]
    ]
)


@dataclass(frozen=True)
class LabelGrid:
    """The label grid of a film (`height` x `width` pixels), and how it relates to the stored image.

    `padding` is in pixels of a square of `stored` pixels. `origin` is the position (x, y) of the stored image in that
    square: an image at the film's own size contains no padding.
    """

    height: int
    width: int
    padding: Padding
    stored: int
    origin: tuple[int, int] = (0, 0)


def save_table(path: Path, table: pa.Table) -> None:
    """Write a sample table as parquet with page checksums; the file appears whole or not at all."""
    with atomic_open(path) as stream:
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)


def read_table(folder: Path, manifest: Mapping[str, Any] | None = None, is_signed: bool = True) -> pa.Table:
    """Return the sample table of a dataset. Raises InputError if it is damaged or has another format.

    `manifest` defaults to that of the folder. `is_signed` requires the digest in the manifest. The processes of a
    machine share the memory of a large table.
    """
    manifest = read_manifest(folder) if manifest is None else manifest
    if is_signed and sum(shard["samples"] for shard in manifest["shards"]) >= MAPPED_FILMS:
        return mapped(manifest["table_sha256"], partial(_decoded, folder, manifest, is_signed))
    return _decoded(folder, manifest, is_signed)


def _decoded(folder: Path, manifest: Mapping[str, Any], is_signed: bool) -> pa.Table:
    """Return the table in this process's own memory."""
    path, fix = folder / TABLE, "restore it from a copy or build the shards again"
    if (folder / BUILD_STATE / MANIFEST).exists():
        fix = "run the interrupted build or finalize again, or restore it from a copy"
    table = read_parquet(path, SCHEMA, manifest["table_sha256"] if is_signed else None, fix)
    tars = {shard["name"] for shard in manifest["shards"]}
    fault = next(table_faults(table, tars, _OPTIONAL), None)
    if fault is not None:
        raise InputError(f"{path}: {fault}; {fix}")
    return table


class _AboutModel(Strict):
    """The json member of a film. Versions before 0.2.0 wrote no warnings into it."""

    key: str
    warnings: Texts = pydantic.Field(default_factory=list)


class Shards:
    """Random access to the samples of a dataset. Safe with threads, fork and spawn: reads use `os.pread`.

    Samples are numbered by their row in the table. `tars` is a folder with copies of some tars, named by
    `local_copy_name`; the table, the manifest and all other tars are read from `folder`. Raises InputError for a table
    whose digest differs from the manifest's (unless `is_signed` is false), and for values that no build writes.
    """

    def __init__(self, folder: Path, tars: Path | None = None, is_signed: bool = True) -> None:
        self.folder = folder
        self.tars = tars
        self.manifest = read_manifest(folder)
        self.table = read_table(folder, self.manifest, is_signed)
        copies = {shard["name"]: tars / local_copy_name(shard) for shard in self.manifest["shards"]} if tars else None
        self._members = MemberReader(folder, copies)
        self._columns: dict[str, npt.NDArray[Any]] = {}

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __reduce__(self) -> tuple[type["Shards"], tuple[Path, Path | None]]:
        return Shards, (self.folder, self.tars)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return a column as a NumPy array. Missing integers are -1, missing booleans False, missing texts None.

        A column of texts takes about 100 bytes a film and is kept, so readers of some films use `text` and `texts`.
        """
        if name not in self._columns:
            column, kind = self.table[name], self.table.schema.field(name).type
            if pa.types.is_integer(kind) and column.null_count:
                column = column.fill_null(-1)
            if pa.types.is_boolean(kind):
                column = column.fill_null(False)
            self._columns[name] = np.asarray(column.to_numpy())
        return self._columns[name]

    def text(self, index: int, name: str) -> str:
        """Return a sample's value in a column of texts; a missing one is None as text."""
        return str(self.table[name][int(index)].as_py())

    def texts(self, rows: Integers, name: str) -> list[str]:
        """Return the values of some samples in a column of texts, as `text` does."""
        return [str(value) for value in self.table[name].take(rows).to_pylist()]

    def indices(self, *splits: str) -> Integers:
        """Return the row numbers of the samples in the given splits, in table order."""
        return np.flatnonzero(pc.is_in(self.table["split"], value_set=pa.array(splits, pa.string())))

    def folds(self) -> list[int]:
        """Return the numbers of the folds, in order."""
        return sorted(set(self.column("fold")[self.indices("train")].tolist()))

    def fold_rows(self, fold: int, always_train: bool) -> tuple[Integers, Integers]:
        """Return the rows that a fold trains on and the rows that it validates on, in table order.

        With `always_train`, films of that split join the training films, unless their group is in the validation films
        or in the holdout.
        """
        films, folds = self.indices("train"), self.column("fold")
        validation, train = films[folds[films] == fold], films[folds[films] != fold]
        if always_train:
            train = np.sort(np.concatenate([train, self._strangers("always_train", validation)]))
        return train, validation

    def unlabelled_rows(self, fold: int) -> Integers:
        """Return the rows of films without labels that a fold may learn from, in table order.

        Their groups are in neither the validation films nor the holdout.
        """
        return self._strangers("unlabelled", self.fold_rows(fold, always_train=False)[1])

    def _strangers(self, split: str, validation: Integers) -> Integers:
        """Return the rows of a split whose groups are in neither the given validation films nor the holdout."""
        films, groups = self.indices(split), self.table["group"]
        if not len(films):
            return films
        unseen = groups.take(np.concatenate([validation, self.indices("holdout")]))
        is_seen = pc.is_in(groups.take(films), value_set=unseen.combine_chunks())
        return np.asarray(films[~is_seen.to_numpy()], np.int64)

    def grid(self, index: int) -> LabelGrid:
        """Return the label grid of a sample."""
        top, bottom, left, right, height, width = (
            int(self.column(name)[index])
            for name in ("pad_top", "pad_bottom", "pad_left", "pad_right", "label_height", "label_width")
        )
        rows, columns = (int(self.column(name)[index]) for name in ("image_height", "image_width"))
        origin = (0, 0) if rows == columns else (left, top)
        return LabelGrid(height, width, Padding(top, bottom, left, right), max(rows, columns), origin)

    def label(self, index: int) -> Mask:
        """Return the label of a labelled sample on its label grid, uint8 (height, width) with values 0 and 1.

        It comes from the table's RLE, never from the resized mask. Raises InputError for an RLE that leaves its grid.
        """
        grid = self.grid(index)
        return rle.decode(self.text(index, "rle"), grid.height, grid.width)

    def read(self, index: int, member: str) -> bytes:
        """Return the encoded bytes of a sample's `image`, `mask` or `json` member.

        Raises CorruptSample, with the file and the key, if they are missing, differ from the table's CRC32, or
        are not an image of the table's size.
        """
        shard, key = self.text(index, "shard"), self.text(index, "key")
        offset, size, crc = (int(self.column(f"{member}_{what}")[index]) for what in ("offset", "size", "crc32"))
        assert size >= 0, f"{key} has no {member}"
        content = self._members.read(shard, offset, size, crc, f"{member} of {key}")
        if member != "json":
            expected = tuple(int(self.column(f"image_{side}")[index]) for side in ("height", "width"))
            # A decoder allocates the size in the header, however few bytes there are, and takes many other formats.
            actual = picture_size(content)
            if actual != expected:
                what = "" if actual else "an image of "
                raise CorruptSample(
                    f"{self.folder / shard}: the {member} of {key} is not {what}{expected[1]}x{expected[0]} pixels; "
                    "build the shards again"
                )
        return content

    def warnings(self, index: int) -> list[str]:
        """Return the warnings of the build about a film."""
        return list(self.about(index).get("warnings", []))

    def about(self, index: int) -> dict[str, Any]:
        """Return the json member of a film. Raises InputError if it is damaged."""
        where = f"{self.folder / self.text(index, 'shard')}: the json of {self.text(index, 'key')}"
        return parse_json(self.read(index, "json"), _AboutModel, where, "build the shards again")

    def close(self) -> None:
        """Close the tars. A later read opens them again."""
        self._members.close()
