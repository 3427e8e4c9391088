"""Columns to score subgroups by: those of the sample table, and those of a user's CSV file."""

import csv
import difflib
import io
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from shards.dataset.table import Shards
from shards.errors import InputError

Columns = Mapping[str, npt.NDArray[Any]]
# Names of the column that holds the films' image ids.
ID_COLUMNS = ("image_id", "ImageId", "id")
# So few different numbers are codes, such as those of sites, and not quantities.
MOST_CODES = 10
_LARGEST_FILE = 256 * 2**20


def subgroup_columns(shards: Shards, by: Sequence[str], table: Path | None) -> Columns:
    """Return the columns to score subgroups by, each (n,) in the order of the shards' rows.

    Args:
        shards: The dataset.
        by: Columns of the sample table.
        table: CSV file with a column image_id. All its other columns are returned, too.

    Raises:
        InputError: A column is unknown, or the file is no such table.
    """
    for column in by:
        if column not in shards.table.schema.names:
            near = difflib.get_close_matches(column, shards.table.schema.names, n=1)
            hint = f"did you mean {near[0]}?" if near else "give one of " + ", ".join(shards.table.schema.names)
            raise InputError(f"--by {column}: the sample table of {shards.folder} has no such column; {hint}")
    chosen = {column: shards.column(column) for column in by}
    if table is None:
        return chosen
    read = read_columns(table, [str(name) for name in shards.column("image_id").tolist()])
    for name in read:
        if name in chosen:
            raise InputError(f"--table {table}: column {name} is also a column of --by; rename one of them")
    return {**chosen, **read}


def read_columns(path: Path, ids: Sequence[str]) -> dict[str, npt.NDArray[Any]]:
    """Return the columns of a CSV file, each (n,) in the order of `ids`; films without a row have no value.

    A column of more than MOST_CODES different numbers, or of ages, is float64 with nan for no value; any other is an
    object array of texts.

    Raises InputError for a file that is not a table with one row for each image id.
    """
    header, rows = _read(path)
    place = next((header.index(name) for name in ID_COLUMNS if name in header), None)
    if place is None:
        raise InputError(f"--table {path}: has no column image_id; name the column of the films' ids so")
    if len(set(header)) < len(header) or "" in header:
        raise InputError(f"--table {path}: two columns have one name, or a column has none; name each of them")
    values: dict[str, list[str]] = {}
    for number, row in enumerate(rows, 2):
        if len(row) != len(header):
            raise InputError(f"--table {path}: row {number} has {len(row)} values for {len(header)} columns")
        if values.setdefault(row[place].strip(), row) is not row:
            raise InputError(f"--table {path}: row {number} has the image id of an earlier row; keep one row a film")
    if not any(each in values for each in ids):
        raise InputError(f"--table {path}: has no film of the dataset; its image ids are those of the sample table")
    empty = [""] * len(header)
    found = [values.get(each, empty) for each in ids]
    return {
        name: _typed(name, [row[column].strip() for row in found])
        for column, name in enumerate(header)
        if column != place
    }


def _read(path: Path) -> tuple[list[str], list[list[str]]]:
    try:
        if path.stat().st_size > _LARGEST_FILE:
            raise InputError(f"--table {path}: is larger than {_LARGEST_FILE >> 20} MiB; keep the columns to score by")
        text = path.read_text("utf-8-sig")
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), strict=True) if row]
    except OSError as error:
        raise InputError(f"--table {path}: cannot be read ({error.strerror}); give a CSV file") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise InputError(f"--table {path}: is no CSV file in UTF-8 ({error}); save it as one") from None
    if len(rows) < 2:
        raise InputError(f"--table {path}: has no rows below its header")
    return [name.strip() for name in rows[0]], rows[1:]


def _typed(name: str, texts: Sequence[str]) -> npt.NDArray[Any]:
    """Return texts as numbers if all that are not empty are finite numbers and many differ, else as they are."""
    few = len(set(texts) - {""}) <= MOST_CODES and name != "age"
    try:
        numbers = np.array([float(text) if text else np.nan for text in texts])
    except ValueError:
        return np.array(texts, object)
    is_known = np.array([bool(text) for text in texts])
    return np.array(texts, object) if few or not np.isfinite(numbers[is_known]).all() else numbers
