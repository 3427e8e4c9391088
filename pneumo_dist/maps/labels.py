"""Stored maps as labels: of films without any, and mixed into those of others."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, Self

import numpy as np
import numpy.typing as npt

from pneumo_dist.maps.store import MEMBER, Predictions, decode_map
from pneumo_dist.scoring.arrays import Map
from shards.dataset.table import Shards
from shards.dataset.tar import MemberReader
from shards.errors import InputError

Integers = npt.NDArray[np.int64]


LearnSplit = Literal["train", "unlabelled"]
"""Splits whose maps a fold learns from: its training films, and films without labels."""


def labels_folder(runs: Path, source: str, split: str, fold: int) -> Path:
    """Return the folder of the maps of a split from which a fold learns; `source` is EXPERIMENT/STAGE or ENSEMBLE."""
    name, _, stage = source.partition("/")
    return runs / name / split / stage / f"fold{fold}" / "predictions"


@dataclass(frozen=True, eq=False)
class MapLabels:
    """Random access to the stored maps of some films of a dataset. Picklable, and safe with threads and forks.

    Attributes:
        folder: Folder of the predictions.
        side: Side of the maps, None if the manifest does not say it.
        rows: Rows of the films in the sample table, int64 (n,), rising.
        keys: Their keys.
        tars: The tar of each map.
        places: Offset, size and CRC32 of each map, int64 (n, 3).
    """

    folder: Path
    side: int | None
    rows: Integers
    keys: tuple[str, ...]
    tars: tuple[str, ...]
    places: Integers
    _members: MemberReader = field(repr=False, compare=False)

    @classmethod
    def of(cls, predictions: Predictions, shards: Shards, rows: Integers) -> Self:
        """Return the maps of the films in these rows. Raises InputError if one has no map."""
        by_key = {row["key"]: row for row in predictions.rows}
        keys = tuple(shards.texts(rows, "key"))
        missing = next((key for key in keys if key not in by_key), None)
        if missing is not None:
            raise InputError(
                f"{predictions.folder}: has no map of {missing}, a film of {shards.folder}; predict again with --split "
                f"{predictions.manifest['split']}"
            )
        found = [by_key[key] for key in keys]
        places = [[row["offset"], row["size"], row["crc32"]] for row in found]
        return cls(
            predictions.folder,
            predictions.manifest.get("image_size"),
            rows,
            keys,
            tuple(row["tar"] for row in found),
            np.array(places, np.int64).reshape(-1, 3),
            MemberReader(predictions.folder),
        )

    def p8(self, row: int) -> Map:
        """Return the map of the film in a row of the sample table, uint8 (side, side).

        Raises CorruptSample if its CRC32 does not match.
        """
        number = int(np.searchsorted(self.rows, row))
        assert self.rows[number] == row, "a film without a map"
        offset, size, crc32 = self.places[number].tolist()
        label = f"{MEMBER} of {self.keys[number]}"
        content = self._members.read(self.tars[number], offset, size, crc32, label)
        return decode_map(content, self.side, self.folder / self.tars[number], label)


@dataclass(frozen=True, eq=False)
class SoftLabels:
    """The maps that a stage learns from.

    Attributes:
        pseudo: Labels of films without any.
        teacher: Maps that are mixed into the masks of other films.
        share: Share of the teacher's map in a label.
    """

    pseudo: MapLabels | None = None
    teacher: MapLabels | None = None
    share: float = 0.0
