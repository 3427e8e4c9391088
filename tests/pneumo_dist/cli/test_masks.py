"""Bad input to tune, submit and report gives one line with the file and the fix, and writes nothing."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from damage import flip_bit
from full_disk import FullDisk, moments
from report_runs import log_epochs, store, tune_run

from pneumo_dist.cli.app import app
from pneumo_dist.maps.store import MANIFEST, Predictions, write_table
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import Shards

SLOW = pytest.mark.slow


def config_of(folder: Path, more: str = "") -> Path:
    path = folder / "exp.yaml"
    path.write_text(f"name: exp\nmembers: [{{experiment: exp}}]\n{more}")
    return path


def files_of(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def command_line(command: str, films: Shards, folder: Path, *options: object) -> list[str]:
    """Return the command line of tune, submit or report for the run `exp` in a folder."""
    shards = ["--shards", films.folder] if command == "report" else []
    return [str(word) for word in (command, "--config", folder / "exp.yaml", "--runs", folder, *shards, *options)]


def refused(capsys: pytest.CaptureFixture[str], folder: Path, arguments: list[str]) -> str:
    """Run a command that must fail without changing a file, and return the line that it prints."""
    before = files_of(folder)
    assert run(app, "pneumo_dist", arguments) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert files_of(folder) == before
    return line


def cut(predictions: Predictions) -> None:
    row = predictions.rows[3]
    tar = predictions.folder / row["tar"]
    tar.write_bytes(tar.read_bytes()[: row["offset"] + 10])


def flip(predictions: Predictions) -> None:
    row = predictions.rows[3]
    flip_bit(predictions.folder / row["tar"], row["offset"] + row["size"] // 2)


def remove(predictions: Predictions) -> None:
    (predictions.folder / "pred-00000.tar").unlink()


def unfinish(predictions: Predictions) -> None:
    (predictions.folder / MANIFEST).unlink()


def empty(predictions: Predictions) -> None:
    write_table(predictions.folder, [], predictions.manifest)


DAMAGES: list[tuple[Callable[[Predictions], None], str]] = [
    (cut, "pred-00000.tar: the p8 of"),
    (flip, "pred-00000.tar: the p8 of"),
    (remove, "pred-00000.tar: missing; restore it from a copy or create it again"),
    (unfinish, "predictions: no finished predictions; run 'python -m pneumo_dist predict' first"),
    (empty, "predictions: holds no films; predict again"),
]


@pytest.mark.parametrize(("damage", "says"), DAMAGES)
@pytest.mark.parametrize("command", ["tune", "submit", "report"])
def test_damaged_predictions_are_named_and_nothing_is_written(
    films: Shards,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    command: str,
    damage: Callable[[Predictions], None],
    says: str,
) -> None:
    config_of(tmp_path, "thresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    damage(store(films, tmp_path / "exp", split="test" if command == "submit" else "oof"))
    line = refused(capsys, tmp_path, command_line(command, films, tmp_path))
    assert line.startswith("error: ") and says in line


@pytest.mark.parametrize("command", ["tune", "submit", "report"])
def test_config_keys_are_overridden(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    config_of(tmp_path, "thresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    line = refused(capsys, tmp_path, command_line(command, films, tmp_path, "--set", "name=other"))
    assert "/other/" in line
    line = refused(capsys, tmp_path, command_line(command, films, tmp_path, "--set", "nmae=other"))
    assert line.endswith("--set: nmae: unknown key; did you mean name?")


@pytest.mark.parametrize("command", ["tune", "submit", "report"])
@pytest.mark.parametrize(
    ("text", "says"),
    [
        (None, "exp.yaml: no such config"),
        ("- 3\n", "exp.yaml: a config must be a mapping"),
        ("name: [\n", "exp.yaml: not valid YAML"),
        ("name: exp\nmembers: 3\n", "exp.yaml: members: Input should be a valid tuple"),
        ("name: exp\n", "exp.yaml: 'stages' must be a list"),
        ("name: exp\nmembers: [{experiment: exp}]\nthresholds: {top: 7, area: 1, bottom: 0}\n", "thresholds.top"),
    ],
)
def test_invalid_config_is_named(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, text: str | None, says: str
) -> None:
    if text is not None:
        (tmp_path / "exp.yaml").write_text(text)
    assert says in refused(capsys, tmp_path, command_line(command, films, tmp_path))


@pytest.mark.parametrize(
    ("command", "options", "says"),
    [
        ("tune", ["--objective", "best"], "--objective best: give dice, dice@prevalence=P"),
        ("tune", ["--objective", "dice@prevalence=0"], "with P between 0 and 1"),
        ("tune", ["--objective", "sensitivity@specificity=nan"], "with S from 0 to 1"),
        ("tune", ["--component-threshold", "2"], "2.0 is not in the range"),
        ("tune", ["--component-threshold", "nan"], "--component-threshold nan: give a number from 0 to 1"),
        ("submit", ["--rule", "best"], "'best' is not one of 'triplet', 'components'"),
        ("submit", ["--rule", "gate"], "oof/thresholds.json: no thresholds; run"),
        ("submit", ["--rule", "gate", "--triplet", "0.5", "3", "0.5"], "give --rule or --triplet, not both"),
        ("submit", ["--triplet", "0.5", "-3", "0.5"], "AREA must not be negative"),
        ("submit", ["--smallest-part", "-1"], "-1 is not in the range"),
        ("submit", ["--predictions", "nowhere"], "nowhere: no finished predictions"),
        ("submit", ["--sample-submission", "nowhere.csv"], "nowhere.csv: unreadable sample submission"),
        ("tune", ["--class-probabilities", "nowhere.csv"], "--class-probabilities nowhere.csv: unreadable"),
        (
            "submit",
            ["--class-probabilities", "nowhere.csv"],
            "nowhere.csv: the rule for masks uses no class probability",
        ),
        ("report", ["--class-probabilities", "nowhere.csv"], "--class-probabilities nowhere.csv: unreadable"),
        ("report", ["--rule", "best"], "'best' is not one of"),
        ("report", ["--rule", "gate"], "has no rule gate, which needs a classification head; it has triplet"),
        ("report", ["--by", "weight"], "--by weight: the sample table"),
        ("report", ["--against", "nobody"], "nobody/oof/predictions: no finished predictions"),
    ],
)
def test_wrong_options_are_named(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, options: list[str], says: str
) -> None:
    config_of(tmp_path, "thresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    for split in ("oof", "test"):
        store(films, tmp_path / "exp", split=split)
    assert says in refused(capsys, tmp_path, command_line(command, films, tmp_path, *options))


def test_thresholds_of_other_predictions_make_no_submission(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_of(tmp_path)
    tune_run(store(films, tmp_path / "exp"))
    store(films, tmp_path / "exp", split="test")
    path = tmp_path / "exp/oof/thresholds.json"
    kept = json.loads(path.read_text())
    path.write_text(json.dumps({**kept, "predictions_sha256": "0" * 64}))
    line = refused(capsys, tmp_path, command_line("submit", films, tmp_path))
    assert "thresholds.json: was tuned on other predictions than" in line and "tune' again" in line
    assert run(app, "pneumo_dist", command_line("submit", films, tmp_path, "--triplet", 0.5, 9, 0.4)) == EXIT_DONE
    log_epochs(tmp_path / "exp")
    assert run(app, "pneumo_dist", command_line("report", films, tmp_path)) == EXIT_DONE
    lines = capsys.readouterr().err.splitlines()
    assert lines == ["warning: the rules were tuned again for this report, as thresholds.json is out of date"]


def test_unknown_ids_of_a_sample_submission_write_nothing(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_of(tmp_path, "thresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    store(films, tmp_path / "exp", split="test")
    (tmp_path / "sample.csv").write_text("ImageId,EncodedPixels\nnobody,-1\n")
    line = refused(
        capsys, tmp_path, command_line("submit", films, tmp_path, "--sample-submission", tmp_path / "sample.csv")
    )
    assert "submission.csv is not written: 1 ids of the sample submission have no prediction, first nobody" in line


@pytest.mark.parametrize("objective", ["dice", "sensitivity@specificity=0.9"])
@pytest.mark.parametrize("kind", ["negative", "one negative", "one positive"])
def test_few_or_negative_films_are_tuned_submitted_and_reported(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str], kind: str, objective: str
) -> None:
    config_of(tmp_path)
    rows = [films.column("has_mask").tolist().index(kind == "one positive")] if kind.startswith("one") else None
    changes: dict[str, Any] = {"rle": "-1"} if kind == "negative" else {}
    for split in ("oof", "test"):
        store(films, tmp_path / "exp", split=split, rows=rows, **changes)
    for command in (("tune", "--objective", objective), ("submit",), ("report",)):
        assert run(app, "pneumo_dist", command_line(command[0], films, tmp_path, *command[1:])) == EXIT_DONE
    assert not [line for line in capsys.readouterr().err.splitlines() if not line.startswith("warning: ")]
    lines = (tmp_path / "exp/test/submission.csv").read_text().splitlines()
    assert len(lines) == 1 + (len(rows) if rows else 12)
    assert (lines[1].endswith(",-1")) == (kind != "one positive")


def test_a_prevalence_needs_positive_films(films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    config_of(tmp_path)
    store(films, tmp_path / "exp", rle="-1")
    line = refused(capsys, tmp_path, command_line("tune", films, tmp_path, "--objective", "dice@prevalence=0.3"))
    assert "--objective dice@prevalence=0.3: needs films with and without a pneumothorax" in line


@pytest.mark.parametrize(
    "options", [[], ["--triplet", "0.5", "9", "0.4"], ["--rule", "triplet", "--smallest-part", "3"]]
)
def test_share_of_positive_films_is_also_compared_for_rules_set_by_hand(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str], options: list[str]
) -> None:
    config_of(tmp_path, "thresholds: {top: 0.5, area: 9, bottom: 0.4}\n")
    tune_run(store(films, tmp_path / "exp"))
    positive = [row for row, is_positive in enumerate(films.column("has_mask")) if is_positive]
    store(films, tmp_path / "exp", split="test", rows=positive)
    assert run(app, "pneumo_dist", command_line("submit", films, tmp_path, *options)) == EXIT_DONE
    (line,) = capsys.readouterr().err.splitlines()
    texts = [line.split(",")[1] for line in (tmp_path / "exp/test/submission.csv").read_text().splitlines()[1:]]
    share = sum(text != "-1" for text in texts) / len(texts)
    assert share > 0.6
    assert line.startswith(
        f"warning: {share:.1%} of the test films are called positive, 50.0% of the out-of-fold films"
    )
    flip(Predictions(tmp_path / "exp/oof/predictions"))
    assert run(app, "pneumo_dist", command_line("submit", films, tmp_path, *options)) == EXIT_DONE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("warning: not compared with the out-of-fold films: ") and "pred-00000.tar" in line


def write_probabilities(path: Path, *predictions: Predictions) -> None:
    """Write a file with probabilities that fit the labels."""
    rows = [row for each in predictions for row in each.rows]
    texts = (f"{row['image_id']},{0.1 if row['rle'] == '-1' else 0.8}\n" for row in rows)
    path.write_text("image_id,probability\n" + "".join(texts))


def test_class_probabilities_from_outside_are_tuned_submitted_and_reported(
    films: Shards, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config_of(tmp_path, "rule: stacking\n")
    stored = [
        store(films, tmp_path / "exp", split=split, wrong=25, with_classes=True, rows=rows)
        for split, rows in (("oof", range(9)), ("test", range(4, 12)), ("holdout", range(9, 12)))
    ]
    write_probabilities(tmp_path / "oof.csv", stored[0])
    write_probabilities(tmp_path / "test.csv", stored[1])
    assert run(app, "pneumo_dist", command_line("tune", films, tmp_path)) == EXIT_DONE
    own = json.loads((tmp_path / "exp/oof/thresholds.json").read_text())["rules"]
    line = refused(
        capsys, tmp_path, command_line("submit", films, tmp_path, "--class-probabilities", tmp_path / "test.csv")
    )
    assert "test/predictions: the rule was tuned with the networks' own class probabilities" in line

    words = command_line("tune", films, tmp_path, "--class-probabilities", tmp_path / "oof.csv")
    assert run(app, "pneumo_dist", words) == EXIT_DONE
    assert "stacked gate above" in capsys.readouterr().out
    rules = json.loads((tmp_path / "exp/oof/thresholds.json").read_text())["rules"]
    assert [rules[name]["rule"].get("outside", False) for name in rules] == [False, False, True, True]
    assert rules["stacking"]["rule"] != own["stacking"]["rule"] and rules["triplet"] == own["triplet"]
    assert rules["stacking"]["dice_tuned_on_other_folds"]["mean"] > own["triplet"]["dice"]
    for command in ("submit", "report"):
        line = refused(capsys, tmp_path, command_line(command, films, tmp_path))
        assert "the rule was tuned with class probabilities from outside; give those of these films" in line
    line = refused(capsys, tmp_path, command_line("average", films, tmp_path, "--bundle", tmp_path / "b"))
    assert "the rule was tuned with class probabilities from outside, which a bundle does not have" in line

    words = command_line("submit", films, tmp_path, "--class-probabilities", tmp_path / "test.csv")
    assert run(app, "pneumo_dist", words) == EXIT_DONE
    texts = [line.split(",")[1] for line in (tmp_path / "exp/test/submission.csv").read_text().splitlines()[1:]]
    assert [text != "-1" for text in texts] == [row["rle"] != "-1" for row in stored[1].rows]
    capsys.readouterr()
    words = command_line("report", films, tmp_path, "--class-probabilities", tmp_path / "oof.csv")
    assert "(3 films missing in all)" in refused(capsys, tmp_path, words)
    write_probabilities(tmp_path / "oof.csv", stored[0], stored[2])
    log_epochs(tmp_path / "exp")
    assert run(app, "pneumo_dist", words) == EXIT_DONE
    printed = capsys.readouterr().out
    assert printed.startswith(f"out-of-fold mean Dice   {rules['stacking']['dice']:.4f}  ")


@pytest.mark.parametrize("command", [pytest.param("tune", marks=SLOW), "submit", pytest.param("report", marks=SLOW)])
def test_a_full_disk_is_one_line_and_the_same_command_finishes(
    films: Shards, capsys: pytest.CaptureFixture[str], tmp_path: Path, command: str
) -> None:
    config_of(tmp_path)
    tune_run(store(films, tmp_path / "exp"))
    store(films, tmp_path / "exp", split="test")
    log_epochs(tmp_path / "exp")
    before, arguments = files_of(tmp_path), command_line(command, films, tmp_path)
    with pytest.MonkeyPatch.context() as patch:
        disk = FullDisk(patch)
        assert run(app, "pneumo_dist", arguments) == EXIT_DONE
    whole = files_of(tmp_path)
    for moment in moments(disk.writes)[-1 if command == "report" else 0 :]:  # a report takes seconds
        for path in whole:
            if path in before:
                path.write_bytes(before[path])
            else:
                path.unlink()
        capsys.readouterr()
        with pytest.MonkeyPatch.context() as patch:
            FullDisk(patch, moment)
            assert run(app, "pneumo_dist", arguments) == EXIT_USAGE
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {tmp_path}/exp") and "No space left on device; free some space" in line
        left = files_of(tmp_path)
        assert before.keys() <= left.keys() <= whole.keys(), "no file is lost, and no temporary is left"
        assert all(content in (before.get(path), whole[path]) for path, content in left.items())
        assert run(app, "pneumo_dist", arguments) == EXIT_DONE
        assert files_of(tmp_path) == whole
