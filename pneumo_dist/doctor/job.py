"""Where training would run: this node, its ranks, and how many nodes there are."""

from collections.abc import Mapping
from dataclasses import dataclass

from pneumo_dist.ranks.environment import launched_rank


@dataclass(frozen=True)
class Job:
    """`nodes` that train together, `ranks` on this one; `gpus` that its ranks may use, 0 where they use the CPU."""

    host: str
    nodes: int
    ranks: int
    gpus: int
    env: Mapping[str, str]

    @property
    def world(self) -> int:
        return self.nodes * self.ranks

    @property
    def is_distributed(self) -> bool:
        return self.world > 1

    def __str__(self) -> str:
        return f"{self.host}: nodes {self.nodes}, ranks per node {self.ranks}, on {'GPUs' if self.gpus else 'the CPU'}"


def job_of(host: str, env: Mapping[str, str], gpus: int, ranks: int | None) -> Job:
    """Return the job that the environment of SLURM or torchrun tells of; alone, one rank per GPU, or one."""
    place = launched_rank(env)
    return Job(host, node_count(env), ranks or (place.local_world if place else 0) or gpus or 1, gpus, env)


def node_count(env: Mapping[str, str]) -> int:
    """Return the nodes that train together: those of the SLURM job, or those that torchrun's ranks span."""
    place = launched_rank(env)
    spanned = -(-place.world // place.local_world) if place and place.local_world else 0
    return max(1, spanned, *(_number(env, name) for name in ("SLURM_NNODES", "SLURM_JOB_NUM_NODES")))


def _number(env: Mapping[str, str], name: str) -> int:
    """Return a variable's number; 0 where it is unset or no number."""
    text = env.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0
