"""What the node gives a rank: shared memory, open files, CPUs, NUMA."""

import os
import resource
from pathlib import Path

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.doctor.findings import Finding, error, ok, size_of, warning
from pneumo_dist.doctor.job import Job

# What NCCL's documentation asks of a container's /dev/shm.
NCCL_BYTES = 2**30
# Libraries, logs, sockets and pipes, with room to spare.
OTHER_FILES = 256
CONNECTIONS = 4


def shared_memory_bytes(experiment: Experiment, ranks: int) -> int:
    """Return what the loaders' batches take of /dev/shm at most, in bytes.

    The torch loader's worker processes hand batches over in shared memory: `prefetch` each, and the one in use, for
    training and again for validation. The DALI graph has no worker processes.
    """
    data = experiment.data
    if data.loader != "torch":
        return 0
    channels, value = experiment.model.in_channels, 2 if data.image_dtype == "float16" else 4
    pixels = (stage.image_size**2 for stage in experiment.stages)
    films = (max(stage.micro_batch, stage.eval_batch) for stage in experiment.stages)
    largest = max(side * count for side, count in zip(pixels, films, strict=True)) * (channels * value + 1)
    return ranks * 2 * (data.threads * data.prefetch + 1) * largest


def check_shared_memory(free: int | None, needed: int, gpu_ranks: int) -> list[Finding]:
    """Does /dev/shm hold the batches in flight, and NCCL's buffers between the ranks of a node?"""
    mend = "give the container more (Docker: --shm-size=8g or --ipc=host), remount /dev/shm, or lower data.threads"
    if free is None:
        grade = error if needed else warning
        return [grade("/dev/shm", "there is none", mend)]
    room = f"{size_of(free)} free"
    if free < needed:
        return [error("/dev/shm", f"{room}, the loader's batches take up to {size_of(needed)}", mend)]
    if gpu_ranks > 1 and free < needed + NCCL_BYTES:
        return [warning("/dev/shm", f"{room}; NCCL may want {size_of(NCCL_BYTES)} between ranks", mend)]
    used = f"the loader's batches take up to {size_of(needed)}" if needed else "the loader needs none"
    return [ok("/dev/shm", f"{room}, {used}")]


def free_bytes(path: Path) -> int | None:
    """Return the bytes that a user may still write to a file system; None where the folder is missing."""
    try:
        found = os.statvfs(path)
    except OSError:
        return None
    return found.f_bavail * found.f_frsize


def open_files(experiment: Experiment, shards: int, world: int) -> tuple[int, int]:
    """Return how many files a process of a rank certainly opens, and how many it may open.

    Every tar that it reads from stays open. A batch of the torch loader's workers holds one file per tensor.
    """
    data = experiment.data
    batches = 2 * 3 * (data.threads * data.prefetch + 1) if data.loader == "torch" else 0
    return shards + batches, shards + batches + OTHER_FILES + CONNECTIONS * world


def check_open_files(limit: int, certain: int, likely: int) -> list[Finding]:
    """Is the limit of open files high enough for the shards, the workers and the connections between ranks?

    Every command raises its own limit to the hard one.
    """
    if limit in (resource.RLIM_INFINITY, -1) or limit >= likely:
        told = "no limit" if limit in (resource.RLIM_INFINITY, -1) else f"a limit of {limit}"
        return [ok("open files", f"{told}, a rank may want {likely}")]
    grade = error if limit < certain else warning
    mend = f"as root raise nofile to {likely} in /etc/security/limits.conf (Docker: --ulimit nofile={likely})"
    return [grade("open files", f"a limit of {limit}, a rank may want {likely}", mend)]


def allowed_cpus(root: Path = Path("/")) -> float:
    """Return the CPUs that this process may use: those it is bound to, or a container's quota where that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(float(bound), cpu_quota(root) or float(bound))


def cpu_quota(root: Path) -> float | None:
    """Return the least quota of this process's control groups (version 2), in CPUs; None where there is none."""
    try:
        lines = (root / "proc/self/cgroup").read_text().splitlines()
    except OSError:
        return None
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), None)
    if own is None:
        return None
    top = root / "sys/fs/cgroup"
    folders = [top / own, *(top / own).parents]
    quotas = [_quota(folder / "cpu.max") for folder in folders if folder == top or top in folder.parents]
    return min((quota for quota in quotas if quota is not None), default=None)


def _quota(path: Path) -> float | None:
    try:
        quota, period = path.read_text().split()
    except (OSError, ValueError):
        return None
    return None if quota == "max" else int(quota) / int(period)


def check_cpus(allowed: float, experiment: Experiment, ranks: int) -> list[Finding]:
    """Are there CPUs for each rank's loader, and one for the rank itself?"""
    threads, each = experiment.data.threads, allowed / ranks
    found = f"{allowed:g} allowed, {each:g} per rank; a rank computes on one and loads on {threads} (data.threads)"
    if each >= threads + 1 or (each >= 1 and threads == 1):
        return [ok("CPUs", found)]
    mend = f"ask for {ranks * (threads + 1)} (sbatch --cpus-per-task), start fewer ranks, or lower data.threads"
    return [warning("CPUs", found, mend)]


def check_numa(job: Job, has_numactl: bool, root: Path = Path("/")) -> list[Finding]:
    """Will launch/numa.sh bind each rank beside its GPU, where the node has more than one NUMA node?"""
    nodes = _read(root / "sys/devices/system/node/has_cpu")
    if not job.gpus or not any(mark in nodes for mark in "-,"):
        return []
    status = _read(root / "proc/self/status").splitlines()
    bound = [line.split(":")[1].strip() for line in status if line.startswith("Cpus_allowed_list:")]
    if bound != [_read(root / "sys/devices/system/cpu/online")]:
        return [ok("NUMA", f"NUMA nodes {nodes}; this job has a part of the CPUs, binding ranks is the scheduler's")]
    if has_numactl:
        return [ok("NUMA", f"NUMA nodes {nodes}; launch/train.sh binds each rank beside its GPU")]
    found = f"NUMA nodes {nodes}, but no numactl: ranks are not bound beside their GPUs"
    return [warning("NUMA", found, "install numactl (apt-get install numactl); launch/train.sh then binds them")]


def _read(path: Path) -> str:
    try:
        return path.read_text().strip()
    except OSError:
        return ""
