"""Reads values of single films from a CSV: folds (`--folds-csv`) or groups (`--groups`)."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from shards.build.folds import ALWAYS, HOLDOUT
from shards.build.rows import (
    ID_NAMES,
    Row,
    check_commas,
    check_id,
    check_spreadsheet,
    explain_stray,
    plain,
    read_rows,
    shown,
    without_suffix,
)
from shards.dataset.keys import image_pseudonym
from shards.errors import InputError

FOLD_NAMES = ("fold", "folds", "foldid", "foldnumber", "kfold", "cvfold")
GROUP_NAMES = (
    *("group", "groupid", "groups", "patient", "patientid", "patid", "pid"),
    *("subject", "subjectid", "person", "personid", "case", "caseid"),
)
LARGEST_FOLD = 999

Value = TypeVar("Value", int, str)

# Splits that say nothing of a film's fold where the column of folds is blank.
_WITHOUT_FOLD = ("train", "test", "unlabelled", "duplicate")
# Words of published files for films that train in every fold. The SIIM-ACR winner used stage_2.
_ALWAYS = re.compile(r"(stage[0-9]+[a-z]*|always[a-z]*|extra[a-z]*|external[a-z]*|additional[a-z]*|train(only|ing)?)")
_HOLDOUT = frozenset({"holdout", "heldout"})
_NUMBER = re.compile(r"(fold[ _-]?)?([+-]?[0-9]{1,9})(\.0*)?", re.IGNORECASE)


@dataclass(frozen=True)
class ValueRow:
    """A row: line, image id, value, and the cell in a column called split (empty without one)."""

    line: int
    image_id: str
    value: str
    split: str


@dataclass(frozen=True)
class Films:
    """The image ids of a table. `salt` is the salt of their pseudonyms, None if they are the original ids."""

    ids: frozenset[str]
    salt: bytes | None = None

    def find(self, image_id: str) -> str | None:
        """Return a film's id in the table, None if it has none. `image_id` may have a suffix, or be an original id."""
        for name in (image_id, without_suffix(image_id)):
            if name in self.ids:
                return name
            if self.salt is not None and image_pseudonym(name, self.salt) in self.ids:
                return image_pseudonym(name, self.salt)
        return None


def read_groups(path: Path, films: Films) -> dict[str, str]:
    """Return film -> group for the rows with a group.

    Raises InputError for a malformed CSV, a CSV without any of the films, an id that a spreadsheet changed, and a film
    in two groups.
    """
    rows = _read(path, "--groups", "group", GROUP_NAMES)
    for row in rows:
        check_spreadsheet(path, row.line, "group", row.value)
    return _by_film(path, "group", rows, [row.value or None for row in rows], films)


def read_folds(path: Path, films: Films) -> dict[str, int]:
    """Return film -> fold, HOLDOUT or ALWAYS, without films whose fold is blank. Raises as `read_groups` does."""
    rows = _read(path, "--folds-csv", "fold", FOLD_NAMES)
    return _by_film(path, "fold", rows, [_fold(path, row) for row in rows], films)


def _fold(path: Path, row: ValueRow) -> int | None:
    text, word = row.value, plain(row.value)
    if not text:  # films.csv of `export` leaves it blank
        text, word = ("", "") if plain(row.split) in _WITHOUT_FOLD else (row.split, plain(row.split))
    if not text:
        return None
    number = _NUMBER.fullmatch(text)
    if number:
        fold = int(number[2])
        if not HOLDOUT <= fold <= LARGEST_FOLD:
            raise InputError(
                f"{path} line {row.line}: {row.image_id} has fold {fold}; folds are numbered from 0 to {LARGEST_FOLD}, "
                "-1 is the holdout"
            )
        return fold
    if word in _HOLDOUT:
        return HOLDOUT
    if _ALWAYS.fullmatch(word):
        return ALWAYS
    raise InputError(
        f"{path} line {row.line}: {row.image_id} has fold {shown([text])}; give a whole number from 0, -1 for the "
        "holdout, or always_train for a film that trains in every fold"
    )


