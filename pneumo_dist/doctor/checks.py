"""All checks of a node, in the order of the report."""

import shutil
import socket
import sys
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.doctor import gpu, inputs, libraries, network, node, probes, run_folder
from pneumo_dist.doctor.driver import Smi, driver_files, query_smi, visible_gpus
from pneumo_dist.doctor.findings import Check, Finding, run_checks
from pneumo_dist.doctor.job import Job, job_of
from pneumo_dist.doctor.preflight import TrainingPlan, preflight_checks
from pneumo_dist.doctor.probes import Crash, TorchFacts
from pneumo_dist.ranks.cpus import allowed_cpus
from shards.dataset.table import Shards
from shards.errors import InputError


@dataclass(frozen=True)
class DoctorOptions:
    """The training to check for.

    Attributes:
        experiment: The experiment to train.
        path: The experiment's file, None for an experiment with default values.
        shards: Folder of the shards, None to skip their checks.
        runs: Folder of all runs, None to skip its checks.
        cpu: Whether to train on the CPU.
        ranks: Ranks on this node, None for one per GPU.
    """

    experiment: Experiment
    path: Path | None
    shards: Path | None
    runs: Path | None
    cpu: bool
    ranks: int | None


def examine(options: DoctorOptions, env: Mapping[str, str]) -> tuple[Job, list[Finding]]:
    """Run all checks; return the job that this node belongs to, and the findings."""
    torch, smi = probes.torch_facts(options.cpu), Smi(error="not run") if options.cpu else query_smi()
    facts = None if isinstance(torch, Crash) else torch
    gpus = len(facts.gpus) if facts and not options.cpu else 0
    job = job_of(socket.gethostname(), env, gpus, options.ranks)
    checks: list[Check] = [
        ("torch", lambda: libraries.check_torch(torch)),
        *_library_checks(facts, smi, job, options.experiment),
        *([] if options.cpu else _gpu_checks(facts, smi, job)),
        *_node_checks(job, options),
        ("network", lambda: _network(job)),
        *_input_checks(job, options),
        *preflight_checks(_plan(options, job, facts), env),
    ]
    return job, run_checks(checks)


def _plan(options: DoctorOptions, job: Job, torch: TorchFacts | None) -> TrainingPlan:
    """Return the plan of training all folds. The network is only checked if torch works."""
    folds: tuple[int, ...] = ()
    with suppress(InputError, OSError):  # reported by the check of the shards
        folds = tuple(Shards(options.shards).folds()) if options.shards is not None else ()
    path = options.path if torch is not None and not torch.import_error else None
    world, on_gpu = job.world, job.gpus > 0
    return TrainingPlan(options.experiment, path, options.shards, options.runs, folds, world, job.ranks, on_gpu, True)


def _library_checks(torch: TorchFacts | None, smi: Smi, job: Job, experiment: Experiment) -> list[Check]:
    def dali() -> list[Finding]:
        on_gpu = job.gpus > 0
        facts, installed = probes.dali_facts(on_gpu), probes.dali_distributions()
        return libraries.check_dali(facts, installed, gpu.driver_cuda(torch, smi), on_gpu)

    checks: list[Check] = []
    if torch is not None:
        checks.append(("libraries", lambda: libraries.check_imports(torch)))
        checks.append(("collectives", lambda: libraries.check_collectives(torch, job)))
    if experiment.data.loader == "dali":
        checks.append(("DALI", dali))
    return checks


def _gpu_checks(torch: TorchFacts | None, smi: Smi, job: Job) -> list[Check]:
    checks: list[Check] = [("GPU driver", lambda: gpu.check_driver(driver_files(), smi, torch, job.env))]
    if torch is not None and torch.is_available:
        checks.append(("GPU", lambda: gpu.check_gpus(torch, job.ranks)))
    visible = visible_gpus(smi.gpus, job.env.get("CUDA_VISIBLE_DEVICES"))
    indices = {each.index for each in visible}
    links = {pair: kind for pair, kind in smi.links if indices.issuperset(pair)}
    checks.append(("GPU settings", lambda: gpu.check_settings(visible)))
    checks.append(("GPU links", lambda: gpu.check_links(links)))
    return checks


def _node_checks(job: Job, options: DoctorOptions) -> list[Check]:
    def shared_memory() -> list[Finding]:
        needed = node.shared_memory_bytes(options.experiment, job.ranks, allowed_cpus())
        return node.check_shared_memory(node.free_bytes(Path("/dev/shm")), needed, job.ranks if job.gpus else 0)

    checks: list[Check] = [("NUMA", lambda: node.check_numa(job, shutil.which("numactl") is not None))]
    # Other systems keep shared memory elsewhere.
    return [("/dev/shm", shared_memory), *checks] if sys.platform == "linux" else checks


def _network(job: Job) -> list[Finding]:
    route = network.default_route(_kernel_text("/proc/net/route"))
    addresses = network.host_addresses(job.host)
    name = network.check_host_name(addresses, job, route)
    return [*name, *network.check_interfaces(network.read_interfaces(), addresses, route, job)]


def _input_checks(job: Job, options: DoctorOptions) -> list[Check]:
    shards, runs = options.shards, options.runs
    checks: list[Check] = []
    if shards is not None:
        checks.append(("shards", lambda: inputs.check_shards(shards)))
    if runs is not None:
        mounts = _kernel_text("/proc/self/mountinfo")
        checks.append(("run folder", lambda: run_folder.check_run_folder(runs, job.nodes, mounts)))
    return checks


def _kernel_text(path: str) -> str:
    """Return the text of a file in /proc; empty on systems without it."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
