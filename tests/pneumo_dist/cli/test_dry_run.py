"""Dry runs of train: errors, warnings and the plan, without a folder written."""

import json
import shutil
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
from tiny_runs import Trained

from pneumo_dist.cli.app import app
from pneumo_dist.cli.dry_run import facts_of
from pneumo_dist.config.load import load_config
from pneumo_dist.runs.heartbeat import HEARTBEAT
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


def test_room_is_what_the_untrained_folds_will_write(dry_run: DryRun, films: Shards) -> None:
    words = "of 4 x 0 MiB in each of 2 stages (early, main))"
    for fold, more in (("1 fold", ()), ("2 folds", ("--shards", films.folder, "--fold", 0, "--fold", 1))):
        code, out, _ = dry_run(*more)
        (line,) = [line for line in out.splitlines() if line.startswith("room: ")]
        assert code == EXIT_DONE and "free at " in line and line.endswith(f"checkpoints need 0 MiB ({fold} {words}")
        code, out, _ = dry_run(*more, "--json")
        assert json.loads(out)["room"].endswith(f"checkpoints need 0 MiB ({fold} {words}")


def test_too_little_room_is_a_warning_with_a_fix(dry_run: DryRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "disk_usage", lambda path: SimpleNamespace(free=100_000))
    code, out, err = dry_run("--set", "top_k=9")
    assert code == EXIT_DONE and "room: 0 MiB free at " in out
    assert "in each of 2 stages (early, main)); free some space (python -m pneumo_dist prune" in err


def test_a_trained_fold_writes_nothing(trained: Trained, config: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["train", "--cpu", "--dry-run", "--config", config, "--runs", trained.runs, "--fold", 0]
    folder = trained.runs / "plain/fold0"
    facts = facts_of(load_config(config), trained.shards)
    assert not (folder / HEARTBEAT).exists()
    (folder / HEARTBEAT).write_text(json.dumps({**facts, "state": "done", "time": time.time()}))
    try:
        code = run(app, "pneumo_dist", [str(word) for word in (*arguments, "--shards", trained.shards.folder)])
    finally:
        (folder / HEARTBEAT).unlink()
    out = capsys.readouterr().out
    assert code == EXIT_DONE and out.endswith("state: done\n") and "room" not in out


def test_room_of_a_prediction_is_that_of_its_maps(
    trained: Trained, config: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Seventeen films of 64 x 64 pixels are 69,632 bytes."""
    paths = ("--config", config, "--runs", trained.runs, "--shards", trained.shards.folder)
    arguments = [str(word) for word in ("predict", "--cpu", "--dry-run", *paths)]
    for free, err in ((69_632, ""), (69_631, "warning: ")):
        monkeypatch.setattr(shutil, "disk_usage", lambda path, free=free: SimpleNamespace(free=free))
        assert run(app, "pneumo_dist", arguments) == EXIT_DONE
        printed = capsys.readouterr()
        assert printed.out.splitlines()[-1] == f"room: 0 MiB free at {trained.runs}, predictions need at most 0 MiB"
        assert printed.err.startswith(err) and bool(printed.err) == bool(err)
    assert run(app, "pneumo_dist", [*arguments, "--json"]) == EXIT_DONE
    assert json.loads(capsys.readouterr().out)["room"].endswith("predictions need at most 0 MiB")


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
