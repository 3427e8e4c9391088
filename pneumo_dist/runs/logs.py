"""metrics.jsonl and summary.csv of a stage: cut back to a checkpoint, read, and written as a table."""

import csv
import io
import json
from pathlib import Path
from typing import Any

from shards.files import atomic_write

METRICS, SUMMARY = "metrics.jsonl", "summary.csv"


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


def read_epochs(path: Path, epochs: int | None = None) -> list[dict[str, Any]]:
    """Return the validated epochs that metrics.jsonl tells of, the first `epochs` of them where given."""
    found: list[dict[str, Any]] = []
    for line in path.read_bytes().splitlines():
        if epochs is not None and len(found) == epochs:
            break  # what follows may be a line that was cut off by a crash
        record = json.loads(line)
        if "score" in record:
            found.append(record)
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
