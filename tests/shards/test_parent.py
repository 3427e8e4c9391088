"""Processes end with the one that started them, however early it is killed."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from shards.parent import STARTER, announced, die_with_parent

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="only Linux tells children of a death")

# Starts a child, prints its process and is killed once the child reports.
PARENT = """
import subprocess, sys, time
from shards.parent import announced
with announced():
    child = subprocess.Popen([sys.executable, "-c", sys.argv[1]], stdin=subprocess.PIPE, stdout=subprocess.PIPE)
print(child.pid, flush=True)
if sys.argv[2] == "bound":
    print(child.stdout.readline().decode(), end="", flush=True)
time.sleep(60)
"""
CHILD = """
import sys, time
from shards.parent import die_with_parent
die_with_parent()
print("bound", flush=True)
time.sleep(60)
"""
# Held before its first line by a stop, so that its parent dies first.
LATE = "import os, signal; os.kill(os.getpid(), signal.SIGSTOP)" + CHILD


def state(pid: int) -> str:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return "gone"


def until(done: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 20
    while not done():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


@pytest.mark.parametrize("moment", ["bound", "before it is bound"])
def test_a_child_ends_with_its_parent(moment: str) -> None:
    command = [sys.executable, "-c", PARENT, CHILD if moment == "bound" else LATE, moment]
    parent = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert parent.stdout is not None
    child = int(parent.stdout.readline())
    try:
        if moment == "bound":
            assert parent.stdout.readline() == "bound\n"
        else:
            until(lambda: state(child) == "T", "the child does not stop")
        parent.kill()
        parent.communicate()
        if moment != "bound":
            assert state(child) == "T"
            os.kill(child, signal.SIGCONT)
        until(lambda: state(child) in ("Z", "gone"), "the child outlives its parent")
    finally:
        if state(child) not in ("Z", "gone"):
            os.kill(child, signal.SIGKILL)


def ended(starter: int | None) -> int | None:
    """Bind a fork of this process, and return the signal that ended it; None if it lived on."""
    child = os.fork()
    if child == 0:
        try:
            die_with_parent(starter)
        finally:
            os._exit(0)
    return -os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) or None


def test_a_child_lives_while_its_starter_or_a_script_between_them_lives() -> None:
    assert ended(None) is None
    assert ended(os.getpid()) is None
    assert ended(os.getppid()) is None, "this process is then the script between"


def test_a_child_of_a_dead_starter_ends_at_once() -> None:
    zombie = os.fork()
    if zombie == 0:
        os._exit(0)
    until(lambda: state(zombie) == "Z", "no zombie")
    assert ended(zombie) == signal.SIGKILL
    os.waitpid(zombie, 0)
    assert ended(zombie) == signal.SIGKILL


def test_only_the_child_reads_who_started_it(monkeypatch: pytest.MonkeyPatch) -> None:
    with announced():
        assert os.environ[STARTER] == str(os.getpid())
        code = "import os; from shards.parent import die_with_parent; die_with_parent(); print(sorted(os.environ))"
        names = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
        assert "PATH" in names and STARTER not in names
    assert STARTER not in os.environ
