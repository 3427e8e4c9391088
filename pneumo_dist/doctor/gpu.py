"""Checks of the GPUs: driver, support by torch, settings and links."""

import re
from collections import Counter
from collections.abc import Mapping

from pneumo_dist.doctor.driver import DriverFiles, Smi, SmiGpu, is_hidden
from pneumo_dist.doctor.findings import Finding, error, ok, warning
from pneumo_dist.doctor.libraries import EXTRAS, OLDEST_DRIVER, OLDEST_TORCH
from pneumo_dist.doctor.probes import TorchFacts
from shards.console import counted

ASK = "ask the scheduler for GPUs (e.g. sbatch --gpus-per-node=1)"
CONTAINER = "start the container with its GPUs (Apptainer: --nv, Docker: --gpus all, pyxis: a job with GPUs)"
OR_CPU = "or pass --cpu"
LOGS = "check nvidia-smi and the Xid lines in dmesg"
# Capability of a GPU whose properties cannot be read.
UNKNOWN = (0, 0)


def driver_cuda(torch: TorchFacts | None, smi: Smi) -> tuple[int, int] | None:
    """Return the newest CUDA that driver and compatibility libraries support; None without a driver."""
    if torch is not None and torch.driver_cuda:
        return torch.driver_cuda // 1000, torch.driver_cuda % 1000 // 10
    return smi.cuda


def check_driver(files: DriverFiles, smi: Smi, torch: TorchFacts | None, env: Mapping[str, str]) -> list[Finding]:
    """Check that torch can use the GPUs, and explain why not.

    A node without a GPU or driver gets a warning, because training would use the CPU there.
    """
    if torch is not None and torch.is_available:
        cuda = driver_cuda(torch, smi) or (0, 0)
        driver = f"driver {smi.driver or 'of unknown version'} for CUDA {cuda[0]}.{cuda[1]}"
        return [ok("GPU driver", f"{driver}; torch is built for CUDA {torch.cuda}")]
    if not files.is_loaded:
        return [_without_driver(files)]
    if torch is None and smi.gpus and not is_hidden(env.get("CUDA_VISIBLE_DEVICES")):
        return [ok("GPU driver", f"driver {smi.driver}; without torch, the GPUs cannot be tried")]
    return [error("GPU driver", *_cause(files, smi, torch, env))]


def _without_driver(files: DriverFiles) -> Finding:
    if files.pci_gpus:
        message = f"{counted(files.pci_gpus, 'NVIDIA GPU')} on the PCI bus, but no driver; training would use the CPU"
        return warning("GPU driver", message, f"install NVIDIA's driver, {OLDEST_DRIVER[13]} or newer; {OR_CPU}")
    return warning("GPU driver", "no GPU here; training would use the CPU", f"{ASK}, or {CONTAINER}, {OR_CPU}")


def _cause(files: DriverFiles, smi: Smi, torch: TorchFacts | None, env: Mapping[str, str]) -> tuple[str, str]:
    """Return the most likely reason why torch cannot use a GPU that is present, and its fix."""
    if is_hidden(env.get("CUDA_VISIBLE_DEVICES")):
        message = f"CUDA_VISIBLE_DEVICES is {env['CUDA_VISIBLE_DEVICES']!r}, which hides every GPU"
        return message, f"unset it; if the scheduler set it, {ASK}, {OR_CPU}"
    if not files.has_library:
        message = "the driver is loaded, but its library libcuda.so.1 is missing"
        return message, f"{CONTAINER}; outside a container, install the driver's libraries; {OR_CPU}"
    if "mismatch" in smi.error:
        return smi.error, f"the driver was updated, but the old one is still loaded: reboot the node, {OR_CPU}"
    if "No devices" in smi.error or not files.devices:
        reason = smi.error or "no device file"
        return f"a driver is loaded, but this job has no GPU ({reason})", f"{ASK}, {OR_CPU}"
    if torch is not None and torch.cuda is None:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return "torch is built without CUDA", f"install torch {oldest} or newer with CUDA, {OR_CPU}"
    cuda = driver_cuda(torch, smi)
    if torch is not None and torch.cuda and cuda and cuda[0] < (needed := int(torch.cuda.split(".")[0])):
        message = f"driver {smi.driver} supports CUDA {cuda[0]}.{cuda[1]} at most, torch is built for CUDA {torch.cuda}"
        return message, (
            f"update the driver to {OLDEST_DRIVER.get(needed, 'a newer one')} or newer; or install a torch built for "
            f"CUDA {cuda[0]} and the extra {EXTRAS.get(cuda[0], EXTRAS[12])}; {OR_CPU}"
        )
    reason = (torch.init_error if torch is not None else "") or smi.error or "torch gives no reason"
    return f"a GPU is present, but cannot be used: {reason}", f"{LOGS}, {OR_CPU}"


