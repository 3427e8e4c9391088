"""The manifest of a dataset: its shards, counts and arguments."""

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

import pydantic

from shards.dataset.check import LARGEST_TAR, LONGEST_SIDE, MOST_FOLDS
from shards.errors import InputError
from shards.files import write_json
from shards.stored import KindModel, Strict, read_json

FORMAT = "pneumo_dist-shards"
FORMAT_VERSION = 2
MANIFEST = "manifest.json"
# The count of a split has the name of the split, but for this one.
COUNT_OF = {"unlabelled": "unlabelled_split"}
# Folder with the state of an unfinished build.
BUILD_STATE = ".build"

Digest = Annotated[str, pydantic.Field(pattern=r"^[0-9a-f]{64}$")]
_Whole = Annotated[int, pydantic.Field(ge=0, le=2**60)]
_Side = Annotated[int, pydantic.Field(ge=32, le=8192)]
Texts = Annotated[list[Annotated[str, pydantic.Field(max_length=10_000)]], pydantic.Field(max_length=10_000)]


class ShardModel(Strict):
    """An entry of the manifest's list of shards. `reencoded` counts films whose JPEG stream could not be kept."""

    name: Annotated[str, pydantic.Field(pattern=r"^(train|test|unlabelled)-[0-9]{5,}\.tar$")]
    sha256: Digest
    bytes: Annotated[int, pydantic.Field(ge=512, le=LARGEST_TAR)]
    samples: Annotated[int, pydantic.Field(ge=1, le=2**31)]
    reencoded: _Whole


class CountsModel(Strict):
    """Numbers of films by split, and of what was left out.

    `unlabelled` counts films without a label that are only listed, `unlabelled_split` those in the shards, and
    `duplicate` those in the shards that look like another film. `known_test` counts test films that look like a
    labelled film or share its patient. `skipped` counts, by reason, files of the last build's folders that are not
    films.
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
    unlabelled_split: _Whole = 0
    duplicate: _Whole = 0
    skipped: dict[str, _Whole] = pydantic.Field(default_factory=dict)


class ArgumentsModel(Strict):
    """The arguments of the build. CSVs are stored only as given or not."""

    image_size: _Side
    folds: Annotated[int, pydantic.Field(ge=1, le=MOST_FOLDS)]
    holdout: Annotated[float, pydantic.Field(ge=0, le=1)]
    seed: int
    samples_per_shard: Annotated[int, pydantic.Field(ge=1)]
    label_size: Annotated[int, pydantic.Field(ge=1, le=LONGEST_SIDE)] | None
    codec: Literal["png", "jpeg"]
    any_film: bool
    allow_burned_in: bool
    # Options with a default are newer than the format.
    max_pixels: Annotated[int, pydantic.Field(ge=1)] = 144_000_000
    strict: bool = False
    pseudonymise: bool
    duplicate_distance: Annotated[int, pydantic.Field(ge=0, le=256)] | None
    groups_csv: bool
    folds_csv: bool
    id: Literal["name", "sop"] = "name"


class ManifestModel(Strict):
    """Contents of manifest.json. `doubts` are about groups, folds and labels; version 0.2.0 did not write them."""

    codec: Literal["png", "jpeg"]
    image_size: _Side
    counts: CountsModel
    arguments: ArgumentsModel
    salt_check: str
    build_digest: str
    table_sha256: Digest
    shards: list[ShardModel]
    doubts: Texts = pydantic.Field(default_factory=list)

    @pydantic.model_validator(mode="after")
    def _each_shard_once(self) -> Self:
        if len({shard.name for shard in self.shards}) != len(self.shards):
            raise ValueError("a shard is listed twice")
        return self


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write manifest.json. A build writes it last, so a folder with a manifest is complete."""
    content = {"format": FORMAT, "format_version": FORMAT_VERSION, **manifest}
    write_json(folder / MANIFEST, content)


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest. Raises InputError if the folder holds no shards of this format version."""
    path = folder / MANIFEST
    if not folder.is_dir():
        raise InputError(f"{folder}: no such shards folder; build it with 'python -m shards build'")
    fix = "restore it from a copy or build the shards again"
    try:
        manifest = read_json(path, KindModel, fix)
    except FileNotFoundError:
        raise InputError(f"{folder}: no {MANIFEST}; the build is unfinished, or this is not a shards folder") from None
    if manifest.get("format") != FORMAT:
        raise InputError(f"{path}: not a manifest of {FORMAT}; check the folder")
    if manifest.get("format_version") != FORMAT_VERSION:
        raise InputError(
            f"{path}: format version {manifest.get('format_version')}, this program reads version {FORMAT_VERSION}; "
            "build the shards again"
        )
    return read_json(path, ManifestModel, fix)


def local_copy_name(shard: Mapping[str, Any]) -> str:
    """Return the file name of a shard's local copy; `shard` is its entry in the manifest.

    The name begins with the tar's digest, so a name implies its content: other folds, a grown dataset and other
    datasets can share one folder.
    """
    return f"{shard['sha256'][:16]}-{shard['name']}"
