"""Two nodes lose their connection. They are two network namespaces with a bridge between them."""

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.conftest import ROOT, environment, write_config
from tools.equality import run_differences

LIMIT = 20.0
ENDS_WITHIN = 15.0
NODES = ("alpha", "beta")


def ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True, capture_output=True, text=True)


class Net:
    """Two hosts on one bridge. `cut` unplugs beta, and `join` plugs it in again."""

    def __init__(self, name: str) -> None:
        self.bridge = f"{name}br"
        self.spaces = {node: f"{name}-{node}" for node in NODES}
        self.cables = {node: f"{name}{node[0]}" for node in NODES}

    def start(self) -> None:
        ip("link", "add", self.bridge, "type", "bridge")
        ip("link", "set", self.bridge, "up")
        for number, node in enumerate(NODES, 1):
            space, cable = self.spaces[node], self.cables[node]
            ip("netns", "add", space)
            ip("link", "add", cable, "type", "veth", "peer", "name", "eth0", "netns", space)
            ip("link", "set", cable, "master", self.bridge, "up")
            ip("-n", space, "addr", "add", f"10.231.0.{number}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                ip("-n", space, "link", "set", device, "up")

    def cut(self) -> None:
        ip("link", "set", self.cables["beta"], "nomaster")

    def join(self) -> None:
        ip("link", "set", self.cables["beta"], "master", self.bridge)

    def stop(self) -> None:
        for words in (*(("netns", "del", space) for space in self.spaces.values()), ("link", "del", self.bridge)):
            subprocess.run(["ip", *words], capture_output=True)


@pytest.fixture
def net() -> Iterator[Net]:
    if not sys.platform.startswith("linux") or shutil.which("ip") is None or shutil.which("unshare") is None:
        pytest.skip("needs ip (iproute2) and unshare (util-linux)")
    made = Net(f"pd{os.getpid() % 10_000}")
    try:
        made.start()
    except subprocess.CalledProcessError as error:
        made.stop()
        pytest.skip(f"may not make network namespaces: {error.stderr.strip()}")
    yield made
    made.stop()


class Pair:
    """One rank on each node."""

    def __init__(self, net: Net, folder: Path, config: Path, shards: Path) -> None:
        folder.mkdir(exist_ok=True)
        self.logs = [folder / f"{node}.log" for node in NODES]
        self.processes = []
        for number, node in enumerate(NODES):
            agent = [
                *("-m", "pneumo_dist.ranks.agent", "--nnodes", "2", "--nproc-per-node", "1", "--rdzv-backend", "c10d"),
                *("--rdzv-id", "cut", "--rdzv-endpoint", "10.231.0.1:29400", "--rdzv-conf", f"is_host={1 - number}"),
                *("--local-addr", f"10.231.0.{number + 1}", "-m", "pneumo_dist", "train", "--cpu", "--fold", "0"),
                *("--config", str(config), "--shards", str(shards), "--runs", str(folder / "runs")),
            ]
            named = ["unshare", "--uts", "sh", "-c", f'hostname {node}; exec "$0" "$@"', sys.executable, *agent]
            variables = {
                "GLOO_SOCKET_IFNAME": "eth0",
                "TP_SOCKET_IFNAME": "eth0",
                "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1",
            }
            with self.logs[number].open("w") as log:
                self.processes.append(
                    subprocess.Popen(
                        ["ip", "netns", "exec", net.spaces[node], *named],
                        cwd=ROOT,
                        env={**environment(), **variables},
                        stdout=log,
                        stderr=log,
                        start_new_session=True,
                    )
                )

    def until(self, text: str) -> None:
        deadline = time.monotonic() + 120
        while text not in self.logs[0].read_text():
            assert time.monotonic() < deadline and self.processes[0].poll() is None, self.said()
            time.sleep(0.05)

    def codes(self, patience: float) -> list[int]:
        """Wait for both nodes and return their exit codes."""
        deadline = time.monotonic() + patience
        try:
            return [process.wait(max(0.1, deadline - time.monotonic())) for process in self.processes]
        except subprocess.TimeoutExpired:
            raise AssertionError(self.said()) from None

    def said(self) -> str:
        return "\n".join(f"{log.stem}:\n{log.read_text()[-1500:]}" for log in self.logs)

    def kill(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def pairs() -> Iterator[list[Pair]]:
    made: list[Pair] = []
    yield made
    for pair in made:
        pair.kill()


@pytest.mark.rare
@pytest.mark.slow
def test_run_survives_a_short_cut_and_a_long_one_ends_both_nodes_which_resume_with_the_same_bits(
    net: Net, pairs: list[Pair], dataset: Path, tmp_path: Path
) -> None:
    config = write_config(tmp_path / "tiny.yaml", runtime={"watchdog_minutes": LIMIT / 60}, epochs=4)
    pairs.append(survives := Pair(net, tmp_path / "short", config, dataset))
    survives.until("first epoch 1")
    net.cut()
    time.sleep(8)
    net.join()
    assert survives.codes(180) == [0, 0], survives.said()

    pairs.append(ends := Pair(net, tmp_path / "long", config, dataset))
    ends.until("first epoch 1")
    net.cut()
    cut = time.monotonic()
    codes = ends.codes(LIMIT + ENDS_WITHIN)
    took = time.monotonic() - cut
    print(f"ended {took:.1f} s after the cut")
    assert all(codes) and took < LIMIT + ENDS_WITHIN
    for node, log in zip(NODES, ends.logs, strict=True):
        rank = NODES.index(node)
        lines = [line for line in log.read_text().splitlines() if line.startswith("error: ")]
        assert len(lines) == 1 and f"rank {rank} on {node} in " in lines[0], ends.said()
        assert "Traceback" not in log.read_text()
    time.sleep(max(0.0, 60.0 - took))
    net.join()

    pairs.append(again := Pair(net, tmp_path / "long", config, dataset))
    assert again.codes(180) == [0, 0], again.said()
    fold = "runs/tiny/fold0"
    assert run_differences(tmp_path / "short" / fold, tmp_path / "long" / fold) == []
