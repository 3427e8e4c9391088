"""The rows of a CSV file from a person's hands: read, or refused in one line that names what the file is instead."""

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError

# A film of 4096 x 4096 pixels whose every third one changes needs as many. Python's own limit is 131,072.
LONGEST_CELL = 16 << 20
IMAGE_FILE_SUFFIXES = (".dicom", ".dcm", ".jpeg", ".jpg", ".png")
# What an id column is called, by those that name a film surely first; letters and digits only.
ID_NAMES = (
    *("imageid", "imagename", "imagefile", "filename", "fname", "filmid", "sopinstanceuid"),
    *("image", "img", "imgid", "file", "fileid", "film", "uid", "id", "name"),
)

_SAVE = "save it as CSV in UTF-8"
_FOREIGN = (
    (b"\xff\xfe\x00\x00", f"UTF-32 text; {_SAVE}"),
    (b"\xff\xfe", f"UTF-16 text, as spreadsheets save 'Unicode text'; {_SAVE}"),
    (b"\xfe\xff", f"UTF-16 text, as spreadsheets save 'Unicode text'; {_SAVE}"),
    (b"PK\x03\x04", "a zip archive or a spreadsheet's workbook; unpack it, or save it as CSV"),
    (b"\xd0\xcf\x11\xe0", "a spreadsheet's workbook; save it as CSV"),
    (b"\x1f\x8b", "compressed with gzip; unpack it"),
    (b"version https://git-lfs", "a pointer of Git LFS and not the file itself; run: git lfs pull"),
    (b"<", "a web page or XML; download the file itself"),
)
_BEFORE = "take the file from before it was opened there, or format the column as text"
_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'", " ": "spaces"}
# 1.2.276.0.7230010E+23 and 1,2E+23: what spreadsheets make of long numbers. #NAME? and its like: of formulas.
_NUMBER_FORMAT = re.compile(r"[0-9.,]*[0-9]E\+[0-9]+", re.IGNORECASE)
_SPREADSHEET_ERROR = re.compile(r"#(NAME\?|REF!|VALUE!|NUM!|NULL!|DIV/0!|N/A|#+)")


@dataclass(frozen=True)
class Row:
    """The cells of a row without spaces around them, and the 1-based line that it begins on."""

    line: int
    cells: tuple[str, ...]


def read_rows(path: Path, option: str) -> list[Row]:
    """Return the rows of a CSV that are not blank, each without blank cells at its end beyond the second.

    `option` is what the file was given with. Raises InputError for a file that is missing, is no CSV in UTF-8 or
    separates its cells by something else than commas.
    """
    text = _text(path, option)
    rows = []
    with _longest_cell(LONGEST_CELL):
        reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
        line = 1
        try:
            for cells in reader:
                # Files joined by `cat` have a BOM inside.
                found = [cell.replace("\ufeff", "").strip() for cell in cells]
                while len(found) > 2 and not found[-1]:
                    found.pop()
                if any(found):
                    rows.append(Row(line, tuple(found)))
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path} line {line}: {_csv_fault(error)}") from None
    _check_separator(path, rows)
    return rows


def _text(path: Path, option: str) -> str:
    if path.is_dir() or not path.exists():  # a pipe is no file, and good
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; give the CSV file with {option}")
    try:
        content = path.read_bytes()
    except OSError as error:
        raise InputError(f"{path}: unreadable ({error.strerror}); check {option}") from None
    for beginning, what in _FOREIGN:
        if content.startswith(beginning):
            raise InputError(f"{path}: is {what}")
    nul = content.find(b"\0")
    if nul >= 0:
        # Every other byte of Latin text in UTF-16 is zero.
        wide = content[:4000].count(b"\0") * 3 > len(content[:4000])
        what = "UTF-16 text" if wide else "a binary or a damaged file"
        line = content.count(b"\n", 0, nul) + 1
        raise InputError(f"{path} line {line}: holds a NUL byte, so it is {what}; {_SAVE}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} line {line}: not UTF-8 text ({error.reason}); {_SAVE}") from None


@contextmanager
def _longest_cell(characters: int) -> Iterator[None]:
    # The csv module keeps its limit for the whole process.
    before = csv.field_size_limit(characters)
    try:
        yield
    finally:
        csv.field_size_limit(before)


def _csv_fault(error: csv.Error) -> str:
    text = str(error)
    if "field limit" in text:
        return (
            f"a cell has more than {LONGEST_CELL:,} characters, the most that are read; "
            "look for a quotation mark that is not closed, or split the mask into rows"
        )
    if "unexpected end" in text:
        return "a quotation mark is opened and never closed; close or remove it"
    if "expected after" in text:
        return "text follows a closing quotation mark; remove the quotation marks or double those inside"
    return f"not a CSV file ({text}); {_SAVE}"


