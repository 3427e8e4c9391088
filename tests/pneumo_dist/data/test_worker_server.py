"""The modules that the workers' servers preload: they import what workers need, ignore signals and start no thread."""

import subprocess
import sys

import pytest

PROGRAM = """
import importlib, signal, sys, threading
server, loader = sys.argv[1:]
importlib.import_module(server)
numbers = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP)
print(all(signal.getsignal(number) is signal.SIG_IGN for number in numbers))
print(loader in sys.modules, threading.active_count(), "torch" in sys.modules, "nvidia.dali" in sys.modules)
"""


@pytest.mark.parametrize(
    ("server", "loader", "has_torch"),
    [("worker_server", "torch_loader", True), ("input_server", "film_inputs", False)],
)
def test_server_has_the_loader_ignores_signals_and_has_no_thread(server: str, loader: str, has_torch: bool) -> None:
    modules = [f"pneumo_dist.data.{name}" for name in (server, loader)]
    result = subprocess.run([sys.executable, "-c", PROGRAM, *modules], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["True", "True", "1", str(has_torch), "False"], result.stderr
