"""train on a fold that tells nothing of finding a pneumothorax, and what comes after it."""

import shutil
from pathlib import Path

import pytest
from resign import resign
from tiny_runs import PLAIN

from pneumo_dist.cli.app import app
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import TABLE, Shards, read_table, write_table


@pytest.fixture
def one_sided(films: Shards, tmp_path: Path) -> Path:
    """Films of which every one with a pneumothorax is in fold 0."""
    folder = Path(shutil.copytree(films.folder, tmp_path / "shards"))
    rows = read_table(folder).to_pylist()
    negatives = [row["key"] for row in rows if not row["has_mask"]]
    write_table(folder / TABLE, [{**row, "fold": int(row["key"] in negatives[3:])} for row in rows])
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
def test_a_fold_without_a_pneumothorax_is_refused(
    one_sided: Path, config: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    assert train(config, one_sided, 1, *more) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {one_sided}: no film of fold 1 (3 films) has a pneumothorax")
    assert "shards finalize" in line and line.endswith("with --allow-empty-fold")
    assert not (config.parent / "runs").exists()


def test_a_dry_run_tells_what_there_is_to_validate_on(
    one_sided: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, one_sided, 0, "--dry-run") == EXIT_DONE
    assert "validation: 9 films, 6 of them with a pneumothorax\n" in capsys.readouterr().out
    assert train(config, one_sided, 1, "--dry-run", "--allow-empty-fold") == EXIT_DONE
    assert "validation: 3 films, 0 of them with a pneumothorax\n" in capsys.readouterr().out


def test_a_fold_that_is_not_there_is_refused_all_the_same(
    one_sided: Path, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert train(config, one_sided, 2, "--allow-empty-fold") == EXIT_USAGE
    assert "no fold 2; its folds are 0, 1" in capsys.readouterr().err


def test_a_run_with_such_a_fold_goes_on_to_its_report(
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
    told = "no score with thresholds of the other folds: besides fold 0 there are no films with a pneumothorax\n"
    assert told in capsys.readouterr().out
    assert (runs / "plain/report.html").exists() and last.exists()
