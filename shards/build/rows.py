"""Reads the rows of a CSV that people edit, or refuses it in one line that says what the file is instead."""

import csv
import io
import re
from collections.abc import Collection, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from shards.errors import InputError

# A mask of 4096 x 4096 pixels that changes at every third one needs this many. Python's default is 131,072.
LONGEST_CELL = 16 << 20
MOST_BYTES, MOST_ROWS = 512 << 20, 5_000_000
IMAGE_FILE_SUFFIXES = (".dicom", ".dcm", ".jpeg", ".jpg", ".png")
# Names of id columns, the unambiguous ones first; letters and digits only.
ID_NAMES = (
    *("imageid", "imagename", "imagefile", "filename", "fname", "filmid", "sopinstanceuid"),
    *("image", "img", "imgid", "file", "fileid", "film", "uid", "id", "name"),
)

_SAVE = "save it as CSV in UTF-8"
_PARTS = "build the films in parts, with --append"
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
_BEFORE = "use the file from before it was opened there, or format the column as text"
_SEPARATORS = {";": "';'", "\t": "tabs", "|": "'|'", " ": "spaces"}
# Spreadsheets turn long numbers into 1.2.276.0.7230010E+23 or 1,2E+23, and formulas into #NAME? and similar words.
_NUMBER_FORMAT = re.compile(r"[0-9.,]*[0-9]E\+[0-9]+", re.IGNORECASE)
_SPREADSHEET_ERROR = re.compile(r"#(NAME\?|REF!|VALUE!|NUM!|NULL!|DIV/0!|N/A|#+)")


@dataclass(frozen=True)
class Row:
    """The cells of a row, stripped, and the 1-based line where the row begins."""

    line: int
    cells: tuple[str, ...]


def read_rows(path: Path, option: str) -> list[Row]:
    """Return the rows of a CSV that are not blank, without trailing blank cells after the second.

    `option` is the option of the file, for errors. Raises InputError for a file that is missing, is not a CSV in UTF-8,
    or separates its cells by anything but commas.
    """
    text = _text(path, option)
    rows = []
    with _longest_cell(LONGEST_CELL):
        reader = csv.reader(io.StringIO(text, newline=""), skipinitialspace=True, strict=True)
        line = 1
        try:
            for cells in reader:
                # Files joined by `cat` contain BOMs.
                stripped = [cell.replace("\ufeff", "").strip() for cell in cells]
                while len(stripped) > 2 and not stripped[-1]:
                    stripped.pop()
                if any(stripped):
                    rows.append(Row(line, tuple(stripped)))
                if len(rows) > MOST_ROWS:
                    raise InputError(f"{path}: has more than {MOST_ROWS:,} rows; {_PARTS}")
                line = reader.line_num + 1
        except csv.Error as error:
            raise InputError(f"{path} line {line}: {_csv_fault(error)}") from None
    _check_separator(path, rows)
    return rows


def _text(path: Path, option: str) -> str:
    if path.is_dir() or not path.exists():  # a pipe is not a file, and is accepted
        what = "is a folder" if path.is_dir() else "no such file"
        raise InputError(f"{path}: {what}; give the CSV file with {option}")
    try:
        with path.open("rb") as stream:
            content = stream.read(MOST_BYTES + 1)
    except OSError as error:
        raise InputError(f"{path}: unreadable ({error.strerror}); check {option}") from None
    if len(content) > MOST_BYTES:
        raise InputError(f"{path}: larger than {MOST_BYTES >> 20} MiB; {_PARTS}")
    for beginning, what in _FOREIGN:
        if content.startswith(beginning):
            raise InputError(f"{path}: is {what}")
    nul = content.find(b"\0")
    if nul >= 0:
        # Every other byte of Latin text in UTF-16 is zero.
        wide = content[:4000].count(b"\0") * 3 > len(content[:4000])
        what = "UTF-16 text" if wide else "a binary or a damaged file"
        line = content.count(b"\n", 0, nul) + 1
        raise InputError(f"{path} line {line}: contains a NUL byte, so it is {what}; {_SAVE}")
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise InputError(f"{path} line {line}: not UTF-8 text ({error.reason}); {_SAVE}") from None


