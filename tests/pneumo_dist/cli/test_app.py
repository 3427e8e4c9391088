"""The command line as a whole: every command is listed, documents its options, and loads nothing heavy for its help."""

import subprocess
import sys

import click
import pytest
from click.testing import CliRunner

from pneumo_dist.cli.app import _show_warning, app

COMMANDS = [
    "average",
    "doctor",
    "fetch-weights",
    "predict",
    "report",
    "segment",
    "show-batch",
    "status",
    "submit",
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


def test_help_does_not_import_torch() -> None:
    call = "app(['tune', '-h'], standalone_mode=False)"
    code = f"import sys; from pneumo_dist.cli.app import app; {call}; print(sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert "Usage:" in done.stdout and "'click'" in done.stdout and "'torch'" not in done.stdout


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
