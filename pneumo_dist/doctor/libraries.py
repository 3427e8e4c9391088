"""Checks of the libraries: torch, training's imports, the collectives, DALI, and whether they fit the driver."""

import re

from pneumo_dist.doctor.findings import Finding, error, ok, warning
from pneumo_dist.doctor.job import Job
from pneumo_dist.doctor.probes import Crash, DaliFacts, TorchFacts

OLDEST_TORCH, OLDEST_DALI = (2, 11), (2, 0)
# Oldest driver for each CUDA major version, from NVIDIA's "CUDA Compatibility", minor version compatibility.
OLDEST_DRIVER = {12: "525", 13: "580"}
EXTRAS = {12: "dali-cuda12", 13: "dali-cuda13"}

SETUP = "run 'bash launch/setup.sh', or 'pip install -c constraints.txt -e .'"


def check_torch(facts: TorchFacts | Crash) -> list[Finding]:
    """Check that torch can be imported and is new enough."""
    if isinstance(facts, Crash):
        return [error("torch", f"cannot be imported: {facts.reason}", f"reinstall it: {SETUP}")]
    runtime = f"CUDA runtime {facts.cuda}" if facts.cuda else "a build without CUDA"
    message = f"{facts.version}, {runtime}"
    if version_of(facts.version) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return [error("torch", f"{message}; older than {oldest}", f"install torch {oldest} or newer: {SETUP}")]
    return [ok("torch", message)]


def version_of(text: str) -> tuple[int, int]:
    """Return the major and minor version in a text such as 2.11.0a0+git12; (0, 0) if there is none."""
    match = re.match(r"(\d+)\.(\d+)", text)
    return (int(match[1]), int(match[2])) if match else (0, 0)


def check_imports(facts: TorchFacts) -> list[Finding]:
    """Check that training's modules can be imported."""
    if not facts.import_error:
        return []
    fix = f"reinstall it: {SETUP}"
    if "torchvision" in facts.import_error:
        fix = "torch and torchvision come from different builds; install both from one index: " + SETUP
    return [error("libraries", f"training cannot be imported: {facts.import_error}", fix)]


def check_collectives(facts: TorchFacts, job: Job) -> list[Finding]:
    """Check that torch has gloo, which the ranks use to agree, and NCCL, which sums the gradients of GPUs."""
    missing = [] if facts.has_gloo else ["gloo"]
    if job.gpus and facts.nccl is None:
        missing.append("NCCL")
    if missing:
        severity = error if job.is_distributed else warning
        fix = "install a torch that has them (the registry's builds for Linux do); a single rank needs neither"
        return [severity("collectives", f"torch is built without {' and '.join(missing)}", fix)]
    return [ok("collectives", f"gloo, NCCL {facts.nccl}" if job.gpus else "gloo")]


def check_dali(
    facts: DaliFacts | Crash, distributions: tuple[str, ...], driver: tuple[int, int] | None, on_gpu: bool
) -> list[Finding]:
    """Check that DALI works, and that the driver supports the CUDA version it is built for.

    Args:
        facts: Result of running a small DALI graph.
        distributions: Names of the installed DALI packages.
        driver: Newest CUDA version that the driver supports, None without a driver.
        on_gpu: Whether the graph runs on a GPU; on the CPU, DALI needs no driver.
    """
    extra = EXTRAS[12] if driver and driver[0] < 13 else EXTRAS[13]
    install = f'pip install -c constraints.txt -e ".[{extra}]"'
    if not distributions and isinstance(facts, Crash):
        return [error("DALI", "not installed", f"{install}, or set data.loader: torch in the config")]
    if len(distributions) > 1:
        message = f"{' and '.join(distributions)} are both installed and overwrite each other's files"
        return [error("DALI", message, f"pip uninstall {' '.join(distributions)}, then {install}")]
    name = distributions[0] if distributions else "DALI"
    generation = dali_generation(distributions, facts)
    if on_gpu and driver and generation and generation > driver[0]:
        oldest = OLDEST_DRIVER.get(generation, "a newer one")
        message = f"{name} is built for CUDA {generation}, the driver supports CUDA {driver[0]}.{driver[1]}"
        fix = f"pip uninstall {name}, then {install}; or update the driver to {oldest} or newer"
        return [error("DALI", message, fix)]
    if isinstance(facts, Crash):
        fix = f"reinstall it: {install}, or set data.loader: torch in the config"
        return [error("DALI", f"{name} is installed, but its graph does not run: {facts.reason}", fix)]
    if version_of(facts.version) < OLDEST_DALI:
        oldest = ".".join(map(str, OLDEST_DALI))
        return [error("DALI", f"{name} {facts.version} is older than {oldest}", f"install a newer one: {install}")]
    if not facts.is_exact:
        return [error("DALI", f"{name} {facts.version} decodes an image to wrong values", f"reinstall it: {install}")]
    return [ok("DALI", f"{name} {facts.version}, a graph ran on the {'GPU' if on_gpu else 'CPU'}")]


def dali_generation(distributions: tuple[str, ...], facts: DaliFacts | Crash) -> int:
    """Return the CUDA major version that DALI is built for, such as 13 for nvidia-dali-cuda130; 0 if unknown."""
    match = re.search(r"cuda(\d\d)", distributions[0]) if distributions else None
    if match:
        return int(match[1])
    return int(str(facts.cuda)[:2]) if isinstance(facts, DaliFacts) and facts.cuda else 0
