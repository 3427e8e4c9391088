"""Checks of the node's resources: shared memory, open files, CPUs and NUMA."""

import math
import os
import resource
from pathlib import Path

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.doctor.findings import Finding, error, ok, readable_size, warning
from pneumo_dist.doctor.job import Job
from pneumo_dist.ranks.cpus import loader_threads
from shards.dataset.table import Shards

# Core time of a PNG film of 1024 px: decoding, checksums and parameters of the augmentation.
_PNG_SECONDS, _PNG_SIDE = 9.1e-3, 1024
# Images/s that an H100 trains of a U-Net on se_resnext50 at 512 px, by the roofline (docs/scaling.md).
_RATE, _RATE_SIDE = 654.0, 512
# Size of /dev/shm that NCCL's documentation requires of a container.
NCCL_BYTES = 2**30
# Libraries, logs, sockets and pipes, with a margin.
OTHER_FILES = 256
CONNECTIONS = 4


def shared_memory_bytes(experiment: Experiment, ranks: int, allowed: float) -> int:
    """Return the maximum bytes of /dev/shm that the loaders' batches need.

    The torch loader's worker processes pass batches through shared memory: `prefetch` batches per worker and the one in
    use, for training and again for validation. The memory of the DALI loader's processes is not in /dev/shm. `allowed`
    is the node's number of CPUs.
    """
    data = experiment.data
    if data.loader != "torch":
        return 0
    channels, value = experiment.model.in_channels, 2 if data.image_dtype == "float16" else 4
    training = (stage.image_size**2 * stage.micro_batch for stage in experiment.stages)
    evaluation = (stage.film_size**2 * stage.eval_batch for stage in experiment.stages)
    largest = max(*training, *evaluation) * (channels * value + 1)
    threads = loader_threads(data.threads, allowed, ranks)
    return ranks * 2 * (threads * data.prefetch + 1) * largest


def check_shared_memory(free: int | None, needed: int, gpu_ranks: int) -> list[Finding]:
    """Check that /dev/shm has room for the loaders' batches and for NCCL's buffers between the ranks of a node.

    Args:
        free: Free bytes, None if there is no /dev/shm.
        needed: Maximum bytes of the loaders' batches.
        gpu_ranks: Number of ranks on this node's GPUs.
    """
    fix = "give the container more (Docker: --shm-size=8g or --ipc=host), remount /dev/shm, or lower data.threads"
    if free is None:
        severity = error if needed else warning
        return [severity("/dev/shm", "does not exist", fix)]
    room = f"{readable_size(free)} free"
    demand = f"the loader's batches need up to {readable_size(needed)}" if needed else "the loader needs none"
    if free < needed:
        return [error("/dev/shm", f"{room}, {demand}", fix)]
    if gpu_ranks > 1 and free < needed + NCCL_BYTES:
        return [warning("/dev/shm", f"{room}; NCCL may need {readable_size(NCCL_BYTES)} between ranks", fix)]
    return [ok("/dev/shm", f"{room}, {demand}")]


def free_bytes(path: Path) -> int | None:
    """Return the bytes that a user may still write to a file system; None if the folder is missing."""
    try:
        statistics = os.statvfs(path)
    except OSError:
        return None
    return statistics.f_bavail * statistics.f_frsize


def open_files(experiment: Experiment, shards: int, world: int, threads: int) -> tuple[int, int]:
    """Return how many files a rank's process certainly opens, and how many it may open.

    Each of the `shards` tars stays open. A batch of the torch loader's workers, which are `threads`, holds one file per
    tensor.
    """
    data = experiment.data
    batches = 2 * 3 * (threads * data.prefetch + 1) if data.loader == "torch" else 0
    return shards + batches, shards + batches + OTHER_FILES + CONNECTIONS * world


def check_open_files(limit: int, certain: int, likely: int) -> list[Finding]:
    """Check that the hard limit of open files suffices for the shards, the workers and the connections between ranks.

    The soft limit does not matter, because every command raises it to the hard one.
    """
    is_unlimited = limit in (resource.RLIM_INFINITY, -1)
    message = f"{'no limit' if is_unlimited else f'the limit is {limit}'}, a rank may need {likely}"
    if is_unlimited or limit >= likely:
        return [ok("open files", message)]
    severity = error if limit < certain else warning
    fix = f"as root, raise nofile to {likely} in /etc/security/limits.conf (Docker: --ulimit nofile={likely})"
    return [severity("open files", message, fix)]


def check_cpus(allowed: float, experiment: Experiment, ranks: int) -> list[Finding]:
    """Check that there is a CPU for each rank and each thread of its loader."""
    threads, share = loader_threads(experiment.data.threads, allowed, ranks), allowed / ranks
    message = f"{allowed:g} usable, {share:g} per rank; a rank computes on one and loads on {threads} (data.threads)"
    if share >= threads + 1 or (share >= 1 and threads == 1):
        return [ok("CPUs", message)]
    request = f"ask for {ranks * (threads + 1)} a node (sbatch --cpus-per-gpu, or --cpus-per-task on the CPU)"
    fix = f"{request}, start fewer ranks, or lower data.threads"
    return [warning("CPUs", message, fix)]


def decoding_cpus(shards: Shards, experiment: Experiment) -> int:
    """Return the number of CPUs that decode PNG films as fast as a GPU trains a U-Net on se_resnext50; 0 for JPEG.

    JPEG films are decoded on the GPU. Time grows with the pixels of a stored film, and a GPU's rate falls with those of
    the network's input.
    """
    if shards.manifest["codec"] != "png" or experiment.data.loader != "dali":
        return 0
    pixels = float((shards.column("image_height") * shards.column("image_width")).mean())
    side = min(stage.image_size for stage in experiment.stages)
    return math.ceil(_RATE * (_RATE_SIDE / side) ** 2 * _PNG_SECONDS * pixels / _PNG_SIDE**2)


def check_decoding(allowed: float, needed: int, ranks: int) -> list[Finding]:
    """Check that each GPU has the CPUs that decode its films."""
    if needed == 0 or allowed / ranks >= needed:
        return []
    message = f"{allowed / ranks:g} per GPU; decoding PNG films may take {needed} to keep a GPU busy"
    return [warning("decoding", message, f"build JPEG shards (--codec jpeg), or ask for {needed} cores a GPU")]


def check_numa(job: Job, has_numactl: bool, root: Path = Path("/")) -> list[Finding]:
    """Check that launch/numa.sh can bind each rank to the NUMA node of its GPU, if there are several."""
    nodes = _read(root / "sys/devices/system/node/has_cpu")
    if not job.gpus or not any(mark in nodes for mark in "-,"):
        return []
    status = _read(root / "proc/self/status").splitlines()
    bound = [line.split(":")[1].strip() for line in status if line.startswith("Cpus_allowed_list:")]
    if bound != [_read(root / "sys/devices/system/cpu/online")]:
        return [ok("NUMA", f"NUMA nodes {nodes}; this job has some of the CPUs, so the scheduler binds the ranks")]
    if has_numactl:
        return [ok("NUMA", f"NUMA nodes {nodes}; launch/train.sh binds each rank to its GPU's node")]
    message = f"NUMA nodes {nodes}, but no numactl: ranks are not bound to their GPU's node"
    return [warning("NUMA", message, "install numactl (apt-get install numactl); launch/train.sh then binds them")]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
