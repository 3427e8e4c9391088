"""The command train: errors before it starts, and folds without a pneumothorax to validate on."""

import resource
import shutil
from pathlib import Path

import pytest

from pneumo_dist.cli.app import app
from pneumo_dist.cli.train import chosen_folds
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import Shards
from shards.errors import InputError


def train(config: Path, shards: Path, fold: int, *more: object) -> int:
    words = ("train", "--cpu", "--config", config, "--shards", shards, "--runs", config.parent / "runs", "--fold", fold)
    return run(app, "pneumo_dist", [str(word) for word in (*words, *more)])


@pytest.mark.parametrize("more", [(), ("--dry-run",)])
def test_fold_without_a_positive_film_is_refused(
    one_sided: Path, config: Path, capsys: pytest.CaptureFixture[str], more: tuple[str, ...]
) -> None:
    assert train(config, one_sided, 1, *more) == EXIT_USAGE
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {one_sided}: no film of fold 1 (3 films) has a pneumothorax")
    assert "shards finalize" in line and line.endswith("with --allow-empty-fold")
    assert not (config.parent / "runs").exists()


def test_a_missing_fold_is_refused_anyway(one_sided: Path, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert train(config, one_sided, 2, "--allow-empty-fold") == EXIT_USAGE
    assert "no fold 2; its folds are 0, 1" in capsys.readouterr().err


def test_errors_are_reported_before_training_starts(
    films: Shards, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    more = ("--set", "global_batch=3", "--set", "model={arch: unet, encoder: resnet19}")
    assert train(config, films.folder, 0, *more) == EXIT_USAGE
    captured = capsys.readouterr()
    assert captured.out == "" and len(captured.err.splitlines()) == 3
    assert not (config.parent / "runs").exists()


def test_training_says_which_weights_it_starts_from_and_raises_its_limit(
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


def test_training_needs_a_fold(films: Shards, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["train", "--cpu", "--config", str(config), "--shards", str(films.folder), "--runs", str(config.parent)]
    assert run(app, "pneumo_dist", words) == EXIT_USAGE
    assert "give --shards, and --fold or --folds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("single", "listed", "expected"),
    [((1,), None, (1,)), ((1, 1, 0), None, (1, 0)), ((), "1,0", (1, 0)), ((), "all", (0, 1)), ((1,), "all", (1, 0))],
)
def test_folds_are_chosen_one_by_one_or_as_a_list(
    films: Shards, single: tuple[int, ...], listed: str | None, expected: tuple[int, ...]
) -> None:
    assert chosen_folds(single, listed, films.folder) == expected


@pytest.mark.parametrize("listed", ["", "0,", "0-2", "0, 1", "ALL", "-1", "1_0", "²"])
def test_other_lists_of_folds_are_refused(films: Shards, listed: str) -> None:
    with pytest.raises(InputError, match="give all, or numbers with commas, such as 0,2"):
        chosen_folds((), listed, films.folder)
    with pytest.raises(InputError, match="--folds all needs --shards"):
        chosen_folds((), "all", None)


@pytest.mark.slow
def test_several_folds_are_trained_one_after_the_other(
    films: Shards, config: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """They end with the bits of folds that are trained alone."""
    runs = config.parent / "runs"
    assert train(config, films.folder, 1, "--folds", "0,1", "--set", "epochs=1") == EXIT_DONE
    assert [line.split()[:2] for line in capsys.readouterr().out.splitlines() if "is trained" in line] == [
        ["fold", "1"],
        ["fold", "0"],
    ]
    together = {path.name for path in runs.glob("*/fold*/*/checkpoints/step-*.pt")}
    shutil.rmtree(runs)
    for fold in (0, 1):
        assert train(config, films.folder, fold, "--set", "epochs=1") == EXIT_DONE
    # The name holds the digest of the content.
    assert {path.name for path in runs.glob("*/fold*/*/checkpoints/step-*.pt")} == together and len(together) == 4


@pytest.mark.slow
def test_a_run_with_such_a_fold_can_be_reported(
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
    line = "no score with thresholds of the other folds: outside fold 0 there are no films with a pneumothorax\n"
    assert line in capsys.readouterr().out
    assert (runs / "plain/report.html").exists() and last.exists()
