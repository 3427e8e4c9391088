"""Dry runs of train: errors, warnings and the plan, without a folder written."""

import json
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from pneumo_dist.cli.app import app
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import Shards

DryRun = Callable[..., tuple[int, str, str]]


@pytest.fixture
def dry_run(config: Path, capsys: pytest.CaptureFixture[str]) -> DryRun:
    """Makes a dry run; returns its exit code, stdout and stderr."""

    def call(*more: object) -> tuple[int, str, str]:
        arguments = ("train", "--cpu", "--dry-run", "--config", config, "--runs", config.parent / "runs")
        code = run(app, "pneumo_dist", [str(word) for word in (*arguments, *more)])
        printed = capsys.readouterr()
        assert not (config.parent / "runs").exists()
        return code, printed.out, printed.err

    return call


def test_json_is_one_line_for_all_folds(dry_run: DryRun, films: Shards, config: Path) -> None:
    code, out, err = dry_run("--json", "--shards", films.folder, "--fold", 0, "--fold", 1, "--ranks", 1)
    (line,) = out.splitlines()
    plan, folder = json.loads(line), config.parent / "runs/plain"
    assert (code, err) == (EXIT_DONE, "")
    assert plan["experiment"] == "plain" and len(plan["config"]) == 64 and isinstance(plan["warnings"], list)
    assert plan["folds"] == [{"fold": fold, "folder": f"{folder}/fold{fold}", "is_trained": False} for fold in (0, 1)]


def test_without_shards_only_the_config_is_checked(dry_run: DryRun) -> None:
    code, out, _ = dry_run("--json")
    assert code == EXIT_DONE and json.loads(out)["folds"] == []
    code, out, err = dry_run("--set", "global_batch=3", "--set", "model={arch: unet, encoder: resnet19}")
    assert (code, out) == (EXIT_USAGE, "")
    assert len(err.splitlines()) == 3 and "resnet19: unknown" in err and err.count("is not a multiple") == 2


def test_a_plan_of_very_many_epochs_is_fast(dry_run: DryRun, films: Shards) -> None:
    began = time.monotonic()
    sampled = ("--set", "sample_rate=0.9", "--set", "sample_rate_end=0.5")
    code, out, err = dry_run("--shards", films.folder, "--fold", 0, "--set", "epochs=100000000", "--rate", 10, *sampled)
    assert code == EXIT_DONE, err
    assert "steps x 100000000 epochs" in out and time.monotonic() - began < 10


def test_variables_of_another_launcher_are_named_and_ignored(dry_run: DryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MASTER_ADDR", "node1")
    monkeypatch.setenv("WORLD_SIZE", "4")
    code, _, err = dry_run()
    assert code == EXIT_DONE
    assert err.startswith("warning: WORLD_SIZE, MASTER_ADDR set by another launcher") and len(err.splitlines()) == 1


def test_films_to_validate_on_are_counted(dry_run: DryRun, one_sided: Path) -> None:
    _, out, _ = dry_run("--shards", one_sided, "--fold", 0)
    assert "validation: 9 films, 6 of them with a pneumothorax\n" in out
    code, out, _ = dry_run("--shards", one_sided, "--fold", 1, "--allow-empty-fold")
    assert code == EXIT_DONE and "validation: 3 films, 0 of them with a pneumothorax\n" in out


@pytest.mark.parametrize("name", ["--config", "--shards", "--runs"])
def test_a_path_with_a_line_break_is_refused(dry_run: DryRun, name: str) -> None:
    code, _, err = dry_run(name, "a\nb")
    assert code == EXIT_USAGE and len(err.splitlines()) == 1
    assert "'a\\nb': this path contains a line break" in err
