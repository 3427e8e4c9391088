"""The gain of an option is that of its definition, and every side runs on a few films."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import phantom_shards

from benchmarks import quality, quality_jobs
from benchmarks.common import FilmSet
from benchmarks.quality import SEEDS, distillation_table, gain_of, pending, table, taught_splits
from benchmarks.quality_jobs import Job
from benchmarks.quality_rows import (
    BOTH,
    CLASSIFIER,
    DEMO,
    DISTILLATION,
    ENSEMBLE,
    FEW,
    FPN,
    PSEUDO,
    RESNET34,
    ROWS,
    SECOND_OPINION,
    SELECTED,
    STUDENT,
    UNET,
    UNET_BEST,
    UNET_FLIPPED,
    Row,
    Side,
)

ROW = next(row for row in ROWS if row.name == "stacking")


def store(side: Side, seed: int, work: Path, seconds: float, **dice: list[float]) -> None:
    path = Job(side, seed, work).result
    path.parent.mkdir(exist_ok=True)
    films: dict[str, Any] = {
        "keys": list("abcd"),
        "groups": ["p", "p", "q", "r"],
        "positive": [True, True, False, True],
    }
    path.write_text(json.dumps({"seconds": seconds, **films, "dice": dice}))


def test_gain_is_the_mean_over_films_of_the_mean_over_seeds(tmp_path: Path) -> None:
    row = Row("x", "an option", DEMO, FEW, "triplet", "stacking")
    for seed in SEEDS:
        store(DEMO, seed, tmp_path, 10.0, triplet=[0.1 * seed, 0.2, 1.0, 0.0])
        assert gain_of(row, tmp_path) is None
        store(FEW, seed, tmp_path, 15.0, triplet=[0, 0, 0, 0], stacking=[0.3, 0.2, 1.0, 0.5])
    gain = gain_of(row, tmp_path)
    assert gain is not None
    assert gain.films.mean == pytest.approx(np.mean([0.2, 0, 0, 0.5]))
    assert gain.positives.mean == pytest.approx(np.mean([0.2, 0, 0.5]))
    assert gain.films.low <= gain.films.mean <= gain.films.high
    assert gain.without[0] == pytest.approx(np.mean([0.1, 0.2, 1.0, 0.0]))
    assert gain.without[1] == pytest.approx(0.1)
    assert gain.time == pytest.approx(1.5)
    # The time of pseudo-labels has that of their teacher.
    for seed in SEEDS:
        store(PSEUDO, seed, tmp_path, 30.0, triplet=[0.0] * 4)
    gain = gain_of(Row("y", "another", FEW, PSEUDO), tmp_path)
    assert gain is not None and gain.time == pytest.approx((15 + 30) / 15)


def test_rule_of_the_same_run_takes_no_other_training(tmp_path: Path) -> None:
    for seed in SEEDS:
        rules = {row.rule: [0.5] * 4 for row in ROWS} | {row.option_rule: [0.5] * 4 for row in ROWS}
        store(DEMO, seed, tmp_path, 10.0, **{**rules, "stacking": [0.75] * 4})
    text = table(tmp_path)
    line = next(line for line in text.splitlines() if ROW.text in line)
    assert "| 0.500 | +0.250 (+0.250 to +0.250) | 0.500 | +0.250" in line and "| the same | off: gains" in line
    others = [row for row in ROWS if row.option is not DEMO]
    assert text.count("not measured") == 5 * len(others)


def test_jobs_come_after_those_that_they_need(tmp_path: Path) -> None:
    waves = pending(ROWS, tmp_path, (0,))
    place = {job.side.name: number for number, wave in enumerate(waves) for job in wave}
    assert place[BOTH.name] > place[FEW.name] and place[SECOND_OPINION.name] > place["classifier"]
    assert place[STUDENT.name] > place[ENSEMBLE.name] > place[UNET.name]
    others = {
        each.name for each in (DEMO, FEW, CLASSIFIER, UNET, RESNET34, FPN, ENSEMBLE, STUDENT, UNET_BEST, UNET_FLIPPED)
    }
    assert len(place) == sum(map(len, waves)) == len({row.option.name for row in ROWS} | others)
    store(DEMO, 0, tmp_path, 1.0)
    assert "demo" not in {job.side.name for wave in pending(ROWS, tmp_path, (0,)) for job in wave}


@pytest.mark.parametrize(
    ("dice", "verdict"),
    [
        ([0.6, 0.7, 0.9, 0.6], "off: gains, but"),
        ([0.3, 0.3, 0.4, 0.4], "off: lowers"),
        ([0.6, 0.6, 0.1, 0.6], "off: gains on positive films alone"),
        ([0.4, 0.6, 0.5, 0.4], "off: no clear gain"),
    ],
)
def test_a_row_says_what_its_gain_is_worth(tmp_path: Path, dice: list[float], verdict: str) -> None:
    for seed in SEEDS:
        rules = {row.rule: [0.5] * 4 for row in ROWS} | {row.option_rule: [0.5] * 4 for row in ROWS}
        store(DEMO, seed, tmp_path, 10.0, **{**rules, "stacking": dice})
    (line,) = (line for line in table(tmp_path).splitlines() if ROW.text in line)
    assert line.split("|")[-2].strip().startswith(verdict)


def test_teachers_write_the_maps_that_others_learn_from() -> None:
    assert taught_splits(FEW) == ("unlabelled",) and taught_splits(ENSEMBLE) == ("train",)
    assert taught_splits(DEMO) == taught_splits(BOTH) == ()


def test_distillation_compares_pairs_on_positive_films(tmp_path: Path) -> None:
    assert distillation_table(tmp_path).count("not measured") == 5 * len(DISTILLATION)
    for side, dice, seconds in zip(
        DISTILLATION.values(), (0.8, 0.6, 0.6, 0.4, 0.4), (0.5, 0.1, 0.2, 0.05, 0.1), strict=True
    ):
        for seed in SEEDS:
            store(side, seed, tmp_path, 1.0, triplet=[dice, dice, 0.0, dice])
            path = Job(side, seed, tmp_path).result
            path.write_text(json.dumps({**json.loads(path.read_text()), "film_seconds": seconds * (1 + seed)}))
    teacher, student, _, alone, _ = distillation_table(tmp_path).splitlines()[2:]
    assert "| 0.800 (0.800 to 0.800) | +0.000 (+0.000 to +0.000) | 100.0% | 1.0000 (0.5000 to 1.5000) |" in teacher
    assert "| 0.600 (0.600 to 0.600) | -0.200 (-0.200 to -0.200) | 75.0% |" in student and "| 20.0% |" in student
    assert "| 50.0% |" in alone and "| 10.0% |" in alone


def test_names_of_rows_and_sides_are_distinct() -> None:
    assert len({row.name for row in ROWS}) == len({row.text for row in ROWS}) == len(ROWS)
    sides = {side for row in ROWS for side in (row.without, row.option)}
    assert len({side.name for side in sides}) == len(sides)


@pytest.mark.rare
@pytest.mark.slow
def test_sides_of_every_kind_run_and_are_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = phantom_shards(tmp_path / "demo", films=24, size=64, holdout=0.25).folder
    for module in (quality, quality_jobs):
        monkeypatch.setattr(module, "DATASETS", {"demo": lambda _: shards})
    short = ("epochs=1", "image_size=64", "global_batch=4", "micro_batch=4")
    monkeypatch.setattr(quality_jobs, "HOLDOUT", FilmSet(films=22, size=64))
    rows = [row for row in ROWS if row.name in ("stacking", "classifier", "joint-triplet", "select", "distillation")]
    for wave in pending(rows, tmp_path, (0,)):
        for job in wave:
            replace(job, extra=short).run(taught_splits(job.side))
    for row in rows:
        gain = gain_of(row, tmp_path, (0,))
        assert gain is not None and np.isfinite(gain.films.mean)
    assert (tmp_path / f"configs/{SELECTED.name}-0.yaml").exists()
    monkeypatch.setattr(quality, "SEEDS", (0,))
    lines = distillation_table(tmp_path).splitlines()
    assert len(lines) == 2 + len(DISTILLATION) and "not measured" not in "".join(lines)
    assert lines[2].endswith("| 100.0% |") and float(lines[3].split("|")[-3].split()[0]) > 0
    quality.main(["--work", str(tmp_path), "--only", "select"])
