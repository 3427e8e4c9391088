"""The command line as a whole: every command is listed, documents its options, and loads nothing heavy for its help."""

import subprocess
import sys
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from integration.conftest import environment

from pneumo_dist import __version__
from pneumo_dist.cli.app import _show_warning, app

COMMANDS = [
    "average",
    "compare",
    "config",
    "doctor",
    "export",
    "fetch-weights",
    "init-config",
    "predict",
    "prune",
    "report",
    "segment",
    "select",
    "show-batch",
    "status",
    "submit",
    "sweep",
    "train",
    "tune",
]


def test_every_command_is_listed() -> None:
    assert sorted(app.commands) == COMMANDS


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_for_each_option(name: str) -> None:
    command = app.commands[name]
    result = CliRunner().invoke(app, [name, "--help"])
    assert result.exit_code == 0 and command.help
    for option in command.params:
        if isinstance(option, click.Option):
            assert option.help and option.opts[0] in result.output, option.name


@pytest.mark.parametrize("module", ["pneumo_dist", "shards"])
def test_the_list_of_commands_fits_a_terminal(module: str) -> None:
    variables = {**environment(), "COLUMNS": "80"}
    done = subprocess.run(
        [sys.executable, "-m", module, "-h"], env=variables, capture_output=True, text=True, check=True
    )
    lines = done.stdout.splitlines()
    assert max(map(len, lines)) <= 80
    assert not [line for line in lines[1:] if line.endswith("...")]


def test_help_does_not_import_torch() -> None:
    call = "app(['tune', '-h'], standalone_mode=False)"
    code = f"import sys; from pneumo_dist.cli.app import app; {call}; print(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout and "'click'" in done.stdout and "'torch'" not in done.stdout


@pytest.mark.parametrize(
    ("modules", "absent"),
    [
        ("cli.app, pneumo_dist.cli.status", "cv2 torch matplotlib"),
        ("thresholds.file, pneumo_dist.output.submission, pneumo_dist.report.plots", "torch sklearn"),
        ("report.page", "torch"),
        ("sweep.plot, pneumo_dist.sweep.table", "torch"),
    ],
)
def test_commands_import_only_what_they_need(modules: str, absent: str) -> None:
    code = f"import sys, pneumo_dist.{modules}; sys.exit(' '.join(set({absent.split()}) & sys.modules.keys()))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.stderr.strip() == ""


@pytest.mark.parametrize(
    ("script", "module", "words", "expected"),
    [
        ("pneumo-dist", "pneumo_dist.cli.app", "pneumo-dist fetch", "fetch-weights"),
        ("pneumo-shards", "shards.__main__", "pneumo-shards exp", "export"),
    ],
)
def test_shell_completes_commands(tmp_path: Path, script: str, module: str, words: str, expected: str) -> None:
    (tmp_path / script).write_text(f"from {module} import main\nmain()\n")
    completion = f"_{script.replace('-', '_').upper()}_COMPLETE"
    done = subprocess.run(
        [sys.executable, tmp_path / script],
        env={**environment(), completion: "bash_complete", "COMP_WORDS": words, "COMP_CWORD": "1"},
        capture_output=True,
        text=True,
    )
    assert (done.returncode, done.stdout, done.stderr) == (0, f"plain,{expected}\n", "")


@pytest.mark.parametrize("module", ["pneumo_dist", "shards"])
def test_version_is_printed(module: str) -> None:
    done = subprocess.run([sys.executable, "-m", module, "--version"], capture_output=True, text=True, check=True)
    assert done.stdout == f"pneumo_dist {__version__}\n"


TORCHRUN = {"RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("env", "is_printed"),
    [
        ({}, True),
        (TORCHRUN, False),
        ({**TORCHRUN, "RANK": "0"}, True),
        ({"RANK": "1"}, True),  # left over from another job: this process works alone
        ({**TORCHRUN, "RANK": "7"}, True),
    ],
)
def test_warnings_are_one_line_on_the_first_rank(
    env: dict[str, str], is_printed: bool, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in TORCHRUN:
        monkeypatch.delenv(name, raising=False)
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    _show_warning("the disk is nearly full", UserWarning)
    _show_warning("of a library", DeprecationWarning)
    assert capsys.readouterr().err == ("warning: the disk is nearly full\n" if is_printed else "")
