"""Class probabilities from outside: a CSV file that takes the place of what the networks' heads give."""

import csv
import io
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

from pneumo_dist.maps.store import Predictions
from shards.errors import InputError
from shards.stored import read_limited

COLUMNS = ("image_id", "probability")
_OPTION = "--class-probabilities"
_MOST = 64 << 20
_FIX = f"give a CSV file with the columns {' and '.join(COLUMNS)}"


def with_outside(path: Path, predictions: Sequence[Predictions]) -> list[Predictions]:
    """Return predictions with the class probabilities of a CSV file instead of their own.

    Raises InputError for a file that is not of this form, an id that is there twice or belongs to no film, a film
    without a row, and a probability that is not a number from 0 to 1.
    """
    values = read_probabilities(path)
    ids = [str(row["image_id"]) for each in predictions for row in each.rows]
    twice = [name for name, count in Counter(ids).items() if count > 1]
    if twice:
        raise InputError(f"{predictions[0].folder}: two films have the image id {twice[0]}; predict again")
    missing, known = [name for name in ids if name not in values], set(ids)
    if missing:
        raise InputError(
            f"{_OPTION} {path}: has no row for {missing[0]} ({len(missing)} films missing in all); add them"
        )
    unknown = [name for name in values if name not in known]
    if unknown:
        raise InputError(
            f"{_OPTION} {path}: {unknown[0]} is no film of {predictions[0].folder} ({len(unknown)} unknown ids in "
            "all); remove their rows"
        )
    return [each.with_class_probabilities([values[str(row["image_id"])] for row in each.rows]) for each in predictions]


def read_probabilities(path: Path) -> Mapping[str, float]:
    """Return the probability of each image id in a CSV file. Raises InputError as `with_outside` does."""
    try:
        content = read_limited(path, _MOST, _FIX)
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig"), newline=""), strict=True)
        columns = tuple(name.strip() for name in rows.fieldnames or ())
        if len(set(columns)) != len(columns) or not set(COLUMNS) <= set(columns):
            raise InputError(f"{_OPTION} {path}: has other columns; {_FIX}")
        rows.fieldnames = columns
        values: dict[str, float] = {}
        for row in rows:
            name, text = (row[column] for column in COLUMNS)
            if name is None or text is None or None in row:
                raise InputError(f"{_OPTION} {path}: line {rows.line_num} does not have {len(columns)} cells; {_FIX}")
            if name in values:
                raise InputError(f"{_OPTION} {path}: line {rows.line_num}: {name} is there twice; remove one row")
            values[name] = _probability(text, f"{_OPTION} {path}: line {rows.line_num}: {name}")
    except OSError as error:
        raise InputError(f"{_OPTION} {path}: unreadable ({error.strerror}); {_FIX}") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{_OPTION} {path}: not a CSV file in UTF-8; {_FIX}") from None
    return values


def _probability(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not 0 <= value <= 1:
        raise InputError(f"{where} has the probability {text.strip()[:30]!r}; give a number from 0 to 1")
    return value
