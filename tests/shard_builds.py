"""Builds from the command line, for tests of their options."""

import csv
import shutil
from pathlib import Path
from typing import Any


def build_line(films: Path, out: Path, *more: object) -> list[object]:
    """Return the command line of a small build."""
    common = ("--image-size", 64, "--folds", 2, "--samples-per-shard", 8, "--workers", 1)
    return ["build", "--dicom", films / "dicom-images", "--rle", films / "train-rle.csv", "--out", out, *common, *more]


def good(outcome: Any) -> str:
    """Return the output of a command that must succeed."""
    assert outcome.code == 0, outcome.err
    return str(outcome.out)


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def part_of(films: Path, to: Path, keep: slice) -> Path:
    """Copy some of the films, with all of their labels."""
    rows = list(csv.reader((films / "train-rle.csv").open()))
    chosen = sorted({row[0] for row in rows[1:]})[keep]
    for path in films.rglob("*.dcm"):
        if path.stem in chosen:
            (to / "dicom-images").mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to / "dicom-images")
    with (to / "train-rle.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([rows[0], *(row for row in rows[1:] if row[0] in chosen)])
    return to


def write_salt(folder: Path) -> Path:
    path = folder / "salt"
    path.write_text("a salt of enough characters\n")
    path.chmod(0o600)
    return path