def check_gpus(torch: TorchFacts, ranks: int) -> list[Finding]:
    """Check that torch supports each GPU, that each can compute, and that there is one per rank."""
    findings = []
    for index, gpu in enumerate(torch.gpus):
        major, minor = gpu.capability
        if gpu.capability != UNKNOWN and torch.archs and not runs_on(gpu.capability, torch.archs):
            message = f"GPU {index}, {gpu.name}, is sm_{major}{minor}; torch has code for {' '.join(torch.archs)}"
            fix = f"train on another GPU, or install a torch built for sm_{major}{minor}; {OR_CPU}"
            findings.append(error("GPU", message, fix))
        elif gpu.error:
            busy = "a GPU in exclusive mode may belong to another process; " if "busy" in gpu.error else ""
            fix = f"{busy}{LOGS}, take the node out of use, {OR_CPU}"
            findings.append(error("GPU", f"GPU {index}, {gpu.name}, cannot be used: {gpu.error}", fix))
    if not findings:
        findings.append(ok("GPU", _listed(torch)))
    if ranks > len(torch.gpus):
        message = f"{ranks} ranks on this node, but torch sees {counted(len(torch.gpus), 'GPU')}"
        fix = "start one rank per GPU (launch/train.sh --ranks, PNEUMO_RANKS_PER_NODE), or ask for more GPUs"
        findings.append(error("ranks", message, fix))
    return findings


def _listed(torch: TorchFacts) -> str:
    kinds = Counter((gpu.name, gpu.memory) for gpu in torch.gpus)
    return ", ".join(f"{count} x {name}, {memory / 2**30:.0f} GiB" for (name, memory), count in kinds.items())


def runs_on(capability: tuple[int, int], archs: tuple[str, ...]) -> bool:
    """Return whether torch's architectures (sm_90, sm_90a, compute_120) cover a GPU's compute capability.

    Binary code (`sm_`) runs on the same major version with the same or a newer minor version; with the suffix `a` it
    runs on its own capability only. PTX (`compute_`) is compiled for anything newer.
    """
    for arch in archs:
        match = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if match is None:
            continue
        built = int(match[2]), int(match[3])
        if built == capability:
            return True
        if match[4] == "a":
            continue
        if built <= capability and (match[1] == "compute" or built[0] == capability[0]):
            return True
    return False


def check_settings(gpus: tuple[SmiGpu, ...]) -> list[Finding]:
    """Check that compute mode, MIG and memory errors do not keep one rank per GPU from training."""
    findings = []
    for gpu in gpus:
        if gpu.compute_mode == "Prohibited":
            fix = f"as root: nvidia-smi -i {gpu.index} -c DEFAULT; {OR_CPU}"
            findings.append(error("compute mode", f"GPU {gpu.index} is in compute mode Prohibited", fix))
        if gpu.mig == "Enabled":
            message = f"GPU {gpu.index} is divided by MIG: a process sees one slice of it"
            undivide = f"nvidia-smi -i {gpu.index} -mig 0"
            fix = f"train with one rank on its slice (CUDA_VISIBLE_DEVICES=MIG-…), or as root: {undivide}"
            findings.append(warning("MIG", message, fix))
        if gpu.memory_errors:
            errors = counted(gpu.memory_errors, "uncorrected memory error")
            message = f"GPU {gpu.index} has had {errors} since the driver was loaded"
            fix = f"take the node out of use; as root: nvidia-smi -i {gpu.index} --gpu-reset"
            findings.append(warning("GPU memory", message, fix))
    modes = {gpu.compute_mode for gpu in gpus} - {"Prohibited"}
    if modes == {"Exclusive_Process"}:
        findings.append(ok("compute mode", "Exclusive_Process: one process per GPU, which is what training needs"))
    return findings


def check_links(links: Mapping[tuple[int, int], str]) -> list[Finding]:
    """Report how the GPUs of this node are linked."""
    if not links:
        return []
    kinds = sorted(set(links.values()))
    if all(kind.startswith("NV") for kind in kinds):
        return [ok("GPU links", f"NVLink between all pairs ({', '.join(kinds)})")]
    slow = [pair for pair, kind in links.items() if kind == "SYS"]
    if not slow:
        return [ok("GPU links", f"PCIe between some pairs ({', '.join(kinds)}), none across sockets")]
    pairs = f"{len(slow)} of {counted(len(links), 'pair')}, e.g. GPU {slow[0][0]} and {slow[0][1]}"
    fix = "train on the GPUs of one socket if they are enough (CUDA_VISIBLE_DEVICES)"
    return [warning("GPU links", f"PCIe across sockets (SYS), which is slow, between {pairs}", fix)]
