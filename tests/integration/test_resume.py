"""A run that is stopped anywhere and resumed ends with the same bits as one that is not."""

import contextlib
import json
import os
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from damage import flip_bit
from integration import hold
from integration.conftest import ROOT, environment, last_state, launcher, must, run_module, write_config
from tools.equality import run_differences

pytestmark = pytest.mark.slow

FOLD = "tiny/fold0"


def train_arguments(config: Path, dataset: Path, runs: Path) -> tuple[object, ...]:
    return ("pneumo_dist", "train", "--cpu", "--config", config, "--fold", 0, "--shards", dataset, "--runs", runs)


def train_script(ranks: int, config: Path, dataset: Path, runs: Path, *options: str) -> list[str]:
    """Return the command that a user types."""
    arguments = [*options, *map(str, train_arguments(config, dataset, runs)[2:])]
    return ["bash", "launch/train.sh", "--ranks", str(ranks), *arguments]


def processes_in(runs: Path) -> list[int]:
    """Return the ids of processes with this runs folder on their command line."""
    found = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            if str(runs).encode() in path.read_bytes().split(b"\0"):
                found.append(int(path.parent.name))
    return found


def wait_for(process: "subprocess.Popen[str]", is_there: Callable[[], object]) -> None:
    deadline = time.monotonic() + 120
    while not is_there():
        assert process.poll() is None, "the run ended before it could be stopped"
        assert time.monotonic() < deadline, "the run did not get there"
        time.sleep(0.005)


