"""The command sweep: refusals, the page's commands, several processes, kills, and a holdout that nobody reads."""

import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from builders import phantom_shards
from sweep_runs import GRID, Killed, journal_of, sweep_of
from tiny_runs import PLAIN
from tools.commands import ROOT, commands_of

from pneumo_dist.cli.app import app
from pneumo_dist.config.load import load_config
from pneumo_dist.report.compare import compare, run_folders
from pneumo_dist.sweep.journal import Journal
from pneumo_dist.sweep.space import Space, check_space, load_space
from shards.__main__ import app as shards_app
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import Shards
from shards.errors import InputError

SPACE = "optim.lr: {choices: [0.001, 0.01]}\nstages.main.epochs: {whole: [1, 2]}\n"


@pytest.fixture
def place(films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The working folder, with a config and a space."""
    monkeypatch.chdir(tmp_path)
    Path("plain.yaml").write_text(PLAIN.model_dump_json())
    Path("space.yaml").write_text(SPACE)
    return tmp_path


def words(films: Shards, *more: object, space: str = "space.yaml") -> list[str]:
    given = ("sweep", "--cpu", "--config", "plain.yaml", "--space", space, "--shards", films.folder, "--runs", "runs")
    return [str(word) for word in (*given, *more)]


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (("--trials", 0), "Invalid value for '--trials'"),
        ((), "give --config, --space, --shards, and --trials or --grid"),
        (("--grid", "--set", "optim.lr=1"), "space.yaml: optim.lr: --set gives optim.lr; remove one of them"),
        (("--grid", "--name", "a b"), "--name a b: --set: name: String should match pattern"),
        (("--grid", "--fold", 7), "no fold 7; its folds are 0, 1"),
        (("--grid", "--space", "none.yaml"), "none.yaml: no such file; give a space"),
        (("--show",), "runs/plain-space: holds no sweep; begin one with --config, --space and --shards"),
    ],
)
def test_bad_input_is_refused_before_anything_is_written(
    films: Shards, place: Path, capsys: pytest.CaptureFixture[str], more: tuple[object, ...], message: str
) -> None:
    assert run(app, "pneumo_dist", words(films, *more)) == EXIT_USAGE
    (line,) = (line for line in capsys.readouterr().err.splitlines() if line.startswith("error"))
    assert message in line
    assert not Path("runs").exists()


def test_show_needs_a_name(place: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, "pneumo_dist", ["sweep", "--show", "--runs", "runs"]) == EXIT_USAGE
    assert "--show needs --name, or --config and --space" in capsys.readouterr().err


def test_a_missing_optuna_is_named_with_the_fix(
    films: Shards, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "optuna", None)
    for more in (("--grid",), ("--show",)):
        assert run(app, "pneumo_dist", words(films, *more)) == EXIT_USAGE
        assert capsys.readouterr().err == "error: sweep needs optuna; run: pip install 'pneumo_dist[sweep]'\n"


def test_torchrun_is_refused(
    films: Shards, place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert run(app, "pneumo_dist", words(films, "--grid")) == EXIT_USAGE
    assert "start it without torchrun, once for each GPU" in capsys.readouterr().err


def test_the_table_of_a_sweep_is_shown_and_written(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    sweep = sweep_of(tmp_path, GRID)
    with (
        pytest.raises(Killed),
        journal_of(sweep).claim(4, lambda number: sweep.space.combinations()[number], sweep.space),
    ):
        raise Killed
    assert run(app, "pneumo_dist", ["sweep", "--show", "--name", "s", "--runs", str(sweep.runs)]) == EXIT_DONE
    shown = capsys.readouterr().out.splitlines()
    assert [line.split() for line in shown[:2]] == [
        ["trial", "state", "score", "epochs", "optim.lr", "stages.s1.epochs"],
        ["s-000", "unfinished", "–", "0", "0.001", "1"],
    ]
    assert "1 trial: 1 unfinished; none is done" in shown
    assert (sweep.folder / "trials.csv").read_text().splitlines()[1] == "0,s-000,unfinished,,0,0.001,1,"
    assert (sweep.folder / "trials.png").read_bytes().startswith(b"\x89PNG")


def test_the_space_of_the_page_fits_its_config(tmp_path: Path) -> None:
    check_space(page_space(tmp_path), ROOT / "configs/demo.yaml", ["epochs=4"], grid=False)


def page_space(folder: Path) -> Space:
    (text,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "docs/sweep.md").read_text(), re.DOTALL)
    (folder / "lr.yaml").write_text(text)
    return load_space(folder / "lr.yaml")


@pytest.mark.slow
def test_the_commands_of_the_page_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With a smaller network on smaller films; then the commands that sweep prints give the cross-tuned score."""
    monkeypatch.chdir(tmp_path)
    page_space(tmp_path)
    demo = load_config(ROOT / "configs/demo.yaml").experiment
    stage = demo.stages[0].model_copy(update={"image_size": 64, "global_batch": 8})
    small = PLAIN.model_copy(update={"name": "demo", "stages": (stage,)})
    Path("demo").write_text(small.model_dump_json())
    changes = {"60": "32", "128": "64", "8": "3", "epochs=4": "epochs=1"}
    for command in commands_of(ROOT / "docs/sweep.md"):
        program, *given = command.words()
        if program not in ("pneumo-shards", "pneumo-dist"):
            continue
        given = [changes.get(word, word) for word in given]
        assert run(shards_app if program == "pneumo-shards" else app, program, given) == EXIT_DONE, given
        if given[0] == "sweep" and "--show" in given:
            printed = capsys.readouterr().out
    compared = capsys.readouterr().out
    assert [f"demo-lr-{number:03d}" in compared for number in range(4)] == [True, True, True, False]
    assert "3 trials: 3 done" in printed and "cross-tuned score is not known" in printed
    commands = [shlex.split(line) for line in printed.splitlines() if line.startswith("  python -m pneumo_dist")][-3:]
    assert [each[3] for each in commands] == ["train", "predict", "sweep"]
    for each in commands:
        more = [] if each[3] == "sweep" else ["--cpu"]
        given = ["try/shards" if word == "SHARDS" else word for word in each[3:]]
        assert run(app, "pneumo_dist", [*given, *more]) == EXIT_DONE, each
    assert "films of fold 0 still chose the trial" in capsys.readouterr().out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("space", "sets", "reason"),
    [
        ("global_batch: {choices: [64, 2]}", (), "fewer than global_batch 64; lower it"),
        (
            "optim.lr: {choices: [1e9, 0.001]}",
            ("optim.max_bad_steps=1", "model.fcn.norm=false"),
            "a non-finite gradient",
        ),
    ],
    ids=["before training", "in training"],
)
def test_parameters_that_cannot_be_trained_make_a_failed_trial(
    films: Shards, place: Path, capsys: pytest.CaptureFixture[str], space: str, sets: tuple[str, ...], reason: str
) -> None:
    Path("space.yaml").write_text(space)
    given = words(films, "--grid", *(word for each in sets for word in ("--set", each)))
    assert run(app, "pneumo_dist", given) == EXIT_DONE
    printed = capsys.readouterr()
    assert re.search(rf"warning: trial 0 failed: .*{re.escape(reason)}", printed.err)
    assert re.search(rf"^plain-space-000: .*{re.escape(reason)}", printed.out, re.MULTILINE)
    assert "2 trials: 1 done, 1 failed" in printed.out and "best: plain-space-001" in printed.out
    assert run(app, "pneumo_dist", given) == EXIT_DONE, "a failed trial is not tried again"
    assert "trial 0" not in capsys.readouterr().out
    # The config itself cannot be trained: nobody's trial fails for that.
    Path("other.yaml").write_text("loss: {choices: [{bce: 1}]}")
    refused = words(films, "--grid", "--set", "global_batch=64", space="other.yaml")
    assert run(app, "pneumo_dist", refused) == EXIT_USAGE
    assert "fewer than global_batch 64" in capsys.readouterr().err
    assert not Path("runs/plain-other").exists()


