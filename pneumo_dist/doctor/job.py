"""The job that would train: this node, its ranks, and the number of nodes."""

from collections.abc import Mapping
from dataclasses import dataclass

from pneumo_dist.ranks.environment import launched_rank


@dataclass(frozen=True)
class Job:
    """A training job as this node sees it.

    Attributes:
        host: Name of this node.
        nodes: Number of nodes.
        ranks: Number of ranks on this node.
        gpus: Number of GPUs that the ranks may use, 0 on the CPU.
        env: Environment variables of the ranks.
    """

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
    """Return the job that the environment of SLURM or torchrun describes.

    The number of ranks on this node is `ranks`, or else torchrun's, or else one per GPU, or else one.
    """
    launched = launched_rank(env)
    return Job(host, node_count(env), ranks or (launched.local_world if launched else 0) or gpus or 1, gpus, env)


def node_count(env: Mapping[str, str]) -> int:
    """Return the number of nodes that train together, by SLURM's variables or torchrun's."""
    launched = launched_rank(env)
    spanned = -(-launched.world // launched.local_world) if launched and launched.local_world else 0
    return max(1, spanned, *(_number(env, name) for name in ("SLURM_NNODES", "SLURM_JOB_NUM_NODES")))


def _number(env: Mapping[str, str], name: str) -> int:
    """Return the number in a variable; 0 if it is unset or not a number."""
    text = env.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else 0
