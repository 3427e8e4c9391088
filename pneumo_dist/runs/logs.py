"""metrics.jsonl and summary.csv of a stage: cut back to a checkpoint, read, and written as a table."""

import csv
import io
import json
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field

from shards.files import atomic_write
from shards.stored import Strict, parse_json

METRICS, SUMMARY = "metrics.jsonl", "summary.csv"


class LineModel(Strict):
    """A line of metrics.jsonl: a validated epoch, or a step that was skipped, which has no score."""

    score: Annotated[float, Field(ge=0, le=1)] | None = None
    images_per_s: Annotated[float, Field(ge=0)] | None = None


class EpochLineModel(Strict):
    """What a report takes of a validated epoch."""

    epoch: Annotated[int, Field(ge=0, le=2**53)]
    step: Annotated[int, Field(ge=0, le=2**53)]
    score: Annotated[float, Field(ge=0, le=1)]
    loss: Annotated[float, Field(allow_inf_nan=True)]
    validation_loss: Annotated[float, Field(allow_inf_nan=True)]
    images_per_s: Annotated[float, Field(ge=0)]
    peak_memory_mb: Annotated[float, Field(ge=0)]


def logged_bytes(path: Path, step: int, epochs: int) -> int:
    """Return the length of the lines of metrics.jsonl up to `step` optimizer steps and `epochs` validated epochs.

    A checkpoint that held this length would differ between two equal runs, whose lines hold speeds.
    """
    length = 0
    for line in path.read_bytes().splitlines(keepends=True):
        try:
            record = json.loads(line)
            is_before = record["epoch"] < epochs if "score" in record else record["step"] <= step
        except (ValueError, KeyError, TypeError):  # a line that was cut off by a crash
            is_before = False
        if not is_before or not line.endswith(b"\n"):
            break
        length += len(line)
    return length


def read_epochs(path: Path, epochs: int | None = None, model: type[Strict] = LineModel) -> list[dict[str, Any]]:
    """Return the validated epochs that metrics.jsonl tells of, the first `epochs` of them where given.

    Raises InputError for a line that is none of training, and for an epoch that is none of `model`.
    """
    mend = "restore it from a copy or remove it"
    found: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines():
        if epochs is not None and len(found) == epochs:
            break  # what follows may be a line that was cut off by a crash
        if "score" in parse_json(line, LineModel, path, mend):
            found.append(parse_json(line, model, path, mend))
    return found


def write_summary(folder: Path, count: int) -> None:
    """Write summary.csv, one row for each of the first `count` validated epochs of metrics.jsonl."""
    epochs = read_epochs(folder / METRICS, count) if (folder / METRICS).exists() else []
    if not epochs:
        return
    text = io.StringIO()
    # An older version, which a run may have begun with, knew fewer columns.
    names = dict.fromkeys(name for record in epochs for name in record)
    writer = csv.DictWriter(text, fieldnames=list(names), lineterminator="\n")
    writer.writeheader()
    writer.writerows(epochs)
    atomic_write(folder / SUMMARY, text.getvalue())
