"""Comparison of two runs of one fold, bit by bit."""

import csv
import json
from pathlib import Path
from typing import Any

import torch

from pneumo_dist.train.epoch_log import MEASURED

# The code that wrote a checkpoint is recorded for information only.
NOT_COMPARED = {"version", "source"}


def run_differences(one: Path, other: Path) -> list[str]:
    """Return the differences between two folders of one fold, with tolerance 0.

    It compares the whole newest and best checkpoint of each stage, the summary, and the epochs and steps in
    metrics.jsonl.
    """
    names = [sorted(path.parent.name for path in fold.glob("*/checkpoints")) for fold in (one, other)]
    if names[0] != names[1]:
        return [f"stages are {names[1]}, not {names[0]}"]
    return [f"{what} of {name} differs" for name in names[0] for what in _differences(one / name, other / name)]


def same_bits(one: Any, other: Any) -> bool:
    """Return whether two nested states are equal with tolerance 0; nan equals nan."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if isinstance(one, dict):
        return list(one) == list(other) and all(same_bits(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same_bits, one, other))
    return repr(one) == repr(other)


def _differences(one: Path, other: Path) -> list[str]:
    found = []
    for link in ("last", "best"):
        states = [torch.load(stage / "checkpoints" / link, weights_only=True) for stage in (one, other)]
        parts = sorted({*states[0], *states[1]} - NOT_COMPARED)
        found += [f"{part} in {link}" for part in parts if not same_bits(*(state.get(part) for state in states))]
    if _summary(one) != _summary(other):
        found.append("summary.csv")
    if _told(one) != _told(other):
        found.append("metrics.jsonl")
    return found


def _summary(stage: Path) -> list[dict[str, str]]:
    """Return the rows of a summary without the columns that depend on the machine's speed."""
    with (stage / "summary.csv").open(newline="") as stream:
        return [{name: row[name] for name in row if name not in MEASURED} for row in csv.DictReader(stream)]


def _told(stage: Path) -> list[tuple[int, int]]:
    lines = map(json.loads, (stage / "metrics.jsonl").read_text().splitlines())
    return [(line["epoch"], line["step"]) for line in lines]
