"""The options of a build, checked before any film is read."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.build.folds import check_split
from shards.dicom.rules import MAX_PIXELS
from shards.errors import InputError

CODECS = ("png", "jpeg")


@dataclass(frozen=True)
class BuildOptions:
    """Options that decide a dataset in addition to its films: the bytes of the tars, and the split in the table.

    `duplicate_distance` is the largest Hamming distance (of 256 bits) between perceptual hashes at which two films
    count as near-duplicates; None disables the search. `id` is `name` (image ids are file names) or `sop` (they are
    SOPInstanceUIDs).
    """

    image_size: int = 512
    folds: int = 5
    holdout: float = 0.0
    seed: int = 0
    samples_per_shard: int = 512
    label_size: int | None = None
    codec: str = "png"
    any_film: bool = False
    allow_burned_in: bool = False
    max_pixels: int = MAX_PIXELS
    strict: bool = False
    pseudonymise: bool = False
    duplicate_distance: int | None = 7
    groups_csv: Path | None = None
    folds_csv: Path | None = None
    id: str = "name"

    def __post_init__(self) -> None:
        if not 32 <= self.image_size <= 8192:
            raise InputError(f"--image-size {self.image_size}: give 32 to 8192 pixels")
        if self.max_pixels < 1:
            raise InputError(f"--max-pixels {self.max_pixels}: give at least 1")
        if self.samples_per_shard < 1:
            raise InputError(f"--samples-per-shard {self.samples_per_shard}: give at least 1")
        if self.label_size is not None and self.label_size < 1:
            raise InputError(f"--label-size {self.label_size}: give at least 1 pixel")
        if self.codec not in CODECS:
            raise InputError(f"--codec {self.codec}: choose from {', '.join(CODECS)}")
        if self.duplicate_distance is not None and not 0 <= self.duplicate_distance <= 32:
            raise InputError(f"--duplicate-distance {self.duplicate_distance}: give 0 to 32 bits")
        check_split(self.folds, self.holdout, self.seed)

    def content(self) -> dict[str, Any]:
        """Return the options that decide the bytes of a sample."""
        names = (
            "image_size",
            "label_size",
            "codec",
            "any_film",
            "allow_burned_in",
            "max_pixels",
            "strict",
            "pseudonymise",
        )
        return {name: getattr(self, name) for name in names}

    def public(self) -> dict[str, Any]:
        """Return the options as the manifest stores them: whether a CSV was given, not its path."""
        paths = ("groups_csv", "folds_csv")
        return {k: v is not None if k in paths else v for k, v in asdict(self).items()}


@dataclass(frozen=True)
class Task:
    """Task `number` of `count` in an array. Each task builds its share of the shards; `finalize` joins them."""

    number: int
    count: int

    def __post_init__(self) -> None:
        if not 1 <= self.number <= self.count:
            raise InputError(f"--task {self.number}/{self.count}: tasks are numbered from 1 to {self.count}")


@dataclass(frozen=True)
class Execution:
    """How a build runs. `task` limits it to a share of the shards; `append` adds films to a finished dataset."""

    workers: int = 1
    max_rejects: int = 0
    task: Task | None = None
    append: bool = False
