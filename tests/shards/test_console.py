"""Closed pipes: a command ends with one line, and progress does not end the work."""

import os
import subprocess
import sys

import pytest
from integration.conftest import ROOT, environment

from shards import console


def ended_without_a_reader(code: str) -> tuple[int, str]:
    """Run a program whose standard output is a pipe that nobody reads; return its exit code and standard error."""
    read, write = os.pipe()
    os.close(read)
    try:
        ended = subprocess.run(
            [sys.executable, "-c", code], stdout=write, stderr=subprocess.PIPE, env=environment(), cwd=ROOT, text=True
        )
    finally:
        os.close(write)
    return ended.returncode, ended.stderr


def test_a_command_whose_output_nobody_reads_ends_with_a_line() -> None:
    code = (
        "import sys, click\nfrom shards import console\n"
        "@click.command()\ndef talk() -> None:\n    print('x' * 100_000)\n"
        "sys.exit(console.run(talk, 'talk', []))"
    )
    assert ended_without_a_reader(code) == (
        1,
        "error: nothing reads the output any more (a closed pipe); run the same command again\n",
    )


def test_work_goes_on_without_a_reader_of_its_progress() -> None:
    code = "from shards import console\nconsole.say('one')\nconsole.say('two')\nprint('three')"
    assert ended_without_a_reader(code) == (0, "")


@pytest.mark.parametrize(
    "text", ["\x1b[31mred", "\x1b]0;title\x07", "a\rb", "a\nb", "\x9b2J", "\u202eevil", "\u2028", "\x00", "\x7f"]
)
def test_a_terminal_executes_nothing_that_is_printed(text: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert console.printable(text).isprintable()
    console.warn(f"film {text}")
    printed = capsys.readouterr().err
    assert printed.startswith("warning: film ") and printed.count("\n") == 1 and printed[:-1].isprintable()


@pytest.mark.parametrize(
    ("text", "expected"),
    [("plain", True), ("ä é", True), ("\u202e", True), ("\x1b", False), ("\x85", False), ("\n", False)],
)
def test_line_breaks_and_control_characters_are_more_than_one_line(text: str, expected: bool) -> None:
    assert console.is_one_line(text) == expected
