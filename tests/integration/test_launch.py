"""The launcher: what it gives torchrun, and stopping before there is anything to stop."""

import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from integration.conftest import ROOT, environment, write_config

BOUND = "--numa-binding=node"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node with two GPUs, numactl and two NUMA nodes of 32 CPUs, all of them ours."""
    files = {
        "bin/nvidia-smi": "#!/bin/sh\necho GPU 0\necho GPU 1\n",
        "bin/numactl": "#!/bin/sh\n",
        "sys/devices/system/node/has_cpu": "0-1\n",
        "sys/devices/system/cpu/online": "0-63\n",
        "status": "Name:\tbash\nCpus_allowed_list:\t0-63\n",
    }
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
        path.chmod(0o755)
    return tmp_path


def binding(node: Path, ranks: int) -> str:
    done = subprocess.run(
        ["bash", "-c", 'source launch/numa.sh; numa_binding "$@"', "bash", str(ranks), node / "sys", node / "status"],
        env={"PATH": f"{node / 'bin'}:/usr/bin:/bin"},
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    assert not done.stderr
    return done.stdout.strip()


@pytest.mark.parametrize(("ranks", "expected"), [(1, BOUND), (2, BOUND), (3, "")])
def test_ranks_are_bound_where_each_has_a_gpu(node: Path, ranks: int, expected: str) -> None:
    assert binding(node, ranks) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sys/devices/system/node/has_cpu", "0\n"),
        ("status", "Cpus_allowed_list:\t0-31\n"),
        ("bin/nvidia-smi", "#!/bin/sh\nexit 9\n"),
    ],
)
def test_ranks_are_not_bound_where_it_would_not_help_or_not_work(node: Path, name: str, content: str) -> None:
    (node / name).write_text(content)
    assert binding(node, 2) == ""


def test_this_machines_own_answer_is_an_option_or_nothing() -> None:
    done = subprocess.run(["bash", "-c", "source launch/numa.sh; numa_binding 1"], cwd=ROOT, capture_output=True)
    assert done.returncode == 0 and done.stdout.decode().strip() in ("", BOUND)


@pytest.mark.slow
def test_signal_before_the_training_starts_is_75_and_leaves_no_run(dataset: Path, tmp_path: Path) -> None:
    config, runs = write_config(tmp_path / "tiny.yaml"), tmp_path / "runs"
    command = ["bash", "launch/train.sh", "--cpu", "--config", str(config), "--fold", "0", "--shards", str(dataset)]
    process = subprocess.Popen([*command, "--runs", str(runs)], env=environment(), cwd=ROOT, start_new_session=True)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children")
    while not any(
        b"--dry-run" in Path(f"/proc/{child}/cmdline").read_bytes() for child in children.read_text().split()
    ):
        assert process.poll() is None
        time.sleep(0.01)
    os.kill(process.pid, signal.SIGTERM)
    assert process.wait(timeout=60) == 75
    assert not runs.exists()


@pytest.mark.parametrize(
    ("command", "names"),
    [
        (["train.sh", "--nodes", "2"], "--head HOST:PORT"),
        (["train.sh", "--fold-per-gpu", "0-7", "--ranks", "4"], "more folds than the 4 GPUs"),
        (["pipeline.sh", "--config", "configs/demo.yaml"], "--config, --shards and --runs are needed"),
        (["pipeline.sh", "--cnofig", "configs/demo.yaml"], "unknown argument --cnofig"),
        (["predict.sh", "--cnofig", "configs/demo.yaml"], "unknown argument --cnofig"),
        (["monitor.sh"], "no such folder"),
        (["monitor.sh", "/no/runs"], "/no/runs: no such folder"),
    ],
)
def test_bad_usage_is_one_line(command: list[str], names: str) -> None:
    script, *arguments = command
    done = subprocess.run(
        ["bash", f"launch/{script}", *arguments], env=environment(), cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 2
    assert names in done.stderr and len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize("script", ["prepare", "train_folds", "predict"])
def test_batch_script_submitted_from_elsewhere_says_so(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", ROOT / f"slurm/{script}.sbatch"],
        env={"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} is not the checkout: submit from there, or export PNEUMO_HOME\n"


@pytest.mark.slow
def test_monitor_answers_on_this_host_alone(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    command = ["bash", "launch/monitor.sh", str(tmp_path), str(port)]
    process = subprocess.Popen(
        command, env=environment(), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        deadline = time.monotonic() + 60
        while True:
            try:
                with urllib.request.urlopen(f"http://127.0.0.1:{port}/", timeout=5) as answer:
                    assert b"TensorBoard" in answer.read()
                break
            except urllib.error.URLError:
                assert process.poll() is None and time.monotonic() < deadline
                time.sleep(0.2)
        # In /proc an address is a number: 0100007F is 127.0.0.1, and 0A is the state of one who listens.
        sockets = [line.split() for line in Path("/proc/net/tcp").read_text().splitlines()[1:]]
        listening = [
            place.split(":")[0]
            for _, place, _, state, *_ in sockets
            if state == "0A" and place.endswith(f":{port:04X}")
        ]
        assert listening == ["0100007F"]
    finally:
        process.terminate()
        process.wait(timeout=30)
