"""train: its checks before the start, and folds without a positive film."""

import json
import resource
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from edited_dataset import resign, write_rows
from tiny_runs import PLAIN

from pneumo_dist.cli.app import app
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import TABLE, Shards, read_table

Look = Callable[..., tuple[int, str, str]]


@pytest.fixture
def one_sided(films: Shards, tmp_path: Path) -> Path:
    """Films whose positives are all in fold 0."""
    folder = Path(shutil.copytree(films.folder, tmp_path / "shards"))
    rows = read_table(folder).to_pylist()
    negatives = [row["key"] for row in rows if not row["has_mask"]]
    write_rows(folder / TABLE, [{**row, "fold": int(row["key"] in negatives[3:])} for row in rows])
    resign(folder)
    return folder


@pytest.fixture
def config(tmp_path: Path) -> Path:
    path = tmp_path / "plain.yaml"
    path.write_text(PLAIN.model_dump_json())
    return path


def train(config: Path, shards: Path, fold: int, *more: object) -> int:
    given = ("train", "--cpu", "--config", config, "--shards", shards, "--runs", config.parent / "runs", "--fold", fold)
    return run(app, "pneumo_dist", [str(word) for word in (*given, *more)])


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_fold_without_a_positive_film_is_refused(
    one_sided: Path, config: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    assert train(config, one_sided, 1, *more) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {one_sided}: no film of fold 1 (3 films) has a pneumothorax")
    assert "shards finalize" in line and line.endswith("with --allow-empty-fold")
    assert not (config.parent / "runs").exists()


def test_dry_run_prints_the_validation_films(one_sided: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, one_sided, 0, "--dry-run") == EXIT_DONE
    assert "validation: 9 films, 6 of them with a pneumothorax\n" in capsys.readouterr().out
    assert train(config, one_sided, 1, "--dry-run", "--allow-empty-fold") == EXIT_DONE
    assert "validation: 3 films, 0 of them with a pneumothorax\n" in capsys.readouterr().out


def test_missing_fold_is_refused_with_allow_empty_fold_too(
    one_sided: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, one_sided, 2, "--allow-empty-fold") == EXIT_USAGE
    assert "no fold 2; its folds are 0, 1" in capsys.readouterr().err


@pytest.fixture
def look(config: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str, str]]:
    """Makes a dry run; returns its exit code and output."""

    def call(*more: object) -> tuple[int, str, str]:
        given = ("train", "--cpu", "--dry-run", "--config", config, "--runs", config.parent / "runs")
        code = run(app, "pneumo_dist", [str(word) for word in (*given, *more)])
        printed = capsys.readouterr()
        assert not (config.parent / "runs").exists()
        return code, printed.out, printed.err

    return call


def test_dry_run_prints_one_line_of_json_for_all_folds(look: Look, films: Shards, config: Path) -> None:
    code, out, err = look("--json", "--shards", films.folder, "--fold", 0, "--fold", 1, "--ranks", 1)
    (line,) = out.splitlines()
    found, folder = json.loads(line), config.parent / "runs/plain"
    assert (code, err) == (EXIT_DONE, "")
    assert found["experiment"] == "plain" and len(found["config"]) == 64 and isinstance(found["warnings"], list)
    assert found["folds"] == [{"fold": fold, "folder": f"{folder}/fold{fold}", "is_trained": False} for fold in (0, 1)]


def test_dry_run_without_shards_checks_the_config(look: Look) -> None:
    code, out, _ = look("--json")
    assert code == EXIT_DONE and json.loads(out)["folds"] == []
    code, out, err = look("--set", "global_batch=3", "--set", "model={arch: unet, encoder: resnet19}")
    assert (code, out) == (EXIT_USAGE, "")
    assert len(err.splitlines()) == 3 and "resnet19: unknown" in err and err.count("is no multiple") == 2


def test_dry_run_of_very_many_epochs_is_fast(look: Look, films: Shards) -> None:
    began = time.monotonic()
    sampled = ("--set", "sample_rate=0.9", "--set", "sample_rate_end=0.5")
    code, out, err = look("--shards", films.folder, "--fold", 0, "--set", "epochs=100000000", "--rate", 10, *sampled)
    assert code == EXIT_DONE, err
    assert "steps x 100000000 epochs" in out and time.monotonic() - began < 10


def test_variables_of_another_launcher_are_named_and_ignored(look: Look, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    code, _, err = look()
    assert code == EXIT_DONE
    assert err.startswith("warning: WORLD_SIZE, MASTER_ADDR of another launcher") and len(err.splitlines()) == 1


def test_training_reports_errors_before_it_starts(
    films: Shards, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--set", "global_batch=3", "--set", "model={arch: unet, encoder: resnet19}")
    assert train(config, films.folder, 0, *more) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 3
    assert not (config.parent / "runs").exists()


def test_training_prints_its_initial_weights_and_raises_its_file_limit(
    films: Shards, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(256, hard), hard))
    try:
        assert train(config, films.folder, 0, "--set", "epochs=1") == EXIT_DONE
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "random weights, as fcn has no pretrained ones" in capsys.readouterr().out
    assert train(config, films.folder, 0, "--set", "epochs=1") == EXIT_DONE
    assert "random weights" not in capsys.readouterr().out


@pytest.mark.parametrize("name", ["--config", "--shards", "--runs"])
def test_path_with_a_line_break_is_refused(look: Look, name: str) -> None:
    code, _, err = look(name, "a\nb")
    assert code == EXIT_USAGE and len(err.splitlines()) == 1
    assert "'a\\nb': this path contains a line break" in err


def test_training_has_one_fold(films: Shards, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, films.folder, 0, "--fold", 1) == EXIT_USAGE
    assert "give --shards and one --fold" in capsys.readouterr().err


def test_run_with_a_fold_without_positives_reaches_its_report(
    one_sided: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    runs, last = config.parent / "runs", config.parent / "bundle"
    for fold in (0, 1):
        assert train(config, one_sided, fold, "--allow-empty-fold") == EXIT_DONE
    common = ("--config", config, "--runs", runs)
    tuned = ("tune", *common, "--objective", "dice@prevalence=0.1")
    for words in (
        ("predict", "--cpu", "--split", "oof", "--shards", one_sided, *common),
        tuned,
        ("report", "--shards", one_sided, *common),
        ("average", "--cpu", "--shards", one_sided, "--bundle", last, *common),
    ):
        assert run(app, "pneumo_dist", [str(word) for word in words]) == EXIT_DONE, capsys.readouterr().err
    told = "no score with thresholds of the other folds: outside fold 0 there are no films with a pneumothorax\n"
    assert told in capsys.readouterr().out
    assert (runs / "plain/report.html").exists() and last.exists()
