"""A run of two ranks that fails or hangs ends within seconds, with one line at the end and no process left."""

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from integration.conftest import ROOT, environment, write_config

from shards.dataset.table import Shards

pytestmark = pytest.mark.slow

ENDS_WITHIN = 15.0
LIMIT = 12.0
# As with NCCL, a rank that leaves the group waits for the others.
TRAIN = """
if __name__ == "__main__":
    import torch.distributed as dist
    leave = dist.destroy_process_group
    def destroy():
        dist.barrier()
        leave()
    dist.destroy_process_group = destroy
    from pneumo_dist.cli.app import main
    main()
"""


class Run:
    """Two ranks under the agent, in a separate process group."""

    def __init__(self, folder: Path, config: Path, shards: Path, **more: str) -> None:
        script = folder / "train.py"
        script.write_text(TRAIN)
        self.log = folder / "log"
        command = [
            "-m",
            "pneumo_dist.ranks.agent",
            "--standalone",
            "--nproc-per-node",
            "2",
            str(script),
            "train",
            "--cpu",
        ]
        arguments = ["--config", config, "--fold", 0, "--shards", shards, "--runs", folder / "runs"]
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, *command, *map(str, arguments)],
                cwd=ROOT,
                env={**environment(), **more},
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    def until(self, text: str, patience: float = 120.0) -> float:
        """Wait for a text in the log and return its time."""
        deadline = time.monotonic() + patience
        while text not in self.log.read_text():
            assert time.monotonic() < deadline and self.process.poll() is None, self.log.read_text()[-3000:]
            time.sleep(0.05)
        return time.monotonic()

    def ranks(self) -> list[int]:
        """Return the process of each rank, in rank order."""
        found = {}
        for path in Path("/proc").iterdir():
            try:
                if (
                    path.name.isdigit()
                    and int((path / "stat").read_text().rpartition(")")[2].split()[1]) == self.process.pid
                ):
                    names = (path / "environ").read_bytes().split(b"\0")
                    found[next(int(name[5:]) for name in names if name.startswith(b"RANK="))] = int(path.name)
            except (OSError, StopIteration):
                continue
        return [found[rank] for rank in sorted(found)]

    def end(self) -> float:
        """Wait for the end of the run and return its time."""
        self.process.wait(timeout=120)
        return time.monotonic()


@pytest.fixture
def started() -> Iterator[list[Run]]:
    runs: list[Run] = []
    yield runs
    for run in runs:
        run.process.kill()
        run.process.wait()


def gone(pids: list[int]) -> bool:
    return not any(Path(f"/proc/{pid}").exists() for pid in pids)


@pytest.mark.parametrize("loader", ["dali", "torch"])
def test_corrupt_film_on_one_rank_ends_both_with_one_line(
    dataset: Path, tmp_path: Path, started: list[Run], loader: str
) -> None:
    shutil.copytree(dataset, tmp_path / "shards")
    shards = Shards(tmp_path / "shards")
    row = int(shards.fold_rows(0, always_train=False)[0][3])
    tar = tmp_path / "shards" / str(shards.column("shard")[row])
    content = bytearray(tar.read_bytes())
    content[int(shards.column("image_offset")[row]) + 100] ^= 4
    tar.write_bytes(content)
    config = write_config(tmp_path / "tiny.yaml", data={"loader": loader, "threads": 1})
    started.append(run := Run(tmp_path, config, tmp_path / "shards"))
    key = str(shards.column("key")[row])
    told = run.until(key)
    ranks = run.ranks()
    assert run.end() - told < ENDS_WITHIN
    assert run.process.returncode == 2
    lines = run.log.read_text().splitlines()
    assert lines[-1].startswith("error: ") and key in lines[-1]
    assert sum(line.startswith("error: ") for line in lines) == 1
    assert "Traceback" not in run.log.read_text()
    assert gone(ranks)


def test_agent_killed_while_its_ranks_import_torch_leaves_no_process(dataset: Path, tmp_path: Path) -> None:
    config, mark = write_config(tmp_path / "tiny.yaml"), f"run-{os.getpid()}"
    command = ["-m", "pneumo_dist.ranks.agent", "--standalone", "--nproc-per-node", "2", "-m", "pneumo_dist", "train"]
    options = ["--cpu", "--config", config, "--fold", 0, "--shards", dataset, "--runs", tmp_path / "runs"]
    agent = subprocess.Popen([sys.executable, *command, *map(str, options)], env={**environment(), "MARK": mark})
    deadline = time.monotonic() + 60
    while len(ranks := processes_with(b"RANK=", mark)) < 2:
        assert time.monotonic() < deadline and agent.poll() is None
        time.sleep(0.01)
    agent.kill()
    agent.wait()
    deadline = time.monotonic() + ENDS_WITHIN
    while left := processes_with(b"MARK=", mark):
        assert time.monotonic() < deadline, f"{left} of {ranks} are left"
        time.sleep(0.05)


def processes_with(name: bytes, mark: str) -> list[int]:
    """Return the processes of the run `mark` that have an environment variable."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            names = path.read_bytes().split(b"\0")
        except OSError:
            continue
        if f"MARK={mark}".encode() in names and any(each.startswith(name) for each in names):
            found.append(int(path.parent.name))
    return found


@pytest.mark.parametrize("rank", [0, 1])
def test_rank_stopped_between_epochs_ends_the_run_within_its_limit(
    dataset: Path, tmp_path: Path, started: list[Run], rank: int
) -> None:
    config = write_config(
        tmp_path / "tiny.yaml", runtime={"watchdog_minutes": LIMIT / 60, "start_minutes": 1}, epochs=50
    )
    started.append(run := Run(tmp_path, config, dataset))
    run.until("first epoch 1")
    ranks = run.ranks()
    os.kill(ranks[rank], signal.SIGSTOP)
    stopped = time.monotonic()
    took = run.end() - stopped
    lines = run.log.read_text().splitlines()
    assert took < LIMIT + ENDS_WITHIN, run.log.read_text()[-2000:]
    (line,) = [line for line in lines if line.startswith("error: rank") and "no progress" in line]
    assert f"check rank {rank} on" in line
    assert gone(ranks)


def test_rank_that_hangs_in_its_exit_is_ended_by_the_agent(tmp_path: Path) -> None:
    script = tmp_path / "rank.py"
    script.write_text(
        "import os, time\n"
        "from shards.parent import die_with_parent\n"
        "die_with_parent()\n"
        "rank = os.environ['RANK']\n"
        "open(rank + '.pid', 'w').write(str(os.getpid()))\n"
        "time.sleep(60 if rank == '1' else 3)\n"
    )
    start = (
        "import sys; from pneumo_dist.ranks import agent; agent._EXIT_SECONDS = 2.0; sys.exit(agent.main(sys.argv[1:]))"
    )
    options = ["--standalone", "--local-addr", "127.0.0.1", "--nproc-per-node", "2", str(script)]
    done = subprocess.run(
        [sys.executable, "-c", start, *options],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: 1 rank did not end within 2 s of the others"
    ranks = [int((tmp_path / f"{rank}.pid").read_text()) for rank in (0, 1)]
    deadline = time.monotonic() + ENDS_WITHIN
    while not gone(ranks):
        assert time.monotonic() < deadline
        time.sleep(0.05)