def kill_at(moment: str, ranks: int, config: Path, dataset: Path, runs: Path) -> None:
    """Kill a launcher and all its ranks at one moment (hold.py), and wait until no process is left."""
    marker = runs.parent / moment
    arguments = [str(Path(hold.__file__)), moment, str(marker), *map(str, train_arguments(config, dataset, runs)[1:])]
    process = subprocess.Popen(
        launcher(ranks) + arguments,
        env=environment(),
        cwd=ROOT,
        start_new_session=True,
        text=True,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        wait_for(process, marker.exists)
    finally:
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    deadline = time.monotonic() + 30
    while left := processes_in(runs):
        assert time.monotonic() < deadline, f"processes {left} outlived their launcher"
        time.sleep(0.05)


def position_of(stage: Path) -> dict[str, object]:
    position = last_state(stage)["position"]
    assert isinstance(position, dict)
    return position


Straight = Callable[[int], tuple[Path, Path]]


@pytest.fixture(scope="module")
def undisturbed(dataset: Path, tmp_path_factory: pytest.TempPathFactory) -> Straight:
    """Returns the config and runs folder of an uninterrupted run on some ranks. Each is trained once."""
    made: dict[int, tuple[Path, Path]] = {}

    def run(ranks: int) -> tuple[Path, Path]:
        if ranks not in made:
            folder = tmp_path_factory.mktemp("straight")
            config = write_config(folder / "tiny.yaml")
            must(run_module(*train_arguments(config, dataset, folder / "runs"), ranks=ranks))
            made[ranks] = config, folder / "runs"
        return made[ranks]

    return run


@pytest.fixture(params=[1, 2], ids=["1 rank", "2 ranks"])
def straight(request: pytest.FixtureRequest, undisturbed: Straight) -> tuple[int, Path, Path]:
    """An uninterrupted run: its ranks, config and runs folder."""
    return request.param, *undisturbed(request.param)


@pytest.mark.parametrize("ranks", [1, 2])
def test_killed_at_each_kind_of_moment_ends_with_the_same_bits(
    undisturbed: Straight, dataset: Path, tmp_path: Path, ranks: int
) -> None:
    config, straight = undisturbed(ranks)
    runs = tmp_path / "runs"
    first, second = (runs / FOLD / stage for stage in ("first", "second"))

    kill_at("during_a_write", ranks, config, dataset, runs)
    steps = [path.name[:13] for path in (first / "checkpoints").glob("step-*.pt")]
    assert steps == ["step-00000001"] and len(list((first / "checkpoints").glob(".step-00000002.*.tmp"))) == 1
    kill_at("in_mid_epoch", ranks, config, dataset, runs)
    assert len((first / "metrics.jsonl").read_text().splitlines()) == 1
    kill_at("during_validation", ranks, config, dataset, runs)
    assert len((first / "metrics.jsonl").read_text().splitlines()) == 1
    kill_at("between_stages", ranks, config, dataset, runs)
    assert position_of(first)["finished"]
    assert not list(second.glob("checkpoints/*.pt"))

    must(run_module(*train_arguments(config, dataset, runs), ranks=ranks))
    assert run_differences(straight / FOLD, runs / FOLD) == []


def test_killed_on_four_ranks_ends_with_the_same_bits(undisturbed: Straight, dataset: Path, tmp_path: Path) -> None:
    """From three ranks on, DDP's sums depend on its buckets, which a resumed run makes again."""
    config, straight = undisturbed(4)
    runs = tmp_path / "runs"
    kill_at("in_mid_epoch", 4, config, dataset, runs)
    assert len((runs / FOLD / "first/metrics.jsonl").read_text().splitlines()) == 1
    must(run_module(*train_arguments(config, dataset, runs), ranks=4))
    assert run_differences(straight / FOLD, runs / FOLD) == []


def test_classifier_killed_on_two_ranks_ends_with_the_same_bits_and_predicts_the_same_bytes(
    dataset: Path, tmp_path: Path
) -> None:
    network = {"arch": "classifier", "encoder": "tu-mobilenetv3_small_050", "in_channels": 1, "classification": {}}
    loss = {"bce": 0, "dice": 0, "focal": 0, "classification": 1}
    config, runs = write_config(tmp_path / "tiny.yaml", model=network, loss=loss, micro_batch=2), tmp_path / "runs"
    must(run_module(*train_arguments(config, dataset, tmp_path / "straight"), ranks=2))
    kill_at("in_mid_epoch", 2, config, dataset, runs)
    must(run_module(*train_arguments(config, dataset, runs), ranks=2))
    assert run_differences(tmp_path / "straight" / FOLD, runs / FOLD) == []
    found = []
    for ranks in (1, 2):
        out = tmp_path / f"predicted{ranks}"
        words = ("pneumo_dist", "predict", "--cpu", "--config", config, "--shards", dataset, "--runs", runs)
        must(run_module(*words, "--split", "oof", "--fold", 0, "--out", out, ranks=ranks))
        found.append({path.name: path.read_bytes() for path in out.iterdir() if path.is_file()})
    assert found[0] == found[1] and set(found[0]) == {"manifest.json", "predictions.parquet", "probabilities.csv"}


def test_signal_saves_and_exits_75_and_the_same_command_resumes(
    straight: tuple[int, Path, Path], dataset: Path, tmp_path: Path
) -> None:
    ranks, config, runs = straight
    command = train_script(ranks, config, dataset, tmp_path)
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, start_new_session=True, text=True)
    fold = tmp_path / FOLD
    wait_for(process, lambda: list(fold.glob("first/checkpoints/step-00000002-*.pt")))
    process.send_signal(signal.SIGUSR1)
    assert process.wait(timeout=60) == 75
    marker = json.loads((fold / "preempted.json").read_text())
    assert marker["step"] == position_of(fold / marker["stage"])["total"]
    assert subprocess.run(command, env=environment(), cwd=ROOT, timeout=300).returncode == 0
    assert not (fold / "preempted.json").exists()
    assert run_differences(runs / FOLD, tmp_path / FOLD) == []


