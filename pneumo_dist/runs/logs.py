"""metrics.jsonl and summary.csv of a stage: reading them, and truncating them to a checkpoint."""

import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shards.files import atomic_write
from shards.spreadsheet import csv_text
from shards.stored import Strict, parse_json, read_limited

METRICS, SUMMARY = "metrics.jsonl", "summary.csv"
# An epoch takes half a kilobyte.
MOST_LOG = 64 << 20
_FIX = "restore it from a copy or remove it"


class LineModel(Strict):
    """A line of metrics.jsonl: a validated epoch, or a skipped step without a score."""

    score: Annotated[float, Field(ge=0, le=1)] | None = None
    images_per_s: Annotated[float, Field(ge=0)] | None = None


class EpochLineModel(Strict):
    """Figures of a validated epoch that a report uses."""

    epoch: Annotated[int, Field(ge=0, le=2**53)]
    step: Annotated[int, Field(ge=0, le=2**53)]
    score: Annotated[float, Field(ge=0, le=1)]
    loss: Annotated[float, Field(allow_inf_nan=True)]
    validation_loss: Annotated[float, Field(allow_inf_nan=True)]
    images_per_s: Annotated[float, Field(ge=0)]
    peak_memory_mb: Annotated[float, Field(ge=0)]


def logged_bytes(path: Path, step: int, epochs: int) -> int:
    """Return the length in bytes of metrics.jsonl up to `step` optimizer steps and `epochs` validated epochs.

    Checkpoints do not store this length, because lines contain speeds and differ between equal runs.
    """
    length = 0
    for line in _lines(path):
        try:
            record = json.loads(line)
            is_before = record["epoch"] < epochs if "score" in record else record["step"] <= step
        except (ValueError, KeyError, TypeError, RecursionError):  # a line that was cut off by a crash
            is_before = False
        if not is_before or not line.endswith(b"\n"):
            break
        length += len(line)
    return length


def read_epochs(path: Path, epochs: int | None = None, model: type[Strict] = LineModel) -> list[dict[str, Any]]:
    """Return the validated epochs in metrics.jsonl, the first `epochs` of them if that is set.

    Raises InputError for a line that training does not write, and for an epoch that does not fit `model`.
    """
    records: list[dict[str, Any]] = []
    for line in _lines(path):
        if epochs is not None and len(records) == epochs:
            break  # a crash may have cut off the next line
        if "score" in parse_json(line, LineModel, path, _FIX):
            records.append(parse_json(line, model, path, _FIX))
    return records


def _lines(path: Path) -> list[bytes]:
    return read_limited(path, MOST_LOG, _FIX).splitlines(keepends=True)


def write_summary(folder: Path, count: int) -> None:
    """Write summary.csv with one row for each of the first `count` validated epochs in metrics.jsonl."""
    epochs = read_epochs(folder / METRICS, count) if (folder / METRICS).exists() else []
    if not epochs:
        return
    # The run may have started with an older version that logged fewer columns.
    names = dict.fromkeys(name for record in epochs for name in record)
    rows = [[record.get(name, "") for name in names] for record in epochs]
    atomic_write(folder / SUMMARY, csv_text([names, *rows]))
