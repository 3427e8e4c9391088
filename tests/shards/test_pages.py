"""The commands of pneumo-shards run as README.md and docs/preprocessing.md write them, on small films."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tools.commands import ROOT, commands_of

from shards import console
from shards.__main__ import app
from shards.dataset.table import Shards


def lines_of(page: str, **changes: str) -> list[list[str]]:
    """Return the page's commands of pneumo-shards, with some words changed."""
    found = [each.words() for each in commands_of(ROOT / page) if not each.is_inline]
    return [[changes.get(word, word) for word in words[1:]] for words in found if words[0] == "pneumo-shards"]


def run(words: list[str]) -> None:
    more = ["--workers", "1"] if words[0] == "build" else []
    assert console.run(app, "pneumo-shards", [*words, *more]) == console.EXIT_DONE, words


def test_the_commands_of_the_readme_run(film_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for number, path in enumerate(sorted(film_set.dicom.rglob("*.dcm"))):
        folder = Path("siim", "dicom-images-test" if number % 3 == 0 else "dicom-images-train")
        folder.mkdir(parents=True, exist_ok=True)
        shutil.copy(path, folder)
    shutil.copytree(film_set.test_dicom, "siim/stage_2_images")
    shutil.copy(film_set.labels, "siim/stage_2_train.csv")
    build, verify = lines_of("README.md", **{"1024": "32"})
    for words in (build, verify):
        run(words)
    shards = Shards(Path("siim/shards"))
    assert set(shards.column("fold")) == {-1, 0, 1, 2, 3, 4}
    counts = {split: len(shards.indices(split)) for split in ("train", "holdout", "test")}
    assert counts["test"] == 4 and 0 < counts["holdout"] < 6 and sum(counts.values()) == 29 + 4


def test_the_commands_of_preprocessing_run(film_set: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(film_set.dicom, "DIR")
    shutil.copy(film_set.labels, "CSV")
    build, verify, show, split, png, nnunet, task, join = lines_of("docs/preprocessing.md")
    for words in (build, verify, show, split):
        run([*words, *(("--image-size", "32") if words is build else ())])
    shards = Shards(Path("OUT"))
    assert set(shards.column("fold")) == set(range(8)) and Path("sheet.png").stat().st_size > 1000
    for words, made in ((png, "masks"), (nnunet, "labelsTr")):
        shutil.move("DIR", "films")
        run(words)
        assert len(list(Path("DIR").rglob(f"{made}/*.png"))) == 29
        shutil.rmtree("DIR")
        shutil.move("films", "DIR")
    whole = [str(each) for each in shards.column("image_id")]
    shutil.rmtree("OUT")
    assert task[:2] == ["build", "…"] and task[-1] == "1/8"
    given = ("--dicom", "DIR", "--rle", "CSV", "--image-size", "32", "--samples-per-shard", "4")
    for number in range(1, 9):
        run([task[0], *given, *task[2:-1], f"{number}/8"])
    run(join)
    assert sorted(str(each) for each in Shards(Path("OUT")).column("image_id")) == sorted(whole)