def _check_separator(path: Path, rows: Sequence[Row]) -> None:
    for separator, name in _SEPARATORS.items():
        if rows and all(len(row.cells) == 1 and separator in row.cells[0] for row in rows[:20]):
            for row in rows[:20]:
                check_spreadsheet(path, row.line, "image id", row.cells[0].split(separator)[0].strip())
            raise InputError(f"{path}: its cells are separated by {name}; save it with commas")


def check_commas(path: Path, row: Row) -> None:
    """Raise InputError for a row that makes no sense with commas where it is plain why: 1,2E+23;-1 or 1,2E+23,-1."""
    for separator, name in _SEPARATORS.items():
        if separator in row.cells[-1] and separator != " ":
            check_spreadsheet(path, row.line, "image id", ",".join(row.cells).split(separator)[0].strip())
            raise InputError(f"{path} line {row.line}: its cells are separated by {name}; save it with commas")
    for cell in row.cells:
        check_spreadsheet(path, row.line, "image id", cell)


def plain(name: str) -> str:
    """Return a column's name in lower case, letters and digits only: 'Image Id' and 'image_id' are 'imageid'."""
    return "".join(filter(str.isalnum, name)).lower()


def shown(cells: Sequence[str]) -> str:
    """Return cells for an error's one line: each quoted and cut short, the first six."""
    texts = [repr(cell if len(cell) <= 40 else f"{cell[:37]}...") for cell in cells[:6]]
    return ", ".join([*texts, *(["..."] if len(cells) > 6 else [])])


def without_suffix(image_id: str) -> str:
    """Return an image id without the suffix of an image file."""
    for suffix in IMAGE_FILE_SUFFIXES:
        if image_id.lower().endswith(suffix) and len(image_id) > len(suffix):
            return image_id[: -len(suffix)]
    return image_id


def check_id(path: Path, line: int, image_id: str) -> None:
    """Raise InputError for an image id that is missing, that a spreadsheet changed, or that has a line break in it."""
    if not image_id:
        raise InputError(f"{path} line {line}: the image id is missing")
    check_spreadsheet(path, line, "image id", image_id)
    if image_id.startswith(("'", '="')):  # how people keep a spreadsheet from changing ids
        raise InputError(f"{path} line {line}: the image id {shown([image_id])} has a spreadsheet's signs; remove them")
    if len((image_id + ".").splitlines()) > 1 or any(ord(character) < 32 for character in image_id):
        raise InputError(
            f"{path} line {line}: the image id {shown([image_id])} holds a line break or control character"
        )


def check_spreadsheet(path: Path, line: int, what: str, text: str) -> None:
    """Raise InputError for a text that a spreadsheet made of another: 1.2276E+23, #NAME?."""
    if _NUMBER_FORMAT.fullmatch(text) or _SPREADSHEET_ERROR.fullmatch(text):
        raise InputError(f"{path} line {line}: a spreadsheet changed the {what} to {text[:80]}; {_BEFORE}")


def explain_stray(image_ids: Iterable[str], film_ids: Collection[str]) -> tuple[str, str] | None:
    """Return the first image id that is a film's id changed, and how; None where none of them looks so.

    `image_ids` are no film's.
    """
    spelt = {film.casefold(): film for film in sorted(film_ids, reverse=True)}
    numbers = [film for film in film_ids if film.isdecimal()]
    without_zeros = {film.lstrip("0") for film in numbers if film.startswith("0")}
    cut = {(len(film), film[:14]) for film in numbers if len(film) > 15}
    for image_id in image_ids:
        other = spelt.get(image_id.casefold()) or spelt.get(without_suffix(image_id).casefold())
        if other is not None:
            return image_id, f"a film is {other}; write capitals alike"
        if image_id in without_zeros:
            return image_id, f"a film's id has zeros before it, as spreadsheets drop them; {_BEFORE}"
        if re.fullmatch(r"[0-9]{15}0+", image_id) and (len(image_id), image_id[:14]) in cut:
            return image_id, f"it has 15 digits and then zeros, as spreadsheets cut long numbers; {_BEFORE}"
        if image_id.endswith(".0") and image_id[:-2] in film_ids:
            return image_id, f"a film is {image_id[:-2]}, and spreadsheets add '.0' to numbers; {_BEFORE}"
        if re.fullmatch(r"[0-9]{1,2}-[A-Za-z]{3}(-[0-9]{2,4})?", image_id):
            return image_id, f"it is a date, as spreadsheets make of ids; {_BEFORE}"
    return None