def _by_film(
    path: Path, what: str, rows: Sequence[ValueRow], values: Sequence[Value | None], films: Films
) -> dict[str, Value]:
    """Return film -> value, with the films' ids in the table."""
    named = [films.find(row.image_id) for row in rows]
    strays = {row.image_id: row.line for row, film in zip(rows, named, strict=True) if film is None}
    change = explain_stray(strays, films.ids.difference(filter(None, named)))
    if change is not None:
        raise InputError(f"{path} line {strays[change[0]]}: no film is called {change[0]}: {change[1]}")
    if not any(named):
        raise InputError(
            f"{path}: contains no film of this dataset, first image id {shown([rows[0].image_id])}; "
            "image ids are the films' file names without .dcm, .png or .jpg"
        )
    first: dict[str, tuple[ValueRow, Value]] = {}
    for row, film, value in zip(rows, named, values, strict=True):
        if value is None:
            continue
        earlier, other = first.setdefault(film or without_suffix(row.image_id), (row, value))
        if other != value:
            raise InputError(
                f"{path} line {row.line}: {row.image_id} has {what} {_named(value)} here and {_named(other)} in line "
                f"{earlier.line}; give it one"
            )
    return {film: value for film, (_, value) in first.items() if film in films.ids}


def _named(value: int | str) -> str:
    return "always_train" if value == ALWAYS else shown([value]) if isinstance(value, str) else str(value)


def _read(path: Path, option: str, what: str, names: Sequence[str]) -> list[ValueRow]:
    """Return the rows of a CSV with named columns, or of a CSV without header whose columns are image id and value."""
    rows = read_rows(path, option)
    columns = _columns(path, what, names, rows[0]) if rows else None
    if columns is None:
        columns = {"id": 0, "value": 1}
        _check_two_columns(path, what, rows)
    else:
        rows = rows[1:]
    if not rows:
        raise InputError(f"{path}: holds no film; give a CSV of image id and {what}")
    return [_value_row(path, row, columns) for row in rows]


def _columns(path: Path, what: str, names: Sequence[str], header: Row) -> Mapping[str, int] | None:
    """Return the positions of image id, value and split in a header; None for a row that is not a header."""
    present = [plain(name) for name in header.cells]
    value = next((name for name in names if name in present), None)
    image_id = next((name for name in ID_NAMES if name in present and name != value), None)
    if value is None and image_id is None:
        return None
    for name, example in ((value, what), (image_id, "image_id")):
        if name is None and len(present) != 2:
            raise InputError(f"{path}: no column is called {example}; it has {shown(header.cells)}")
        if name is not None and present.count(name) > 1:
            raise InputError(f"{path}: two columns are called {shown([header.cells[present.index(name)]])}; drop one")
    # Of two columns, one name is enough, unless the other cell is an image id.
    position = 1 - present.index(image_id or "") if value is None else present.index(value)
    other = 1 - position if image_id is None else present.index(image_id)
    if image_id is None and any(map(str.isdigit, header.cells[other])):
        return None
    columns = {"id": other, "value": position, "width": len(present)}
    return columns | ({"split": present.index("split")} if "split" in present else {})


def _check_two_columns(path: Path, what: str, rows: Sequence[Row]) -> None:
    wrong = next((row for row in rows if len(row.cells) != 2), None)
    if wrong is not None:
        check_commas(path, wrong)
        raise InputError(
            f"{path} line {wrong.line}: image id and {what} are expected ({shown(wrong.cells)}); "
            f"name the columns in a first line, as in image_id,{what}"
        )


def _value_row(path: Path, row: Row, columns: Mapping[str, int]) -> ValueRow:
    width = columns.get("width", 2)
    if len(row.cells) > width or len(row.cells) < 2:
        check_commas(path, row)
        count = "1 cell" if len(row.cells) == 1 else f"{len(row.cells)} cells"
        raise InputError(f"{path} line {row.line}: {count} instead of {width}: {shown(row.cells)}")
    cells = [*row.cells, *[""] * (width - len(row.cells))]
    image_id, value = cells[columns["id"]], cells[columns["value"]]
    check_id(path, row.line, image_id)
    return ValueRow(row.line, image_id, value, cells[columns["split"]] if "split" in columns else "")
