"""The module that the workers' server preloads: it imports the loader, ignores signals and starts no Python thread."""

import subprocess
import sys

PROGRAM = """
import signal, sys, threading
import pneumo_dist.data.worker_server
numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
print(all(signal.getsignal(number) is signal.SIG_IGN for number in numbers))
print("pneumo_dist.data.torch_loader" in sys.modules, threading.active_count())
"""


def test_server_has_the_loader_ignores_signals_and_has_no_thread() -> None:
    result = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True", "1"], result.stderr
