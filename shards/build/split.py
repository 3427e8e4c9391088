"""Groups, folds and the holdout of a whole table: what finalize decides, and decides again without touching a tar."""

import csv
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from shards.build.duplicates import join_groups, near_duplicates
from shards.build.folds import HOLDOUT, assign_folds, extend_folds, size_strata
from shards.build.options import BuildOptions
from shards.dataset.keys import patient_group
from shards.errors import InputError

LABELLED = ("train", "holdout")


def split_table(table: pa.Table, options: BuildOptions, salt: bytes, kept: int = 0) -> pa.Table:
    """Return the table with `group`, `split` and `fold` decided anew; `salt` keys the names of `--groups`.

    The first `kept` rows are of an earlier build and keep split and fold; new films of a known group join it. Test and
    always_train films get a group and no fold. Raises InputError for CSVs that do not fit the films, and for groups
    that would stand in two folds.
    """
    table = _with_given_groups(table, options, salt)
    groups = np.array(_groups(table, options), object)
    split = np.array(table["split"].to_pylist(), object)
    fold = np.array(table["fold"].fill_null(HOLDOUT).to_pylist(), np.int64)
    labelled = np.flatnonzero(np.isin(split, LABELLED))
    old = labelled[labelled < kept]
    new = labelled[labelled >= kept]
    areas = np.array(table["mask_area"].fill_null(0).to_pylist(), np.int64)
    if len(new):
        fold[new] = _folds_of(table, options, groups, areas, fold, old, new)
    split[new] = np.where(fold[new] == HOLDOUT, "holdout", "train")
    _check_groups(table, groups, fold, labelled)
    folds = pa.array([None if f == HOLDOUT else int(f) for f in fold], pa.int32())
    for name, column in (
        ("group", pa.array(groups.tolist(), pa.string())),
        ("split", pa.array(split.tolist(), pa.string())),
        ("fold", folds),
    ):
        table = _set(table, name, column)
    return table


def _set(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)


def _with_given_groups(table: pa.Table, options: BuildOptions, salt: bytes) -> pa.Table:
    """Put the groups of `--groups` in the place of the patients, for this split and later ones."""
    if options.groups_csv is None:
        return table
    given = _read_pairs(options.groups_csv, "group")
    _check_known(options.groups_csv, given, table)
    known = zip(table["image_id"].to_pylist(), table["film_group"].to_pylist(), strict=True)
    groups = [patient_group(given[image_id], salt) if image_id in given else group for image_id, group in known]
    return _set(table, "film_group", pa.array(groups))


def _folds_of(
    table: pa.Table,
    options: BuildOptions,
    groups: npt.NDArray[np.object_],
    areas: npt.NDArray[np.int64],
    fold: npt.NDArray[np.int64],
    old: npt.NDArray[np.int64],
    new: npt.NDArray[np.int64],
) -> npt.NDArray[np.int64]:
    if options.folds_csv is not None:
        return _published_folds(options.folds_csv, table, new)
    if len(old):
        everything = np.concatenate([old, new])
        strata = size_strata(areas[everything], options.folds)
        return extend_folds(groups[everything].tolist(), strata.tolist(), fold[old])
    strata = size_strata(areas[new], options.folds)
    return assign_folds(groups[new].tolist(), strata.tolist(), options.folds, options.holdout, options.seed)


def _groups(table: pa.Table, options: BuildOptions) -> list[str]:
    """A film's group is its patient (or itself where none is known), joined with those of near-duplicate films."""
    groups = table["film_group"].to_pylist()
    if options.duplicate_distance is not None:
        hashes = [bytes.fromhex(text) for text in table["perceptual_hash"].to_pylist()]
        groups = join_groups(groups, near_duplicates(hashes, options.duplicate_distance))
    return list(groups)


def _published_folds(path: Path, table: pa.Table, new: npt.NDArray[np.int64]) -> npt.NDArray[np.int64]:
    given = _read_pairs(path, "fold")
    _check_known(path, given, table)
    ids = table["image_id"].to_pylist()
    missing = [ids[i] for i in new if ids[i] not in given]
    if missing:
        raise InputError(f"{path}: no fold for {missing[0]} ({len(missing)} films in all); add them, -1 is the holdout")
    try:
        return np.array([int(given[ids[i]]) for i in new], np.int64)
    except ValueError:
        raise InputError(f"{path}: a fold is a whole number from 0, or -1 for the holdout") from None


def _read_pairs(path: Path, second: str) -> dict[str, str]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            rows = [row for row in csv.reader(stream) if any(cell.strip() for cell in row)]
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"{path}: unreadable ({error}); give a CSV of image id and {second}") from None
    wrong = next((number for number, row in enumerate(rows, 1) if len(row) != 2), None)
    if wrong is not None or not rows:
        raise InputError(f"{path} row {wrong or 1}: two cells are expected, image id and {second}")
    pairs = {row[0].strip(): row[1].strip() for row in rows}
    if rows[0][1].strip().lower() == second:
        del pairs[rows[0][0].strip()]  # a header
    return pairs


def _check_known(path: Path, given: Mapping[str, str], table: pa.Table) -> None:
    stray = sorted(set(given) - set(table["image_id"].to_pylist()))
    if stray and len(stray) == len(given):
        raise InputError(f"{path}: none of its image ids is a film of this dataset, first {stray[0]}")


def _check_groups(
    table: pa.Table, groups: npt.NDArray[np.object_], fold: npt.NDArray[np.int64], labelled: npt.NDArray[np.int64]
) -> None:
    seen: dict[str, int] = {}
    ids = table["image_id"]
    for index in labelled.tolist():
        first = seen.setdefault(groups[index], index)
        if fold[first] != fold[index]:
            raise InputError(
                f"{ids[first].as_py()} and {ids[index].as_py()} belong together (one patient, or near-duplicates) but "
                "stand in two folds; build without --append, mend --folds-csv, or say what belongs together with "
                "--groups and --duplicate-distance"
            )
