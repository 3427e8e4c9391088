"""The dataset on disk: sample table, manifest, and the one random-access reader."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.parquet as pq
import pydantic

from shards.arrays import Integers, Mask
from shards.dataset import rle
from shards.dataset.check import LABELS, LARGEST_TAR, LONGEST_SIDE, MOST_FOLDS, table_faults
from shards.dataset.grid import Padding
from shards.dataset.tar import CorruptSample, MemberReader
from shards.errors import InputError
from shards.files import atomic_open, write_json
from shards.stored import KindModel, Strict, parse_json, picture_size, read_json, read_parquet

FORMAT = "pneumo_dist-shards"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
TABLE = "samples.parquet"
# Folder with the state of an unfinished build.
BUILD_STATE = ".build"
MEMBERS = ("image", "mask", "json")

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
    """How a film's network-sized map goes back to its label grid (`height` x `width` pixels).

    `padding` is counted in pixels of a square of `stored` pixels; `origin` is where the stored image begins in that
    square, as (x, y): an image at a film's own size holds no padding.
    """

    height: int
    width: int
    padding: Padding
    stored: int
    origin: tuple[int, int] = (0, 0)


def write_table(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write sample rows as a table; the file appears whole or not at all."""
    save_table(path, pa.Table.from_pylist(rows, schema=SCHEMA))


def save_table(path: Path, table: pa.Table) -> None:
    """Write a sample table as parquet with page checksums; the file appears whole or not at all."""
    with atomic_open(path) as stream:
        pq.write_table(table, stream, compression="zstd", write_page_checksum=True)


def read_table(folder: Path, manifest: Mapping[str, Any] | None = None, is_signed: bool = True) -> pa.Table:
    """Return a dataset's sample table. Raises InputError where it is damaged or of another format.

    `is_signed` asks for the digest that the manifest, unless given that of the folder, has of it.
    """
    manifest = read_manifest(folder) if manifest is None else manifest
    path, fix = folder / TABLE, "restore it from a copy or build the shards again"
    if (folder / BUILD_STATE / MANIFEST).exists():
        fix = "run the build or finalize again that did not end here, or restore it from a copy"
    table = read_parquet(path, SCHEMA, manifest["table_sha256"] if is_signed else None, fix)
    tars = {shard["name"] for shard in manifest["shards"]}
    fault = next(table_faults(table, tars, _OPTIONAL), None)
    if fault is not None:
        raise InputError(f"{path}: {fault}; {fix}")
    return table


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json; it comes last in a build, so a folder with a manifest is complete."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest}
    write_json(folder / MANIFEST, content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest. Raises InputError where the folder holds no shards of this format version."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder}: no such shards folder; build it with 'python -m shards build'")
    fix = "restore it from a copy or build the shards again"
    try:
        manifest = read_json(path, KindModel, fix)
    except FileNotFoundError:
        raise InputError(f"{folder}: no {MANIFEST}; the build is unfinished or this is no shards folder") from None
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not a manifest of {FORMAT}")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {manifest.get('format_version')}, this program reads version {FORMAT_VERSION}; "
            "build the shards again"
        )
    return read_json(path, ManifestModel, fix)


Digest = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
_Whole = Annotated[int, pydantic.Field(ge=0, le=2**60)]
_Side = Annotated[int, pydantic.Field(ge=32, le=8192)]
_Texts = Annotated[list[Annotated[str, pydantic.Field(max_length=10_000)]], pydantic.Field(max_length=10_000)]


class _AboutModel(Strict):
    """The json member of a film; datasets of before 0.2.0 note no warnings in it."""

    key: str
    warnings: _Texts = pydantic.Field(default_factory=list)


class ShardModel(Strict):
    """A shard as the manifest lists it; `reencoded` counts films whose own JPEG stream could not be taken over."""

    name: Annotated[str, pydantic.Field(pattern=r"^(train|test)-[0-9]{5,}\.tar$")]
    sha256: Digest
    bytes: Annotated[int, pydantic.Field(ge=512, le=LARGEST_TAR)]
    samples: Annotated[int, pydantic.Field(ge=1, le=2**31)]
    reencoded: _Whole


class CountsModel(Strict):
    """Films by split, and what was left out.

    `known_test` counts test films that look like a labelled film or share its patient; `skipped` counts files in the
    folders that were given last which are no films, by reason.
    """

    train: _Whole
    always_train: _Whole
    holdout: _Whole
    test: _Whole
    positives: _Whole
    groups: _Whole
    unlabelled: _Whole
    rejected: _Whole
    shards: _Whole
    reencoded: _Whole
    warnings: dict[str, _Whole]
    known_test: _Whole = 0
    skipped: dict[str, _Whole] = pydantic.Field(default_factory=dict)


