"""Two ranks on GPUs or on the CPU make the same step as one rank with all films."""

import json
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from gpu.learners import FCN_NORM, ROOT, SGD, batch_of, child_environment, learner_of, parts_of, take

from pneumo_dist.config.experiment import RuntimeConfig
from pneumo_dist.ranks.precision import configure
from pneumo_dist.ranks.ranks import Ranks, pick_device, process_group
from shards.parent import die_with_parent

WORLD = 2
# A mean over pixels does not depend on the distribution of films.
LOSS = {"bce": 1, "dice": 0, "focal": 0}


@contextmanager
def joined(kind: str, rank: int) -> Iterator[Ranks]:
    """Join the other rank: on one GPU each, on the CPU, or both on one GPU, which NCCL refuses."""
    if kind != "one GPU":
        with process_group(cpu=kind == "CPU") as ranks:
            yield ranks
        return
    device = pick_device(0, cpu=False)
    dist.init_process_group("gloo", rank=rank, world_size=WORLD)
    control = dist.new_group(backend="gloo")
    assert isinstance(control, dist.ProcessGroup)
    try:
        yield Ranks(rank, WORLD, 0, device, control)
    finally:
        dist.destroy_process_group()


def stepped(ranks: Ranks, compile: bool) -> dict[str, list[float]]:
    """Make three steps of four films over all ranks. Returns all weights."""
    configure(RuntimeConfig(tf32=False))
    micro = 4 // ranks.world
    learner = learner_of(
        ranks,
        {**FCN_NORM, "sync_batch_norm": True},
        data={"channels_last": True},
        runtime={"compile": compile},
        micro_batch=micro,
        loss=LOSS,
        optim={**SGD, "clip_norm": 1.0},
    )
    for done in range(3):
        own = parts_of(batch_of(4, seed=done), micro)[ranks.rank]
        take(learner, [own], done)
    learner.share_buffers()
    return {name: value.cpu().double().flatten().tolist() for name, value in learner.model.state_dict().items()}


def on_rank(rank: int, kind: str, compile: bool, port: int, folder: str) -> None:
    die_with_parent()
    torch.set_num_threads(1)
    local = rank if kind == "GPUs" else 0
    variables = {"RANK": rank, "LOCAL_RANK": local, "WORLD_SIZE": WORLD, "MASTER_ADDR": "127.0.0.1"}
    os.environ.update({name: str(value) for name, value in {**variables, "MASTER_PORT": port}.items()})
    with joined(kind, rank) as ranks:
        (Path(folder) / f"{rank}.json").write_text(json.dumps(stepped(ranks, compile)))


def main(kind: str, compile: bool, folder: str) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    arguments = (kind, compile, port, folder)
    # CUDA does not survive a fork.
    torch.multiprocessing.start_processes(on_rank, arguments, nprocs=WORLD, start_method="spawn")


@pytest.mark.slow
@pytest.mark.parametrize("compile", [False, True], ids=["eager", "compiled"])
def test_two_ranks_make_the_step_of_one(ranks: Ranks, tmp_path: Path, compile: bool) -> None:
    """Batch-norm statistics are over the films of both."""
    kind = "CPU" if ranks.device.type == "cpu" else "GPUs" if torch.cuda.device_count() >= WORLD else "one GPU"
    command = [sys.executable, "-m", "gpu.test_ranks", kind, str(int(compile)), str(tmp_path)]
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr[-3000:]
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in range(WORLD))
    assert first == second
    # One rank has all films in one batch, and therefore their statistics.
    expected = stepped(ranks, compile=False)
    assert list(first) == list(expected)
    for name, values in expected.items():
        torch.testing.assert_close(torch.tensor(first[name]), torch.tensor(values), rtol=1e-3, atol=1e-4)


if __name__ == "__main__":
    main(sys.argv[1], bool(int(sys.argv[2])), sys.argv[3])
