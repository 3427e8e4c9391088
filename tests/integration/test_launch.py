"""The launchers: options for torchrun, bad usage, and signals before the start."""

import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from integration.conftest import ROOT, environment, write_config

BOUND = "--numa-binding=node"


@pytest.fixture
def node(tmp_path: Path) -> Path:
    """A node with two GPUs, numactl, and two NUMA nodes of 32 CPUs that this process may use."""
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
def test_ranks_are_bound_if_each_has_a_gpu(node: Path, ranks: int, expected: str) -> None:
    assert binding(node, ranks) == expected


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("sys/devices/system/node/has_cpu", "0\n"),
        ("status", "Cpus_allowed_list:\t0-31\n"),
        ("bin/nvidia-smi", "#!/bin/sh\nexit 9\n"),
    ],
)
def test_ranks_are_not_bound_if_it_would_not_help_or_work(node: Path, name: str, content: str) -> None:
    (node / name).write_text(content)
    assert binding(node, 2) == ""


def test_answer_of_this_machine_is_an_option_or_nothing() -> None:
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
        (["train.sh", "--config", "demo"], "give --fold N or --folds LIST"),
        (["train.sh", "--folds"], "--folds needs a value"),
        (["train.sh", "--folds=all"], "--folds=all: write the value after a space"),
        (["train.sh", "--fold-per-gpu", "--fold", "1"], "--fold-per-gpu chooses the folds"),
        (["predict.sh", "--set"], "--set needs a value"),
        (["pipeline.sh", "--set"], "--set needs a value"),
        (["train.sh", "--nodes", "2", "--node", "2", "--head", "a:1"], "--node 2: nodes are numbered from 0 to 1"),
        (["train.sh", "--nodes"], "--nodes needs a value"),
        (["train.sh", "--ranks=2"], "--ranks=2: write the value after a space"),
        (["train.sh", "--nodes", "08"], "--nodes 08: give a whole number of at least 1"),
        (["train.sh", "--cpu", "0"], "--ranks 0: give a whole number of at least 1"),
        (["train.sh", "--fold-per-gpu", "3-1", "--ranks", "4"], "--fold-per-gpu 1: give a whole number of at least 3"),
        (["train.sh", "--fold-per-gpu", "0-7", "--ranks", "4"], "more folds than the 4 GPUs"),
        (["train.sh", "--config", "a\nb"], "$'a\\nb' contains a line break"),
        (["pipeline.sh", "--shards", "a\nb"], "$'a\\nb' contains a line break"),
        (["predict.sh", "--runs", "a\nb"], "$'a\\nb' contains a line break"),
        (
            ["pipeline.sh", "--config", "c", "--shards", "/no/shards", "--runs", "r"],
            "/no/shards: no shards there",
        ),
        (["pipeline.sh", "--folds"], "--folds needs a value"),
        (["predict.sh", "--config"], "--config needs a value"),
        (["predict.sh", "--models-in-memory", "0"], "--models-in-memory 0: give a whole number of at least 1"),
        (["predict.sh", "--cpu"], "--config, --shards and --runs are needed"),
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


LAUNCHERS = [
    f"launch/{name}.sh" for name in ("demo", "gpu-check", "monitor", "pipeline", "predict", "setup", "test", "train")
]


