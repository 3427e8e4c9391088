"""CSV files that a spreadsheet shows as text and does not run."""

import csv
import io
import re
from collections.abc import Iterable

# A cell that begins like this is a formula. With semicolons as separators, a cell also begins after each of them.
# A minus before digits only is a number.
_FORMULA = re.compile(r"(^|[;\t\r\n])(?=\s*(?:[=+@＝＋＠]|[-－](?![0-9.]+(?:;|$))))")


def is_formula(text: str) -> bool:
    """Return whether a spreadsheet would run a cell with this text."""
    return _FORMULA.search(text) is not None


def inert(text: str) -> str:
    """Return a text with an apostrophe where a spreadsheet would begin a formula."""
    return _FORMULA.sub(r"\1'", text)


def csv_text(rows: Iterable[Iterable[object]]) -> str:
    """Return rows as CSV. Texts that a spreadsheet would run get an apostrophe where the formula begins."""
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(map(_cell, row) for row in rows)
    return text.getvalue()


def _cell(value: object) -> object:
    # The writer does not quote a lone carriage return, at which readers end the row.
    return inert(value.replace("\r", " ")) if isinstance(value, str) else value
