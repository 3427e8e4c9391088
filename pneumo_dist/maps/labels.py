"""Stored maps as labels of films without any."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Self

import numpy as np
import numpy.typing as npt

from pneumo_dist.maps.store import MEMBER, Predictions, decode_map
from pneumo_dist.scoring.arrays import Map
from shards.dataset.table import Shards
from shards.dataset.tar import MemberReader
from shards.errors import InputError

Integers = npt.NDArray[np.int64]


def labels_folder(runs: Path, source: str, fold: int) -> Path:
    """Return the folder of the maps from which a fold learns; `source` is EXPERIMENT/STAGE or ENSEMBLE."""
    name, _, stage = source.partition("/")
    return runs / name / "unlabelled" / stage / f"fold{fold}" / "predictions"


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
        """Return the maps of the films in these rows.

        Raises InputError unless the predictions hold exactly these films.
        """
        by_key = {row["key"]: row for row in predictions.rows}
        keys = tuple(shards.texts(rows, "key"))
        missing = [key for key in keys if key not in by_key]
        extra = by_key.keys() - set(keys)
        if missing or extra:
            what = f"has no map of {missing[0]}" if missing else f"has a map of {min(extra)}, which is not one of them"
            raise InputError(
                f"{predictions.folder}: its films are not the unlabelled films of {shards.folder} ({what}); predict "
                "them again with --split unlabelled"
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
