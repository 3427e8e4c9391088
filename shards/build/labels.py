"""Reads the competition's label CSV, in the variants that exist."""

from collections.abc import Collection, Container, Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.build.rows import (
    ID_NAMES,
    Row,
    check_commas,
    check_id,
    explain_stray,
    plain,
    read_rows,
    shown,
    without_suffix,
)
from shards.dataset import rle
from shards.errors import InputError

MASK_NAMES = ("encodedpixels", "encodedpixel", "rle", "rlemask", "maskrle", "mask", "pixels", "label")
# Words of programs for a missing mask.
_MISSING = frozenset({"", "nan", "na", "n/a", "none", "null"})
# Maximum length of a cell in a spreadsheet.
_SPREADSHEET_CELL = 32_767


@dataclass(frozen=True)
class LabelRow:
    """A row of a label CSV: 1-based line number, run-length string, and file."""

    line: int
    rle: str
    path: Path | None = None


Labels = Mapping[str, tuple[LabelRow, ...]]


def load_labels(path: Path) -> Labels:
    """Return image id -> rows, in file order.

    Accepts a BOM, any header or none, spaces around ids and masks, and repeated ids. Raises InputError for a file that
    is not a label CSV. The message has the line number for a row without exactly two cells, an id that a spreadsheet
    changed, a malformed mask, and a film that is both empty and not.
    """
    if not path.exists():
        raise InputError(f"{path}: no such label CSV; give the file with --rle")
    cells = read_rows(path, "--rle")
    swapped = False
    if cells and _is_header(cells[0].cells):
        names = cells.pop(0).cells
        if len(names) != 2:
            raise InputError(
                f"{path}: its header does not name two columns but {len(names)} ({shown(names)}); "
                "keep two, image id and mask"
            )
        swapped = plain(names[0]) in MASK_NAMES and plain(names[1]) in ID_NAMES
    rows: dict[str, list[LabelRow]] = {}
    for row in cells:
        image_id, label = _parse_row(path, row, swapped)
        rows.setdefault(image_id, []).append(label)
    if not rows:
        raise InputError(f"{path}: holds no label row")
    return _checked(rows)


def match_labels(labels: Labels, film_ids: Collection[str], known: Container[str] = frozenset()) -> Labels:
    """Return the labels under the ids of the films: an id loses the suffix of an image file if the film's has none.

    Ids of films, and ids in `known`, are kept. Raises InputError for an id without a film if the reason is clear: the
    case differs from that of a film, or a spreadsheet changed the id.
    """
    films = frozenset(film_ids)
    rows: dict[str, list[LabelRow]] = {}
    for image_id, labelled in labels.items():
        shorter = without_suffix(image_id)
        is_film = image_id in films or image_id in known
        name = shorter if not is_film and (shorter in films or shorter in known) else image_id
        rows.setdefault(name, []).extend(labelled)
    change = explain_stray((name for name in rows if name not in films and name not in known), films.difference(rows))
    if change is not None:
        image_id, why = change
        row = rows[image_id][0]
        raise InputError(f"{row.path} line {row.line}: no film is called {image_id}: {why}")
    return _checked(rows)


def _checked(rows: Mapping[str, list[LabelRow]]) -> Labels:
    for image_id, labelled in rows.items():
        empty = [row for row in labelled if row.rle == rle.EMPTY]
        if empty and len(empty) < len(labelled):
            raise InputError(
                f"{empty[0].path} line {empty[0].line}: {image_id} is marked -1 but has a mask in another row; drop one"
            )
    return {image_id: tuple(labelled) for image_id, labelled in rows.items()}


def _is_header(cells: tuple[str, ...]) -> bool:
    """Return whether a row is a header: known names, or two cells, one without a digit and then a word."""
    if any(_is_mask(cell) for cell in cells[1:]):
        return False
    if plain(cells[0]) in ID_NAMES:
        return True
    # Image ids start or end with a digit, header cells do not.
    if any(map(str.isdigit, cells[0])):
        return False
    is_word = len(cells) == 2 and any(map(str.isalpha, cells[1])) and not any(map(str.isdigit, cells[1]))
    return is_word or any(plain(cell) in MASK_NAMES for cell in cells[1:])


def _is_mask(cell: str) -> bool:
    """Return whether a cell is meant as a mask, well-formed or not."""
    return cell.lower() in _MISSING or all(token.lstrip("+-").isdecimal() for token in cell.split())


def _parse_row(path: Path, row: Row, swapped: bool) -> tuple[str, LabelRow]:
    if len(row.cells) != 2:
        check_commas(path, row)
        count = "1 cell" if len(row.cells) == 1 else f"{len(row.cells)} cells"
        raise InputError(f"{path} line {row.line}: {count} instead of two (image id, mask): {shown(row.cells)}")
    image_id, text = reversed(row.cells) if swapped else row.cells
    check_id(path, row.line, image_id)
    try:
        rle.parse(text)
    except InputError as error:
        check_commas(path, row)
        raise InputError(f"{path} line {row.line} ({image_id}): {error}") from None
    if len(text) == _SPREADSHEET_CELL:
        raise InputError(
            f"{path} line {row.line} ({image_id}): the mask has {_SPREADSHEET_CELL:,} characters, the limit of a "
            "spreadsheet's cell; use the file from before, or split a mask of that length into two rows"
        )
    return image_id, LabelRow(row.line, text, path)