class ArgumentsModel(Strict):
    """The build's arguments; of the CSVs only whether they were given."""

    image_size: _Side
    folds: Annotated[int, pydantic.Field(ge=1, le=MOST_FOLDS)]
    holdout: Annotated[float, pydantic.Field(ge=0, le=1)]
    seed: int
    samples_per_shard: Annotated[int, pydantic.Field(ge=1)]
    label_size: Annotated[int, pydantic.Field(ge=1, le=LONGEST_SIDE)] | None
    codec: Literal["png", "jpeg"]
    any_film: bool
    allow_burned_in: bool
    # Options that are newer than the format.
    max_pixels: Annotated[int, pydantic.Field(ge=1)] = 144_000_000
    strict: bool = False
    pseudonymise: bool
    duplicate_distance: Annotated[int, pydantic.Field(ge=0, le=256)] | None
    groups_csv: bool
    folds_csv: bool
    id: Literal["name", "sop"] = "name"


class ManifestModel(Strict):
    """What manifest.json must hold; `doubts` are those of groups and folds, which 0.2.0 did not write."""

    codec: Literal["png", "jpeg"]
    image_size: _Side
    counts: CountsModel
    arguments: ArgumentsModel
    salt_check: str
    build_digest: str
    table_sha256: Digest
    shards: list[ShardModel]
    doubts: _Texts = pydantic.Field(default_factory=list)

    @pydantic.model_validator(mode="after")
    def _each_shard_once(self) -> Self:
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard stands twice")
        return self


def local_copy_name(shard: Mapping[str, Any]) -> str:
    """Return the file name of a shard's local copy; `shard` is its entry in the manifest.

    The name begins with the tar's digest, so a name implies its content: other folds, a grown dataset and other
    datasets can share one folder.
    """
    return f"{shard['sha256'][:16]}-{shard['name']}"


class Shards:
    """Random access to a built dataset. Safe with threads, fork and spawn: reads are positional (`os.pread`).

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

    def __len__(self) -> int:
        return int(self.table.num_rows)

    def __reduce__(self) -> tuple[type["Shards"], tuple[Path, Path | None]]:
        return Shards, (self.folder, self.tars)

    def column(self, name: str) -> npt.NDArray[Any]:
        """Return one column as a NumPy array; missing integers are -1, missing truths False, missing texts None."""
        return self._columns[name]

    @cached_property
    def _columns(self) -> dict[str, npt.NDArray[Any]]:
        def convert(field: pa.Field) -> npt.NDArray[Any]:
            column = self.table[field.name]
            if pa.types.is_integer(field.type) and column.null_count:
                column = column.fill_null(-1)
            if pa.types.is_boolean(field.type):
                column = column.fill_null(False)
            return np.asarray(column.to_numpy())

        return {field.name: convert(field) for field in self.table.schema}

    def indices(self, *splits: str) -> Integers:
        """Return the row numbers of the samples in the given splits, in table order."""
        return np.flatnonzero(np.isin(self.column("split"), splits))

    def folds(self) -> list[int]:
        """Return the numbers of the folds, in order."""
        return sorted(set(self.column("fold")[self.indices("train")].tolist()))

    def fold_rows(self, fold: int, always_train: bool) -> tuple[Integers, Integers]:
        """Return the rows that a fold trains on and those it validates on, in table order.

        `always_train` films join the training films, except those whose group is validated on or held out.
        """
        films, folds, groups = self.indices("train"), self.column("fold"), self.column("group")
        validation, train = films[folds[films] == fold], films[folds[films] != fold]
        if always_train:
            kept_from = np.concatenate([validation, self.indices("holdout")])
            extra = self.indices("always_train")
            train = np.sort(np.concatenate([train, extra[~np.isin(groups[extra], groups[kept_from])]]))
        return train, validation

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
        return rle.decode(str(self.column("rle")[index]), grid.height, grid.width)

    def read(self, index: int, member: str) -> bytes:
        """Return the encoded bytes of a sample's `image`, `mask` or `json` member.

        Raises CorruptSample, naming the file that was read and the key, where they are missing or differ from the
        table's CRC32.
        """
        shard, key = str(self.column("shard")[index]), str(self.column("key")[index])
        offset, size, crc = (int(self.column(f"{member}_{what}")[index]) for what in ("offset", "size", "crc32"))
        assert size >= 0, f"{key} has no {member}"
        content = self._members.read(shard, offset, size, crc, f"{member} of {key}")
        if member != "json":
            expected = tuple(int(self.column(f"image_{side}")[index]) for side in ("height", "width"))
            found = picture_size(content)
            # A picture decodes to the size that it tells, however few bytes it has.
            if found not in (None, expected):
                raise CorruptSample(
                    f"{self.folder / shard}: {key} holds no {member} of {expected[1]}x{expected[0]} pixels; build the "
                    "shards again"
                )
        return content

    def warnings(self, index: int) -> list[str]:
        """Return what the build could only assume of a film."""
        return list(self.about(index).get("warnings", []))

    def about(self, index: int) -> dict[str, Any]:
        """Return what the build noted of a film. Raises InputError where it is damaged."""
        where = f"{self.folder / str(self.column('shard')[index])}: the json of {self.column('key')[index]}"
        return parse_json(self.read(index, "json"), _AboutModel, where, "build the shards again")

    def close(self) -> None:
        """Close the shard files; a later read opens them again."""
        self._members.close()
