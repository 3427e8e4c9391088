"""Whether torch, what training imports, the collectives and DALI are there and fit the driver."""

import re

from pneumo_dist.doctor.findings import Finding, error, ok, warning
from pneumo_dist.doctor.job import Job
from pneumo_dist.doctor.probes import Crash, DaliFacts, TorchFacts

OLDEST_TORCH, OLDEST_DALI = (2, 11), (2, 0)
# The oldest driver of each CUDA generation, of NVIDIA's "CUDA Compatibility", minor version compatibility.
OLDEST_DRIVER = {12: "525", 13: "580"}
EXTRAS = {12: "dali-cuda12", 13: "dali-cuda13"}

SETUP = "run 'bash launch/setup.sh', or 'pip install -c constraints.txt -e .'"


def check_torch(facts: TorchFacts | Crash) -> list[Finding]:
    """Is torch there, and new enough?"""
    if isinstance(facts, Crash):
        return [error("torch", f"cannot be imported: {facts.reason}", f"install it again: {SETUP}")]
    runtime = f"CUDA runtime {facts.cuda}" if facts.cuda else "a build without CUDA"
    found = f"{facts.version}, {runtime}"
    if version_of(facts.version) < OLDEST_TORCH:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return [error("torch", f"{found}; older than {oldest}", f"install torch {oldest} or newer: {SETUP}")]
    return [ok("torch", found)]


def version_of(text: str) -> tuple[int, int]:
    """Return major and minor of a version such as 2.11.0a0+git12; (0, 0) for what is none."""
    found = re.match(r"(\d+)\.(\d+)", text)
    return (int(found[1]), int(found[2])) if found else (0, 0)


def check_imports(facts: TorchFacts) -> list[Finding]:
    """Can what training imports be imported?"""
    if not facts.import_fault:
        return []
    mend = f"install it again: {SETUP}"
    if "torchvision" in facts.import_fault:
        mend = "torch and torchvision are of different builds; install both from one index: " + SETUP
    return [error("libraries", f"what training needs cannot be imported: {facts.import_fault}", mend)]


def check_collectives(facts: TorchFacts, job: Job) -> list[Finding]:
    """Are there gloo, which carries the ranks' agreements, and NCCL, which carries the gradients of GPUs?"""
    lacking = [] if facts.has_gloo else ["gloo"]
    if job.gpus and facts.nccl is None:
        lacking.append("NCCL")
    if lacking:
        grade = error if job.is_distributed else warning
        mend = "install a torch that has them (those of the registry for Linux do); one rank alone needs none"
        return [grade("collectives", f"torch is built without {' and '.join(lacking)}", mend)]
    return [ok("collectives", f"gloo, NCCL {facts.nccl}" if job.gpus else "gloo")]


def check_dali(
    facts: DaliFacts | Crash, distributions: tuple[str, ...], driver: tuple[int, int] | None, on_gpu: bool
) -> list[Finding]:
    """Does DALI run, and does the driver run DALI's CUDA?

    `driver` is the newest CUDA that the driver runs; None where there is none, and DALI needs none on the CPU.
    """
    extra = EXTRAS[12] if driver and driver[0] < 13 else EXTRAS[13]
    install = f'pip install -c constraints.txt -e ".[{extra}]"'
    if not distributions and isinstance(facts, Crash):
        return [error("DALI", "not installed", f"{install}, or set data.loader: torch in the config")]
    if len(distributions) > 1:
        found = f"{' and '.join(distributions)} are both installed, and their files replace each other"
        return [error("DALI", found, f"pip uninstall {' '.join(distributions)}, then {install}")]
    name = distributions[0] if distributions else "DALI"
    generation = dali_generation(distributions, facts)
    if on_gpu and driver and generation and generation > driver[0]:
        need = OLDEST_DRIVER.get(generation, "a newer one")
        found = f"{name} is built for CUDA {generation}, the driver runs CUDA {driver[0]}.{driver[1]}"
        return [error("DALI", found, f"pip uninstall {name}, then {install}; or update the driver to {need} or newer")]
    if isinstance(facts, Crash):
        fix = f"install it again: {install}, or set data.loader: torch in the config"
        return [error("DALI", f"{name} is installed, but its graph does not run: {facts.reason}", fix)]
    if version_of(facts.version) < OLDEST_DALI:
        oldest = ".".join(map(str, OLDEST_DALI))
        return [error("DALI", f"{name} {facts.version} is older than {oldest}", f"install a newer one: {install}")]
    if not facts.is_right:
        return [
            error("DALI", f"{name} {facts.version} decodes an image to other values", f"install it again: {install}")
        ]
    return [ok("DALI", f"{name} {facts.version}, a graph ran on the {'GPU' if on_gpu else 'CPU'}")]


def dali_generation(distributions: tuple[str, ...], facts: DaliFacts | Crash) -> int:
    """Return the CUDA generation that DALI is built for: 13 for nvidia-dali-cuda130; 0 where nothing tells."""
    found = re.search(r"cuda(\d\d)", distributions[0]) if distributions else None
    if found:
        return int(found[1])
    return int(str(facts.cuda)[:2]) if isinstance(facts, DaliFacts) and facts.cuda else 0
