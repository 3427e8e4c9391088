"""Nodes and ranks, as SLURM and torchrun set them."""

import pytest

from pneumo_dist.doctor.job import job_of, node_count

LAUNCHED = {"RANK": "0", "WORLD_SIZE": "8", "MASTER_ADDR": "alpha", "MASTER_PORT": "29500"}


@pytest.mark.parametrize(
    ("env", "nodes"),
    [
        ({}, 1),
        ({"SLURM_NNODES": "2"}, 2),
        ({"SLURM_NNODES": "1", "SLURM_JOB_NUM_NODES": "4"}, 4),
        (LAUNCHED | {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "8"}, 1),
        (LAUNCHED | {"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 2),
        (LAUNCHED | {"WORLD_SIZE": "5", "LOCAL_WORLD_SIZE": "4"}, 2),
        (LAUNCHED | {"WORLD_SIZE": "8"}, 1),
        ({"WORLD_SIZE": "8", "LOCAL_WORLD_SIZE": "4"}, 1),
        ({"SLURM_NNODES": "n0"}, 1),
    ],
)
def test_nodes(env: dict[str, str], nodes: int) -> None:
    assert node_count(env) == nodes


@pytest.mark.parametrize(
    ("env", "gpus", "option", "ranks"),
    [
        ({}, 0, None, 1),
        ({}, 4, None, 4),
        (LAUNCHED | {"LOCAL_WORLD_SIZE": "2"}, 4, None, 2),
        (LAUNCHED | {"LOCAL_WORLD_SIZE": "2"}, 4, 3, 3),
        ({"LOCAL_WORLD_SIZE": "2"}, 4, None, 4),
    ],
)
def test_ranks(env: dict[str, str], gpus: int, option: int | None, ranks: int) -> None:
    assert job_of("n0", env, gpus, option).ranks == ranks


def test_world_spans_nodes() -> None:
    job = job_of("n0", {"SLURM_NNODES": "2"}, 4, None)
    assert job.world == 8 and job.is_distributed
    assert str(job) == "n0: nodes 2, ranks per node 4, on GPUs"
    assert not job_of("n0", {}, 0, None).is_distributed
