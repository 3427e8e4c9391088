"""Runs in one table: figures against masks made one by one, and a line for every run that cannot be compared."""

import csv
import json
import re
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from builders import experiment_of
from report_runs import Page, log_epochs, naive_dices, store, tune_run

from pneumo_dist.cli.app import app
from pneumo_dist.maps.store import Predictions
from pneumo_dist.report.compare import ComparedRun, compare, run_folders
from pneumo_dist.report.compare_page import as_csv, as_html, lines
from pneumo_dist.runs.heartbeat import HEARTBEAT
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import best_triplet
from pneumo_dist.thresholds.file import read_thresholds
from pneumo_dist.thresholds.tune import prediction_histograms
from pneumo_dist.thresholds.worth import estimate
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import Shards

DATASET, OTHER = "a" * 64, "b" * 64


def change_manifest(predictions: Predictions, **values: Any) -> None:
    path = predictions.folder / "manifest.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **values}))


@pytest.fixture(scope="module")
def runs(films: Shards, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Runs: good and worse have everything, part has five films, bare has no thresholds, other has another dataset."""
    folder = tmp_path_factory.mktemp("runs")
    for name, noise, shift in (("good", 20, 0), ("worse", 60, 5)):
        tune_run(store(films, folder / name, noise=noise, shift=shift))
        store(films, folder / name, split="holdout", rows=range(7), noise=noise, shift=shift)
        log_epochs(folder / name, epochs=3)
        for fold in (0, 1):
            experiment = experiment_of({"name": "only", "global_batch": 28, "micro_batch": 1})
            (folder / name / f"fold{fold}/config.yaml").write_text(experiment.model_dump_json())
    store(films, folder / "part", rows=range(5), noise=30)
    change_manifest(store(films, folder / "other", noise=30), dataset=OTHER)
    change_manifest(Predictions(folder / "good/oof/predictions"), dataset=DATASET)
    (folder / "young/fold1").mkdir(parents=True)
    beat = {"state": "running", "time": time.time(), "stage": "only", "epoch": 2, "epochs": 9, "step": 30}
    (folder / "young/fold1" / HEARTBEAT).write_text(json.dumps(beat))
    return folder


@pytest.fixture(scope="module")
def rows(runs: Path) -> dict[str, ComparedRun]:
    folders = run_folders([runs / name for name in ("young", "good", "worse", "part", "other")])
    return {row.name: row for row in compare(folders)}


def naive_unseen(predictions: Predictions) -> dict[str, float]:
    """Return the Dice of each film under the best triplet of the other folds, from masks made one by one."""
    histograms = prediction_histograms(predictions, None, None)
    dices: dict[str, float] = {}
    for fold in (0, 1):
        triplet, _ = best_triplet(histograms[predictions.folds != fold])
        found = naive_dices(predictions, Rule(triplet))
        dices |= {row["key"]: found[row["key"]] for row in predictions.rows if row["fold"] == fold}
    return dices


def test_figures_are_those_of_the_masks(runs: Path, rows: dict[str, ComparedRun]) -> None:
    unseen = {}
    for name in ("good", "worse"):
        predictions, row = Predictions(runs / name / "oof/predictions"), rows[name]
        triplet = json.loads((runs / name / "oof/thresholds.json").read_text())["triplet"]
        rule = Rule(best_triplet(prediction_histograms(predictions, None, None))[0])
        assert triplet == vars(rule.triplet)
        dices, unseen[name] = naive_dices(predictions, rule), naive_unseen(predictions)
        positive = [each["key"] for each in predictions.rows if each["rle"] != "-1"]
        assert row.score == pytest.approx(np.mean([*dices.values()]))
        assert row.positive_dice == pytest.approx(np.mean([dices[key] for key in positive]))
        assert row.unseen is not None and row.unseen.mean == pytest.approx(np.mean([*unseen[name].values()]))
        held = naive_dices(Predictions(runs / name / "holdout/predictions"), rule)
        assert row.holdout is not None and row.holdout.mean == pytest.approx(np.mean([*held.values()]))
        assert (row.films, row.positives, row.notes) == (12, len(positive), ())
    assert rows["good"].differences.films is None, "it is the first that can be scored"
    found = rows["worse"].differences
    assert found.films is not None and found.positives is not None and found.holdout is not None
    predictions = Predictions(runs / "worse/oof/predictions")
    pairs = np.array([unseen["worse"][row["key"]] - unseen["good"][row["key"]] for row in predictions.rows])
    groups = predictions.groups
    assert found.films.difference.mean == pytest.approx(pairs.mean()) and pairs.mean() < -0.01
    expected = estimate(pairs, groups)
    assert (found.films.difference.low, found.films.difference.high) == pytest.approx((expected.low, expected.high))
    assert found.positives.films == rows["worse"].positives and found.holdout.films == 7


def test_stacked_gates_are_compared_too(runs: Path) -> None:
    rows = compare({name: runs / name for name in ("good", "worse", "part")}, rule="stacking")
    for row in rows[:2]:
        tuned = read_thresholds(runs / row.name / "oof/thresholds.json").rule("stacking")
        dices = naive_dices(Predictions(runs / row.name / "oof/predictions"), tuned.rule)
        held = naive_dices(Predictions(runs / row.name / "holdout/predictions"), tuned.rule)
        assert row.score == pytest.approx(np.mean([*dices.values()]), abs=1e-12) == tuned.dice
        assert row.unseen == tuned.unseen is not None and row.notes == ()
        assert row.holdout is not None and row.holdout.mean == pytest.approx(np.mean([*held.values()]), abs=1e-12)
    assert rows[1].differences.films is not None and rows[1].differences.holdout is not None
    assert rows[2].score is not None and "tuned for this comparison" in rows[2].notes[0]
    assert "under the tuned rule with a stacked gate" in as_html(rows, "stacking")


def test_hours_are_those_of_the_steps(rows: dict[str, ComparedRun]) -> None:
    # Each fold takes 30 steps of 28 films, at 7 and at 8 films/s.
    assert rows["good"].hours == pytest.approx((30 * 28 / 7 + 30 * 28 / 8) / 3600)
    assert rows["good"].images_per_s == 7.5
    assert rows["part"].hours is None and rows["part"].images_per_s is None


def test_best_epoch_is_the_mean_over_folds_in_the_last_stage_and_its_repetitions(
    rows: dict[str, ComparedRun], tmp_path: Path
) -> None:
    assert rows["good"].best_epoch == pytest.approx(0.6) and rows["part"].best_epoch is None
    log_epochs(tmp_path / "run", stage="early", epochs=4)
    log_epochs(tmp_path / "run", stage="last", epochs=2)
    log_epochs(tmp_path / "run", stage="last-2", folds=[1], epochs=3)
    stages = [{"name": "early"}, {"name": "last", "repeat": "until_no_gain"}]
    for fold in (0, 1):
        (tmp_path / f"run/fold{fold}/config.yaml").write_text(experiment_of(*stages).model_dump_json())
    (row,) = compare({"run": tmp_path / "run"})
    assert row.best_epoch == pytest.approx((0.3 + 0.6) / 2) and f"{row.best_epoch:.4f}" in lines([row])[1]


def test_runs_that_cannot_be_compared_have_a_line(rows: dict[str, ComparedRun]) -> None:
    assert rows["young"].score is None
    assert rows["young"].notes == (
        "unfinished: fold 1 running in epoch 3 of 9 of only",
        "unfinished: no out-of-fold predictions; run 'python -m pneumo_dist predict --split oof'",
    )
    assert rows["other"].score is not None and rows["other"].differences.films is None
    assert rows["other"].notes[-1] == "another dataset than good: not compared with it"
    assert rows["part"].notes == (
        "thresholds.json is missing: tuned for this comparison",
        "5 films, good has 12: 5 films compared",
    )


def test_other_labels_and_damage_are_lines_too(films: Shards, runs: Path, tmp_path: Path) -> None:
    store(films, tmp_path / "labels", rle="-1")
    store(films, tmp_path / "damaged")
    (tmp_path / "damaged/oof/predictions/predictions.parquet").write_bytes(b"?")
    folders = run_folders([runs / "worse", tmp_path])
    assert list(folders) == ["worse", "damaged", "labels"]
    _, damaged, labels = compare(folders)
    assert damaged.score is None and "predictions.parquet" in damaged.notes[0]
    assert labels.notes[-1] == "other films or labels than worse: not compared with it"


def test_table_says_the_same_in_every_form(
    runs: Path, rows: dict[str, ComparedRun], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    names = ("young", "good", "worse", "part", "other")
    page = (Path(__file__).parents[3] / "docs/report.md").read_text()
    (line,) = re.findall(r"^    python -m pneumo_dist (compare .*)$", page, re.MULTILINE)
    command, options = line.split(" --csv ", 1)
    assert command.startswith("compare RUNS/")
    files = {"runs.csv": str(tmp_path / "c.csv"), "runs.html": str(tmp_path / "c.html")}
    words = [files.get(word, word) for word in f"--csv {options}".split()]
    assert run(app, "pneumo_dist", ["compare", *(str(runs / name) for name in names), *words]) == EXIT_DONE
    printed = capsys.readouterr().out.splitlines()
    every = list(rows.values())
    assert printed[: len(lines(every))] == lines(every)
    assert [line.split()[0] for line in printed[1:6]] == list(names)
    text = (tmp_path / "c.csv").read_text()
    assert text == as_csv(every)
    table = {row["run"]: row for row in csv.DictReader(text.splitlines())}
    worse = rows["worse"]
    assert worse.differences.films is not None
    assert float(table["worse"]["score"]) == worse.score
    assert float(table["worse"]["difference_low"]) == worse.differences.films.difference.low
    assert table["good"]["difference"] == "" and "unfinished" in table["young"]["notes"]
    written = Page((tmp_path / "c.html").read_text())
    assert not written.wrong
    cells = written.row("worse")
    assert cells[:2] == ["12", f"{worse.score:.4f}"]
    assert cells[8].startswith(f"{worse.differences.films.difference.mean:+.4f} (")
    assert cells[8] in printed[8] and printed[8].startswith("worse")


def test_names_are_escaped(tmp_path: Path) -> None:
    row = ComparedRun("=1+<script>", notes=("<b>",))
    assert "<script>" not in as_html([row]) and "&lt;b&gt;" in as_html([row])
    assert "'=1+" in as_csv([row])


def test_paths_without_runs_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for path, reason in ((tmp_path, "holds no run"), (tmp_path / "none", "no such folder")):
        assert run(app, "pneumo_dist", ["compare", str(path)]) == EXIT_USAGE
        assert reason in capsys.readouterr().err