@contextmanager
def _longest_cell(characters: int) -> Iterator[None]:
    # The limit of the csv module holds for the whole process.
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
    """Raise InputError for a row whose cells are wrong for a clear reason, such as 1,2E+23;-1 or 1,2E+23,-1."""
    for separator, name in _SEPARATORS.items():
        if separator in row.cells[-1] and separator != " ":
            check_spreadsheet(path, row.line, "image id", ",".join(row.cells).split(separator)[0].strip())
            raise InputError(f"{path} line {row.line}: its cells are separated by {name}; save it with commas")
    for cell in row.cells:
        check_spreadsheet(path, row.line, "image id", cell)


def plain(name: str) -> str:
    """Return a column name in lower case, letters and digits only: 'Image Id' and 'image_id' become 'imageid'."""
    return "".join(filter(str.isalnum, name)).lower()


def shown(cells: Sequence[str]) -> str:
    """Return the first six cells for an error message, quoted and shortened."""
    texts = [repr(cell if len(cell) <= 40 else f"{cell[:37]}...") for cell in cells[:6]]
    return ", ".join([*texts, *(["..."] if len(cells) > 6 else [])])


def without_suffix(image_id: str) -> str:
    """Return an image id without the suffix of an image file."""
    for suffix in IMAGE_FILE_SUFFIXES:
        if image_id.lower().endswith(suffix) and len(image_id) > len(suffix):
            return image_id[: -len(suffix)]
    return image_id


def check_id(path: Path, line: int, image_id: str) -> None:
    """Raise InputError for an image id that is missing, was changed by a spreadsheet, or contains a line break."""
    if not image_id:
        raise InputError(f"{path} line {line}: the image id is missing")
    check_spreadsheet(path, line, "image id", image_id)
    if image_id.startswith(("'", '="')):  # a way to stop spreadsheets from changing ids
        raise InputError(f"{path} line {line}: the image id {shown([image_id])} has a spreadsheet's signs; remove them")
    if len((image_id + ".").splitlines()) > 1 or any(ord(character) < 32 for character in image_id):
        raise InputError(
            f"{path} line {line}: the image id {shown([image_id])} contains a line break or control character"
        )


def check_spreadsheet(path: Path, line: int, what: str, text: str) -> None:
    """Raise InputError for a text that a spreadsheet changed, such as 1.2276E+23 and #NAME?."""
    if _NUMBER_FORMAT.fullmatch(text) or _SPREADSHEET_ERROR.fullmatch(text):
        raise InputError(f"{path} line {line}: a spreadsheet changed the {what} to {text[:80]}; {_BEFORE}")


def explain_stray(image_ids: Iterable[str], film_ids: Collection[str]) -> tuple[str, str] | None:
    """Return the first image id that looks like the changed id of a film, and the change; None if there is none.

    No film has one of the `image_ids`.
    """
    spelt = {film.casefold(): film for film in sorted(film_ids, reverse=True)}
    numbers = [film for film in film_ids if film.isdecimal()]
    without_zeros = {film.lstrip("0") for film in numbers if film.startswith("0")}
    cut = {(len(film), film[:14]) for film in numbers if len(film) > 15}
    for image_id in image_ids:
        other = spelt.get(image_id.casefold()) or spelt.get(without_suffix(image_id).casefold())
        if other is not None:
            return image_id, f"the film is {other}; use the same case"
        if image_id in without_zeros:
            return image_id, f"the film's id has leading zeros, which spreadsheets drop; {_BEFORE}"
        if re.fullmatch(r"[0-9]{15}0+", image_id) and (len(image_id), image_id[:14]) in cut:
            return image_id, f"it has zeros after 15 digits, as spreadsheets round long numbers; {_BEFORE}"
        if image_id.endswith(".0") and image_id[:-2] in film_ids:
            return image_id, f"the film is {image_id[:-2]}, and spreadsheets add '.0' to numbers; {_BEFORE}"
        if re.fullmatch(r"[0-9]{1,2}-[A-Za-z]{3}(-[0-9]{2,4})?", image_id):
            return image_id, f"it is a date, and spreadsheets turn ids into dates; {_BEFORE}"
    return None