def spoil_holdout(source: Shards, folder: Path) -> Shards:
    """Return a copy of shards whose holdout films have other bytes than their checksums."""
    copy = Shards(Path(shutil.copytree(source.folder, folder)))
    for row in copy.indices("holdout"):
        with (copy.folder / str(copy.column("shard")[row])).open("r+b") as stream:
            stream.seek(int(copy.column("image_offset")[row]))
            stream.write(bytes(int(copy.column("image_size")[row])))
    return copy


@pytest.mark.slow
def test_no_film_of_the_holdout_is_read(place: Path, tmp_path: Path) -> None:
    whole = phantom_shards(tmp_path / "made", films=20, size=64, holdout=0.3)
    spoilt = spoil_holdout(whole, tmp_path / "spoilt")
    held = spoilt.indices("holdout")
    assert len(held) >= 4
    with pytest.raises(InputError):
        spoilt.read(int(held[0]), "image")
    for shards, runs in ((whole, "whole"), (spoilt, "spoilt")):
        given = words(shards, "--trials", 2, "--folds", "all", "--grid")
        assert run(app, "pneumo_dist", [*given[: given.index("--runs")], "--runs", runs, *given[-5:]]) == EXIT_DONE
    found = [Journal(Path(runs) / "plain-space", "plain-space").trials() for runs in ("whole", "spoilt")]
    scores = [[(trial.value, trial.intermediate_values) for trial in trials] for trials in found]
    assert scores[0] == scores[1] and len(scores[0]) == 2
    compared = {row.name: row.best_epoch for row in compare(run_folders([Path("whole")]))}
    assert compared == pytest.approx({f"plain-space-{each.number:03d}": each.value for each in found[0]}, abs=0)