def test_two_nodes_stop_together_and_end_with_the_bits_of_two_ranks(
    undisturbed: Straight, dataset: Path, tmp_path: Path
) -> None:
    """Runs the commands for two hosts on this one."""
    config, runs = undisturbed(2)
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        head = f"127.0.0.1:{probe.getsockname()[1]}"

    def start() -> list["subprocess.Popen[str]"]:
        lines = [
            train_script(1, config, dataset, tmp_path, "--nodes", "2", "--node", str(node), "--head", head)
            for node in (0, 1)
        ]
        return [
            subprocess.Popen(line, env=environment(), cwd=ROOT, start_new_session=True, text=True) for line in lines
        ]

    nodes = start()
    wait_for(nodes[0], lambda: list((tmp_path / FOLD).glob("first/checkpoints/step-00000002-*.pt")))
    nodes[1].send_signal(signal.SIGUSR1)
    assert [node.wait(timeout=60) for node in nodes] == [75, 75]
    assert [node.wait(timeout=300) for node in start()] == [0, 0]
    assert run_differences(runs / FOLD, tmp_path / FOLD) == []


def test_killed_rank_restarts_and_ends_with_the_same_bits(undisturbed: Straight, dataset: Path, tmp_path: Path) -> None:
    config, runs = undisturbed(2)
    command = train_script(2, config, dataset, tmp_path, "--max-restarts", "2")
    process = subprocess.Popen(command, env=environment(), cwd=ROOT, start_new_session=True, text=True)
    wait_for(process, lambda: list((tmp_path / FOLD).glob("first/checkpoints/step-00000002-*.pt")))
    (rank,) = [each for each in processes_in(tmp_path) if b"RANK=1" in variables_of(each)]
    os.kill(rank, signal.SIGKILL)
    assert process.wait(timeout=300) == 0
    assert run_differences(runs / FOLD, tmp_path / FOLD) == []


def variables_of(process: int) -> list[bytes]:
    return Path(f"/proc/{process}/environ").read_bytes().split(b"\0")


def test_finished_run_is_unchanged(straight: tuple[int, Path, Path], dataset: Path) -> None:
    ranks, config, runs = straight
    before = {path: path.stat().st_mtime_ns for path in runs.rglob("*.pt")}
    must(run_module(*train_arguments(config, dataset, runs), ranks=ranks))
    assert {path: path.stat().st_mtime_ns for path in runs.rglob("*.pt")} == before


def test_damaged_newest_checkpoint_falls_back_with_a_warning(
    straight: tuple[int, Path, Path], dataset: Path, tmp_path: Path
) -> None:
    ranks, config, runs = straight
    subprocess.run(["cp", "-a", str(runs / "tiny"), str(tmp_path)], check=True)
    newest = (tmp_path / f"{FOLD}/second/checkpoints/last").resolve()
    flip_bit(newest)
    result = run_module(*train_arguments(config, dataset, tmp_path), ranks=ranks)
    must(result)
    assert newest.name in result.stderr
    assert run_differences(runs / FOLD, tmp_path / FOLD) == []


def test_changed_learning_rate_is_refused_by_name(straight: tuple[int, Path, Path], dataset: Path) -> None:
    _, config, runs = straight
    resolved = (runs / f"{FOLD}/config.yaml").read_text()
    result = run_module(*train_arguments(config, dataset, runs), "--set", "optim.lr=1e-5")
    assert (runs / f"{FOLD}/config.yaml").read_text() == resolved
    assert result.returncode == 2
    assert "optim.lr" in result.stderr
    assert "Traceback" not in result.stderr


def test_input_error_of_rank_0_ends_every_rank(dataset: Path, tmp_path: Path) -> None:
    config = write_config(tmp_path / "tiny.yaml", init={"experiment": "none", "stage": "first"})
    result = run_module(*train_arguments(config, dataset, tmp_path), ranks=2)
    assert result.returncode == 1, "torchrun's own"
    assert result.stderr.count("none/fold0/first/checkpoints: no checkpoints; train that fold first") == 1, (
        "of the first rank alone"
    )
