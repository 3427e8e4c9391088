"""What a person asks of a build, checked before a film is read."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from shards.build.folds import check_split
from shards.dicom.rules import MAX_PIXELS
from shards.errors import InputError

CODECS = ("png", "jpeg")


@dataclass(frozen=True)
class BuildOptions:
    """What decides a dataset besides its films: first the tars' bytes, then the split, which lives in the table.

    `duplicate_distance` is the largest Hamming distance (of 256 bits) between the perceptual hashes of films that count
    as one picture; None leaves near-duplicates alone. `id` says what image ids are: names of files, or SOPInstanceUIDs.
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
        """Return what decides the bytes of a sample."""
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
        """Return the arguments as the manifest keeps them: without the paths of files."""
        paths = ("groups_csv", "folds_csv")
        return {k: v is not None if k in paths else v for k, v in asdict(self).items()}
