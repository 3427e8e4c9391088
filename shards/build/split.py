"""Splits a whole sample table into groups, folds and a holdout. No tar is touched."""

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pyarrow as pa

from shards.arrays import Integers, Texts
from shards.build.duplicates import join_groups, near_duplicates
from shards.build.film_values import Films, read_folds, read_groups
from shards.build.folds import ALWAYS, HOLDOUT, assign_folds, extend_folds, size_strata
from shards.build.options import BuildOptions
from shards.dataset.keys import patient_group
from shards.errors import InputError

LABELLED = ("train", "holdout")
WITHOUT_LABEL = ("unlabelled", "duplicate")


def split_table(table: pa.Table, options: BuildOptions, salt: bytes, previous: int = 0) -> pa.Table:
    """Return the table with new columns `group`, `split` and `fold`. `salt` keys the names of `--groups`.

    The first `previous` rows are from an earlier build and keep their split and fold. New films of a known group join
    it. Films of other splits get a group and no fold; those without a label may become duplicates. Raises InputError
    for CSVs that do not fit the films, and for groups that would be in two folds.
    """
    films = Films(frozenset(table["image_id"].to_pylist()), salt if options.pseudonymise and salt else None)
    table = _with_csv_groups(table, options, salt, films)
    split = np.array(table["split"].to_pylist(), object)
    pairs = _near_duplicates(table, options)
    groups = np.array(join_groups(table["film_group"].to_pylist(), pairs), object)
    _mark_duplicates(split, pairs)
    fold = np.array(table["fold"].fill_null(HOLDOUT).to_pylist(), np.int64)
    labelled = np.flatnonzero(np.isin(split, LABELLED))
    old = labelled[labelled < previous]
    new = labelled[labelled >= previous]
    areas = np.array(table["mask_area"].fill_null(0).to_pylist(), np.int64)
    if len(new) and options.folds_csv is not None:
        fold[new] = _published_folds(options.folds_csv, table, split, previous, films)[new]
    elif len(new):
        fold[new] = _assigned_folds(options, groups, areas, fold, old, new)
    split[new] = np.select([fold[new] == HOLDOUT, fold[new] == ALWAYS], ["holdout", "always_train"], "train")
    _check_groups(table, groups, fold, labelled[fold[labelled] != ALWAYS])
    folds = pa.array([None if f < 0 else int(f) for f in fold], pa.int32())
    for name, column in (
        ("group", pa.array(groups.tolist(), pa.string())),
        ("split", pa.array(split.tolist(), pa.string())),
        ("fold", folds),
    ):
        table = _set(table, name, column)
    return table


def _set(table: pa.Table, name: str, column: pa.Array) -> pa.Table:
    return table.set_column(table.schema.get_field_index(name), table.schema.field(name), column)


def _with_csv_groups(table: pa.Table, options: BuildOptions, salt: bytes, films: Films) -> pa.Table:
    """Replace the patients by the groups of `--groups`, for this split and later ones."""
    if options.groups_csv is None:
        return table
    if not salt:
        raise InputError(
            "the names in --groups are stored as hashes, keyed by the patient salt; give --patient-salt-file"
        )
    group_of = read_groups(options.groups_csv, films)
    known = zip(table["image_id"].to_pylist(), table["film_group"].to_pylist(), strict=True)
    groups = [patient_group(group_of[image_id], salt) if image_id in group_of else group for image_id, group in known]
    return _set(table, "film_group", pa.array(groups))


def _assigned_folds(
    options: BuildOptions,
    groups: Texts,
    areas: Integers,
    fold: Integers,
    old: Integers,
    new: Integers,
) -> Integers:
    if len(old):
        everything = np.concatenate([old, new])
        strata = size_strata(areas[everything], options.folds)
        return extend_folds(groups[everything].tolist(), strata.tolist(), fold[old])
    strata = size_strata(areas[new], options.folds)
    return assign_folds(groups[new].tolist(), strata.tolist(), options.folds, options.holdout, options.seed)


def _near_duplicates(table: pa.Table, options: BuildOptions) -> list[tuple[int, int]]:
    if options.duplicate_distance is None:
        return []
    hashes = [bytes.fromhex(text) for text in table["perceptual_hash"].to_pylist()]
    return near_duplicates(hashes, options.duplicate_distance)


def _mark_duplicates(split: Texts, pairs: Sequence[tuple[int, int]]) -> None:
    """Set the split of films without a label to `unlabelled`, or to `duplicate` for those that look like another film.

    The other film has another split, or comes first and is no duplicate itself.
    """
    without_label = np.isin(split, WITHOUT_LABEL)
    split[without_label] = "unlabelled"
    alike = defaultdict(list)
    for first, second in pairs:
        alike[first].append(second)
        alike[second].append(first)
    for film in np.flatnonzero(without_label).tolist():
        others = [other for other in alike[film] if other < film or not without_label[other]]
        if any(split[other] != "duplicate" for other in others):
            split[film] = "duplicate"


def _published_folds(path: Path, table: pa.Table, split: Texts, previous: int, films: Films) -> Integers:
    """Return a fold for each film, HOLDOUT for films that need none.

    Raises InputError for a labelled film without a fold, and for a film of `--always-train` with one.
    """
    fold_of = read_folds(path, films)
    ids = table["image_id"].to_pylist()
    new = [(ids[index], split[index]) for index in range(previous, len(ids))]
    missing = [image_id for image_id, name in new if name in LABELLED and image_id not in fold_of]
    if missing:
        raise InputError(f"{path}: no fold for {missing[0]} ({len(missing)} films in all); add them, -1 is the holdout")
    wrong = next((i for i, name in new if name == "always_train" and fold_of.get(i, ALWAYS) != ALWAYS), None)
    if wrong is not None:
        raise InputError(
            f"{path}: {wrong} has fold {fold_of[wrong]} but is a film that trains in every fold; drop its row, or give "
            "it with the other films (--dicom or --images)"
        )
    return np.array([fold_of.get(image_id, HOLDOUT) for image_id in ids], np.int64)


def _check_groups(table: pa.Table, groups: Texts, fold: Integers, labelled: Integers) -> None:
    seen: dict[str, int] = {}
    ids = table["image_id"]
    for index in labelled.tolist():
        first = seen.setdefault(groups[index], index)
        if fold[first] != fold[index]:
            raise InputError(
                f"{ids[first].as_py()} and {ids[index].as_py()} belong together (one patient, or near-duplicates) but "
                "are in two folds; build without --append, correct --folds-csv, or change the groups with --groups and "
                "--duplicate-distance (-1 does not group near-duplicates)"
            )
