"""How the agent sees its ranks: running, finished, failed and killed."""

import signal
import subprocess
import sys
import time

import pytest

from pneumo_dist.ranks import agent

pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="looks at processes in /proc")


@pytest.mark.parametrize(("code", "expected"), [("exit 0", 0), ("exit 2", 2), ("kill -KILL $$", 1)])
def test_exit_code_of_a_child_that_was_not_waited_for(code: str, expected: int) -> None:
    child = subprocess.Popen(["sh", "-c", code])
    try:
        deadline = time.monotonic() + 10
        while agent.code_of(child.pid) is None:
            assert time.monotonic() < deadline
            time.sleep(0.01)
        assert agent.code_of(child.pid) == expected
    finally:
        child.wait()
    assert agent.code_of(child.pid) == 0


def test_running_child_has_no_exit_code() -> None:
    child = subprocess.Popen(["sleep", "60"])
    try:
        assert agent.code_of(child.pid) is None
    finally:
        child.send_signal(signal.SIGKILL)
        child.wait()