@pytest.mark.parametrize("script", [*LAUNCHERS, "slurm/pipeline.sh"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_launchers_describe_all_of_their_options(script: str, option: str, tmp_path: Path) -> None:
    done = subprocess.run(["bash", ROOT / script, "--cpu", option], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0 and done.stderr == "" and not list(tmp_path.iterdir())
    assert f"bash {script}" in done.stdout and "#" not in done.stdout
    text = (ROOT / script).read_text()
    for known in re.findall(r"^    (?:-\S+ \| )?(--[a-z-]+)\)", text, re.MULTILINE):
        assert f"{known} " in done.stdout, known


def test_help_after_the_arguments_of_another_command_is_not_the_launchers() -> None:
    command = ["bash", "launch/pipeline.sh", "--config", "c", "--cnofig", "x", "--", "--help"]
    done = subprocess.run(command, cwd=ROOT, env=environment(), capture_output=True, text=True)
    assert done.returncode == 2 and "unknown argument --cnofig" in done.stderr


HARM = "a[$(touch harmed)]"


@pytest.mark.parametrize(
    "command",
    [
        *(["launch/train.sh", option, HARM] for option in ("--ranks", "--nodes", "--node", "--max-restarts")),
        ["launch/train.sh", "--fold-per-gpu", "--ranks", HARM],
        ["launch/predict.sh", "--config", "c", "--shards", "s", "--runs", "r", "--ranks", HARM],
        ["launch/pipeline.sh", "--config", "c", "--shards", "s", "--runs", "r", "--folds", HARM, "--", "x"],
        ["launch/pipeline.sh", "--config", "c", "--shards", "s", "--runs", "r", "--ranks", HARM, "--", "x"],
        ["launch/pipeline.sh", "--config", "c", "--shards", "s", "--runs", "r", "--cpu", HARM, "--", "x"],
        *(
            ["slurm/pipeline.sh", "--config", "c", "--shards", "s", "--runs", "r", option, HARM, "--", "x"]
            for option in ("--folds", "--nodes", "--at-a-time", "--build-tasks")
        ),
    ],
)
def test_numbers_are_never_evaluated(command: list[str]) -> None:
    done = subprocess.run(["bash", *command], env=environment(), cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 2
    assert len(done.stderr.splitlines()) == 1 and "give a whole number of at least" in done.stderr
    assert not (ROOT / "harmed").exists()


def shell(script: str, *arguments: object, **variables: str) -> str:
    """Return the output of a script that uses the launchers' functions."""
    done = subprocess.run(
        ["bash", "-c", f"set -euo pipefail; source launch/shell.sh; source launch/gpus.sh; {script}", "bash"]
        + [str(each) for each in arguments],
        env={"PATH": os.environ["PATH"], **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0 and not done.stderr, done.stderr
    return done.stdout


@pytest.mark.parametrize(
    ("visible", "expected"),
    [
        (None, ["0", "1"]),
        ("1", ["1"]),
        ("1, 0", ["1", "0"]),
        ("", []),
        ("-1", []),
        ("NoDevFiles", []),
        ("0,-1,1", ["0"]),
        ("0,7", ["0"]),
        ("GPU-8932f937-d72c,MIG-1/2/0", ["GPU-8932f937-d72c", "MIG-1/2/0"]),
        ("a[$(touch harmed)]", []),
    ],
)
def test_gpus_are_those_of_the_variable(node: Path, visible: str | None, expected: list[str]) -> None:
    variables = {} if visible is None else {"CUDA_VISIBLE_DEVICES": visible}
    path = f"{node / 'bin'}:/usr/bin:/bin"
    assert shell("visible_gpus", PATH=path, **variables).split() == expected
    assert shell("count_ranks", PATH=path, **variables).split() == [str(max(1, len(expected)))]
    assert not (ROOT / "harmed").exists()


def test_no_gpu_without_a_driver_despite_the_variable(tmp_path: Path) -> None:
    smi = tmp_path / "nvidia-smi"
    smi.write_text("#!/bin/sh\nexit 9\n")
    smi.chmod(0o755)
    assert shell("visible_gpus; count_ranks", PATH=f"{tmp_path}:/usr/bin:/bin", CUDA_VISIBLE_DEVICES="0,1") == "1\n"


def test_values_of_a_json_line_are_unchanged() -> None:
    odd = "/a b/'\"$(touch harmed)\\"
    line = json.dumps({"folds": [{"folder": odd, "is_trained": True}], "name": "x"})
    python = f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    keys = ("folds.0.folder", "folds.0.is_trained", "name")
    found = shell('json_values "${@:2}" <<<"$1"', f"a banner\n{line}", *keys, PATH=python)
    assert found.splitlines() == [odd, "True", "x"]


def test_variables_of_another_launcher_are_unset() -> None:
    left = dict.fromkeys(("MASTER_ADDR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "TORCHELASTIC_RUN_ID", "PET_NNODES"), "x")
    printed = shell("leave_other_launchers; env", **left, TORCHELASTIC_ENABLE_FILE_TIMER="1")
    assert not any(line.split("=")[0] in left for line in printed.splitlines())
    assert "TORCHELASTIC_ENABLE_FILE_TIMER=1" in printed


def launched(script: str, *arguments: object, **variables: str) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        ["bash", f"launch/{script}", *map(str, arguments)],
        env={**environment(), **variables},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=300,
    )


@pytest.mark.slow
def test_bad_input_is_reported_once_by_every_launcher(dataset: Path, tmp_path: Path) -> None:
    config, runs = write_config(tmp_path / "tiny.yaml", global_batch=3, micro_batch=2), tmp_path / "runs"
    given = ("--config", config, "--shards", dataset, "--runs", runs)
    for command in (
        ("train.sh", "--cpu", 2, *given, "--fold", 0),
        ("train.sh", "--fold-per-gpu", "--ranks", 2, *given),
        ("pipeline.sh", "--cpu", 2, "--folds", 2, *given),
    ):
        done = launched(*command)
        assert (done.returncode, done.stdout) == (2, ""), command
        lines = done.stderr.splitlines()
        assert len(lines) == 2 and all("global_batch 3 is not a multiple" in line for line in lines), lines
    done = launched("predict.sh", "--cpu", 2, *given)
    assert done.returncode == 2 and len(done.stderr.splitlines()) == 1 and "fold0: not trained" in done.stderr
    assert not runs.exists()


@pytest.mark.slow
def test_training_starts_despite_foreign_variables_and_without_an_address(dataset: Path, tmp_path: Path) -> None:
    """The host's name does not resolve, as in some containers."""
    can = subprocess.run(["unshare", "--uts", "hostname", "no-such-host"], capture_output=True)
    if can.returncode:
        pytest.skip("no right to give this process a host name of its own")
    stages = [{"name": "only", "epochs": 1}]
    config, runs = write_config(tmp_path / "tiny.yaml", stages=stages), tmp_path / "runs"
    left = {"MASTER_ADDR": "node1", "MASTER_PORT": "1", "WORLD_SIZE": "4", "LOCAL_RANK": "3", "PET_NNODES": "2"}
    given = f"--config {config} --shards {dataset} --runs {runs} --fold 0"
    done = subprocess.run(
        ["unshare", "--uts", "bash", "-c", f"hostname no-such-host; exec bash launch/train.sh --cpu 2 {given}"],
        env={**environment(), **left},
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert "starts from random weights" in done.stdout and "is trained" in done.stdout


@pytest.mark.slow
def test_each_fold_gets_one_of_the_visible_gpus(dataset: Path, node: Path, tmp_path: Path) -> None:
    config, runs = write_config(tmp_path / "tiny.yaml", stages=[{"name": "only", "epochs": 1}]), tmp_path / "runs"
    notes = tmp_path / "notes"
    notes.mkdir()
    (notes / "sitecustomize.py").write_text(
        "import os, sys\n"
        "words = ' '.join(sys.orig_argv)\n"
        "if ' train ' in words and '--dry-run' not in words and '--fold' in words:\n"
        f"    with open({str(notes / 'log')!r}, 'a') as log:\n"
        "        log.write(words.split('--fold ')[1][0] + ' ' + os.environ['CUDA_VISIBLE_DEVICES'] + chr(10))\n"
    )
    variables = {"PATH": f"{node / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": f"{notes}:{ROOT}"}
    given = ("--config", config, "--shards", dataset, "--runs", runs)
    done = launched("train.sh", "--fold-per-gpu", *given, CUDA_VISIBLE_DEVICES="GPU-bbb,GPU-aaa", **variables)
    assert done.returncode == 0, done.stderr[-2000:]
    told = sorted(set((notes / "log").read_text().splitlines()))
    assert told == ["0 GPU-bbb", "1 GPU-aaa"]
    done = launched("train.sh", "--fold-per-gpu", "0-1", *given, CUDA_VISIBLE_DEVICES="GPU-bbb", **variables)
    assert done.returncode == 2 and "more folds than the 1 GPUs" in done.stderr


@pytest.mark.parametrize("script", ["prepare", "train_folds", "predict", "sweep"])
def test_batch_script_submitted_from_another_folder_says_so(script: str, tmp_path: Path) -> None:
    done = subprocess.run(
        ["bash", ROOT / f"slurm/{script}.sbatch"],
        env={"PATH": os.environ["PATH"], "SLURM_SUBMIT_DIR": str(tmp_path)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 2
    assert done.stderr == f"error: {tmp_path} is not the checkout: submit from there, or export PNEUMO_HOME\n"


@pytest.mark.slow
def test_monitor_listens_on_this_host_only(tmp_path: Path) -> None:
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
        # /proc shows 127.0.0.1 as 0100007F, and a listening socket as state 0A.
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


def test_what_a_launcher_waits_for_is_killed_with_it(tmp_path: Path) -> None:
    written = tmp_path / "pid"
    line = f"source launch/shell.sh; source launch/common.sh; shielded bash -c 'echo $$ >{written}; exec sleep 60'"
    with subprocess.Popen(["bash", "-c", line], cwd=ROOT) as outer:
        deadline = time.monotonic() + 20
        while not written.exists() or not written.read_text().endswith("\n"):
            assert time.monotonic() < deadline
            time.sleep(0.02)
        inner = int(written.read_text())
        assert Path(f"/proc/{inner}").exists()
        outer.kill()
    while (status := Path(f"/proc/{inner}/stat")).exists() and status.read_text().rpartition(")")[2].split()[0] != "Z":
        assert time.monotonic() < deadline
        time.sleep(0.02)
