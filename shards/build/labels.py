"""The competition's label CSV, in the forms in which it is really found."""

import csv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from shards.dataset import rle
from shards.errors import InputError


@dataclass(frozen=True)
class LabelRow:
    """One row of a label CSV: its 1-based line number, its run-length string, and the file."""

    line: int
    rle: str
    path: Path | None = None


Labels = Mapping[str, tuple[LabelRow, ...]]


def load_labels(path: Path) -> Labels:
    """Return image id -> its rows, in file order.

    Accepts a BOM, any header or none, spaces around ids and masks, and repeated ids. Raises InputError with the
    line number for a row that has not two cells, a malformed mask, or a film that is both empty and not.
    """
    if not path.is_file():
        raise InputError(f"{path}: no such label CSV; give the file with --rle")
    rows: dict[str, list[LabelRow]] = {}
    try:
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream)
            first = True
            for cells in reader:
                if not any(cell.strip() for cell in cells):
                    continue
                header, first = first and _is_header(cells), False
                if header:
                    continue
                image_id, row = _parse_row(path, reader.line_num, cells)
                rows.setdefault(image_id, []).append(row)
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 text ({error.reason}); save the label CSV as UTF-8") from None
    except csv.Error as error:
        raise InputError(f"{path}: not a CSV file ({error})") from None
    if not rows:
        raise InputError(f"{path}: holds no label row")
    for image_id, found in rows.items():
        empty = [row.line for row in found if row.rle == rle.EMPTY]
        if empty and len(empty) < len(found):
            raise InputError(f"{path} line {empty[0]}: {image_id} is marked -1 but has a mask in another row; drop one")
    return {image_id: tuple(found) for image_id, found in rows.items()}


def _is_header(cells: list[str]) -> bool:
    # Image ids start with a digit or end in one; no header's first cell does.
    return len(cells) == 2 and cells[1].strip().isidentifier() and not any(map(str.isdigit, cells[0]))


def _parse_row(path: Path, line: int, cells: list[str]) -> tuple[str, LabelRow]:
    if len(cells) != 2:
        raise InputError(f"{path} line {line}: {len(cells)} cells instead of two (image id, mask)")
    image_id, text = cells[0].strip(), cells[1].strip()
    if not image_id:
        raise InputError(f"{path} line {line}: the image id is missing")
    try:
        rle.parse(text)
    except InputError as error:
        raise InputError(f"{path} line {line} ({image_id}): {error}") from None
    return image_id, LabelRow(line, text, path)
