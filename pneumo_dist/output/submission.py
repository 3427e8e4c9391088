"""The submission file of the competition: one row per test film, `-1` for an empty mask."""

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from pneumo_dist.maps.store import Predictions, check_gate
from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.scoring.threads import in_order
from shards.dataset import rle
from shards.errors import InputError
from shards.files import atomic_write
from shards.spreadsheet import csv_text, is_formula
from shards.stored import read_limited

HEADER = ("ImageId", "EncodedPixels")
MOST_SAMPLE = 64 << 20
# A larger difference between test and out-of-fold films suggests that the test films differ in kind.
CALLED_DRIFT = 0.03


def submission_rows(
    predictions: Predictions, rule: Rule, on_film: Callable[[], None] = lambda: None, threads: int | None = None
) -> dict[str, str]:
    """Return the run-length mask of each image id on its film's label grid, in table order.

    The result does not depend on `threads`, by default one for each CPU.

    Raises InputError for an image id of two films, and if the rule has a gate and the predictions have no class
    probabilities.
    """

    def encoded(index: int) -> str:
        mask = _mask(predictions, index, rule)
        text = rle.encode(mask)
        # A wrong string would only show on the leaderboard, so each one is decoded again before anything is written.
        assert (rle.decode(text, *mask.shape) == mask).all()
        return text

    check_gate(predictions, rule)
    ids = [str(row["image_id"]) for row in predictions.rows]
    rows: dict[str, str] = {}
    for image_id, text in zip(ids, in_order(encoded, range(len(predictions)), threads), strict=True):
        if image_id in rows:
            raise InputError(f"{predictions.folder}: two films have the image id {image_id}; predict again")
        rows[image_id] = text
        on_film()
    return rows


def called_share(predictions: Predictions, rule: Rule, on_film: Callable[[], None] = lambda: None) -> float:
    """Return the share of films with a non-empty mask. Raises InputError as `submission_rows` does."""

    def is_called(index: int) -> bool:
        return bool(_mask(predictions, index, rule).any())

    check_gate(predictions, rule)
    called = 0
    for each in in_order(is_called, range(len(predictions))):
        called += each
        on_film()
    return called / len(predictions)


def _mask(predictions: Predictions, index: int, rule: Rule) -> Map:
    film = label_map(predictions.p8(index), predictions.grid(index))
    return apply_rule(film, rule, predictions.rows[index]["class_probability"])


def drift_warning(rows: Mapping[str, str], expected: float | None) -> str | None:
    """Warn if the share of films with a mask differs from the `expected` share by more than CALLED_DRIFT.

    Returns the line to print. Returns None if the shares agree, or if the expected share is unknown.
    """
    if expected is None:
        return None
    called = sum(text != rle.EMPTY for text in rows.values()) / len(rows)
    if abs(called - expected) <= CALLED_DRIFT:
        return None
    return (
        f"{called:.1%} of the test films are called positive, {expected:.1%} of the out-of-fold films: the test films "
        "may differ in kind, or the thresholds belong to other predictions"
    )


def sample_order(path: Path, keep_repeats: bool = False) -> list[str]:
    """Return the ids of a sample submission in their order, without repeats unless `keep_repeats` is set.

    Raises InputError if the file is unreadable or has no ids.
    """
    try:
        content = read_limited(path, MOST_SAMPLE, "give the sample submission of the competition")
        rows = csv.reader(io.StringIO(content.decode("utf-8-sig"), newline=""))
        ids = [cells[0].strip() for cells in rows if cells and cells[0].strip()]
    except OSError as error:
        raise InputError(f"{path}: unreadable sample submission ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error):
        raise InputError(f"{path}: not a CSV file in UTF-8") from None
    if ids and ids[0].replace("_", "").lower() in {"imageid", "id", "fname", "image"}:
        ids = ids[1:]
    if not ids:
        raise InputError(f"{path}: a sample submission without ids")
    return ids if keep_repeats else list(dict.fromkeys(ids))


def write_submission(path: Path, rows: Mapping[str, str], order: Sequence[str] | None) -> None:
    """Write the submission, with the ids unchanged.

    Raises InputError and writes nothing if an id of `order` has no prediction, or if a spreadsheet would run an id.
    """
    ids = list(order) if order is not None else list(rows)
    missing = [image_id for image_id in ids if image_id not in rows]
    if missing:
        raise InputError(
            f"{path} is not written: {len(missing)} ids of the sample submission have no prediction, first "
            f"{missing[0]}; build the shards with all test films and predict again"
        )
    formula = next((image_id for image_id in ids if is_formula(image_id)), None)
    if formula is not None:
        raise InputError(
            f"{path} is not written: a spreadsheet would run the image id {formula!r} as a formula; rename the film, "
            "build the shards and predict again"
        )
    atomic_write(path, csv_text([HEADER, *((image_id, rows[image_id]) for image_id in ids)]))
