"""The films of benchmarks.race: those of launch/demo.sh, as shards, and as pictures for tools that read no shards."""

import json
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np

from benchmarks import ROOT
from benchmarks.common import cpu_environment
from shards.dataset.show import stored_content
from shards.dataset.table import Shards

DATASET = "Dataset501_Pneumothorax"
FOLD = 0


@dataclass(frozen=True)
class Films:
    """Sizes of the films of launch/demo.sh: of its two sets, of a film, and of its stored copy."""

    training: int = 240
    test: int = 40
    size: int = 256
    stored: int = 128


DEMO = Films()


def shards_of(work: Path, films: Films = DEMO) -> Path:
    """Return the shards in `work`; build them as launch/demo.sh does if they are missing."""
    out = work / "shards"
    if (out / "manifest.json").exists():
        return out
    for name, count, seed in (("films", films.training, 1), ("test-films", films.test, 2)):
        shutil.rmtree(work / name, ignore_errors=True)
        options = ["--images", count, "--size", films.size, "--positive-rate", 0.5, "--seed", seed]
        _shards("synth", work / name, *options)
    options = ["--rle", work / "films/train-rle.csv", "--test-dicom", work / "test-films/dicom-images"]
    options += ["--image-size", films.stored, "--folds", 2]
    _shards("build", "--dicom", work / "films/dicom-images", *options, "--out", out)
    return out


def pictures_of(work: Path) -> Path:
    """Return the folder of nnU-Net's raw datasets in `work`; export it if it is missing.

    Images and labels of its training films are those of the shards, so that every side trains on the same pixels. An
    export has them on the label grid, which is finer.
    """
    out = work / "pictures"
    if out.exists():
        return out
    unfinished = work / "pictures-unfinished"
    shutil.rmtree(unfinished, ignore_errors=True)
    _shards("export", shards_of(work), "--nnunet", unfinished)
    shards = Shards(shards_of(work))
    folder = unfinished / DATASET
    for row in shards.indices("train").tolist():
        key = str(shards.column("key")[row])
        cv2.imwrite(str(folder / f"imagesTr/{key}_0000.png"), stored_content(shards, row))
        mask = cv2.imdecode(np.frombuffer(shards.read(row, "mask"), np.uint8), cv2.IMREAD_GRAYSCALE)
        assert mask is not None, key
        cv2.imwrite(str(folder / f"labelsTr/{key}.png"), (mask > 127).astype(np.uint8))
    unfinished.rename(out)
    return out


def fold_keys(pictures: Path) -> tuple[list[str], list[str]]:
    """Return the keys of the films that the race trains and validates on."""
    split = json.loads((pictures / DATASET / "splits_final.json").read_text())[FOLD]
    return split["train"], split["val"]


def _shards(command: str, *arguments: object) -> None:
    words: Sequence[str] = [sys.executable, "-m", "shards", command, *map(str, arguments)]
    subprocess.run(words, cwd=ROOT, env=cpu_environment(), check=True)