def start(given: list[str], folder: Path) -> "subprocess.Popen[str]":
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "pneumo_dist", *given]
    return subprocess.Popen(
        command, cwd=folder, env=environment, stdout=subprocess.PIPE, text=True, start_new_session=True
    )


def trained_lines(text: str) -> list[str]:
    return re.findall(r"trial (\d+) begins", text)


@pytest.mark.slow
def test_two_processes_at_once_share_the_trials(films: Shards, place: Path) -> None:
    processes = [start(words(films, "--grid"), place) for _ in range(2)]
    texts = [process.communicate(timeout=300)[0] for process in processes]
    assert [process.returncode for process in processes] == [EXIT_DONE, EXIT_DONE]
    began = [trained_lines(text) for text in texts]
    assert sorted(began[0] + began[1]) == ["0", "1", "2", "3"] and all(began)
    assert not any("resumes" in text for text in texts)
    alone = place / "alone"
    alone.mkdir()
    for name in ("plain.yaml", "space.yaml"):
        shutil.copy(name, alone)
    assert start(words(films, "--grid"), alone).wait(300) == EXIT_DONE
    names = [
        sorted(str(path.relative_to(runs)) for path in runs.glob("*/fold0/*/checkpoints/step-*.pt"))
        for runs in (place / "runs", alone / "runs")
    ]
    assert names[0] == names[1] and len(names[0]) >= 8


@pytest.mark.slow
def test_killed_twice_it_ends_as_if_undisturbed(films: Shards, place: Path) -> None:
    text = "optim.lr: {log: [1e-4, 1e-1]}\nloss: {choices: [{bce: 1}, {bce: 1, dice: 1}]}\n"
    folders = [place / "straight", place / "killed"]
    for folder in folders:
        folder.mkdir()
        shutil.copy("plain.yaml", folder)
        (folder / "space.yaml").write_text(text)
    given = words(films, "--trials", 3, "--set", "save_every=1")
    assert start(given, folders[0]).wait(300) == EXIT_DONE
    for trial, stage in ((0, "main"), (1, "early")):
        process = start(given, folders[1])
        place_of = folders[1] / f"runs/plain-space-{trial:03d}/fold0/{stage}/checkpoints"
        deadline = time.monotonic() + 200
        while not list(place_of.glob("step-*.pt")):
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.01)
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    process = start(given, folders[1])
    printed = process.communicate(timeout=300)[0]
    assert process.returncode == EXIT_DONE and "trial 1 resumes" in printed
    found = []
    for folder in folders:
        trials = Journal(folder / "runs/plain-space", "plain-space").trials()
        found.append([(each.number, each.params, each.state, each.values, each.intermediate_values) for each in trials])
        found[-1].append(sorted(path.name for path in folder.glob("runs/*/fold0/*/checkpoints/step-*.pt")))  # type: ignore[arg-type]
    assert found[0] == found[1] and len(found[0]) == 4
