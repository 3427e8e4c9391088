"""All checks of a node in the order of the report: gathers the facts of each, and lets it look at them."""

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
from pneumo_dist.doctor.findings import Finding
from pneumo_dist.doctor.job import Job, job_of
from pneumo_dist.doctor.preflight import Check, TrainingPlan, judged, preflight_checks
from pneumo_dist.doctor.probes import Crash, TorchFacts
from shards.dataset.table import Shards
from shards.errors import InputError


@dataclass(frozen=True)
class DoctorOptions:
    """What is to train here; `path` None is an experiment of default values, `ranks` None is one per GPU."""

    experiment: Experiment
    path: Path | None
    shards: Path | None
    runs: Path | None
    cpu: bool
    ranks: int | None


def examine(asked: DoctorOptions, env: Mapping[str, str]) -> tuple[Job, list[Finding]]:
    """Return the job that this node is in, and what all checks find."""
    torch, smi = probes.torch_facts(asked.cpu), Smi(fault="not asked") if asked.cpu else query_smi()
    known = None if isinstance(torch, Crash) else torch
    gpus = len(known.gpus) if known and not asked.cpu else 0
    job = job_of(socket.gethostname(), env, gpus, asked.ranks)
    checks: list[Check] = [
        ("torch", lambda: libraries.check_torch(torch)),
        *_library_checks(known, smi, job, asked.experiment),
        *([] if asked.cpu else _gpu_checks(known, smi, job)),
        *_node_checks(job, asked),
        ("network", lambda: _network(job)),
        *_input_checks(job, asked),
        *preflight_checks(_planned(asked, job, known), env),
    ]
    return job, [finding for name, look in checks for finding in judged(name, look)]


def _planned(asked: DoctorOptions, job: Job, torch: TorchFacts | None) -> TrainingPlan:
    """Return what this node's job would train: all folds. Without a torch that works, no network is made."""
    folds: tuple[int, ...] = ()
    with suppress(InputError, OSError):  # told of the shards
        folds = tuple(Shards(asked.shards).folds()) if asked.shards is not None else ()
    path = asked.path if torch is not None and not torch.import_fault else None
    world, on_gpu = job.world, job.gpus > 0
    return TrainingPlan(asked.experiment, path, asked.shards, asked.runs, folds, world, job.ranks, on_gpu, True)


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
    listed = visible_gpus(smi.gpus, job.env.get("CUDA_VISIBLE_DEVICES"))
    numbers = {each.index for each in listed}
    links = {pair: kind for pair, kind in smi.links if numbers.issuperset(pair)}
    checks.append(("GPU settings", lambda: gpu.check_settings(listed)))
    checks.append(("GPU links", lambda: gpu.check_links(links)))
    return checks


def _node_checks(job: Job, asked: DoctorOptions) -> list[Check]:
    def shared_memory() -> list[Finding]:
        needed = node.shared_memory_bytes(asked.experiment, job.ranks)
        return node.check_shared_memory(node.free_bytes(Path("/dev/shm")), needed, job.ranks if job.gpus else 0)

    checks: list[Check] = [("NUMA", lambda: node.check_numa(job, shutil.which("numactl") is not None))]
    # Other systems keep shared memory elsewhere.
    return [("/dev/shm", shared_memory), *checks] if sys.platform == "linux" else checks


def _network(job: Job) -> list[Finding]:
    route = network.default_route(_text("/proc/net/route"))
    addresses = network.host_addresses(job.host)
    name = network.check_host_name(addresses, job, route)
    return [*name, *network.check_interfaces(network.read_interfaces(), addresses, route, job)]


def _input_checks(job: Job, asked: DoctorOptions) -> list[Check]:
    shards, runs = asked.shards, asked.runs
    checks: list[Check] = []
    if shards is not None:
        checks.append(("shards", lambda: inputs.check_shards(shards)))
    if runs is not None:
        checks.append(
            ("run folder", lambda: run_folder.check_run_folder(runs, job.nodes, _text("/proc/self/mountinfo")))
        )
    return checks


def _text(path: str) -> str:
    """Return a file of the kernel's; empty on systems that have none."""
    try:
        return Path(path).read_text()
    except OSError:
        return ""
