"""The GPUs: driver, what torch can do with each, how they are set and linked."""

import re
from collections.abc import Mapping

from pneumo_dist.doctor.driver import DriverFiles, Smi, SmiGpu, is_hidden
from pneumo_dist.doctor.findings import Finding, error, ok, warning
from pneumo_dist.doctor.libraries import EXTRAS, OLDEST_DRIVER, OLDEST_TORCH
from pneumo_dist.doctor.probes import TorchFacts

ASK = "ask the scheduler for GPUs (as sbatch --gpus-per-node=1)"
CONTAINER = "start the container with its GPUs (Apptainer: --nv, Docker: --gpus all, pyxis: a job with GPUs)"
OR_CPU = "or give --cpu"
# The capability of a GPU that does not even tell its properties.
UNKNOWN = (0, 0)


def driver_cuda(torch: TorchFacts | None, smi: Smi) -> tuple[int, int] | None:
    """Return the newest CUDA that the driver runs, compatibility libraries included; None without a driver."""
    if torch is not None and torch.driver_cuda:
        return torch.driver_cuda // 1000, torch.driver_cuda % 1000 // 10
    return smi.cuda


def check_driver(files: DriverFiles, smi: Smi, torch: TorchFacts | None, env: Mapping[str, str]) -> list[Finding]:
    """Is there a GPU, and what keeps torch from it? Where training would use the CPU instead, a warning says so."""
    if torch is not None and torch.is_available:
        cuda = driver_cuda(torch, smi) or (0, 0)
        found = f"driver {smi.driver or 'of unknown version'} for CUDA {cuda[0]}.{cuda[1]}, torch's is {torch.cuda}"
        return [ok("GPU driver", found)]
    if not files.is_loaded:
        return [_without_driver(files)]
    if torch is None and smi.gpus and not is_hidden(env.get("CUDA_VISIBLE_DEVICES")):
        return [ok("GPU driver", f"driver {smi.driver}; torch cannot say whether it can use the GPUs")]
    return [error("GPU driver", *_hindrance(files, smi, torch, env))]


def _without_driver(files: DriverFiles) -> Finding:
    if files.pci_gpus:
        found = f"{files.pci_gpus} NVIDIA GPU on the PCI bus, but no driver; training would use the CPU"
        return warning("GPU driver", found, f"install NVIDIA's driver, {OLDEST_DRIVER[13]} or newer; {OR_CPU}")
    return warning("GPU driver", "no GPU here; training would use the CPU", f"{ASK}, or {CONTAINER}, {OR_CPU}")


def _hindrance(files: DriverFiles, smi: Smi, torch: TorchFacts | None, env: Mapping[str, str]) -> tuple[str, str]:
    """Return why a GPU that is present cannot be used, and the mend; the likeliest cause first."""
    if is_hidden(env.get("CUDA_VISIBLE_DEVICES")):
        found = f"CUDA_VISIBLE_DEVICES is {env['CUDA_VISIBLE_DEVICES']!r}, which hides every GPU"
        return found, f"unset it; where the scheduler set it, {ASK}, {OR_CPU}"
    if not files.has_library:
        found = "the driver is loaded, but its library libcuda.so.1 is not to be found"
        return found, f"{CONTAINER}; outside one, install the driver's libraries; {OR_CPU}"
    if "mismatch" in smi.fault:
        return smi.fault, f"the driver was updated while the old one runs: reboot the node, {OR_CPU}"
    if "No devices" in smi.fault or not files.devices:
        return (
            f"a driver is loaded, but no GPU is given to this job ({smi.fault or 'no device file'})",
            f"{ASK}, {OR_CPU}",
        )
    if torch is not None and torch.cuda is None:
        oldest = ".".join(map(str, OLDEST_TORCH))
        return "this torch is built without CUDA", f"install a torch {oldest} or newer with CUDA, {OR_CPU}"
    cuda = driver_cuda(torch, smi)
    if torch is not None and torch.cuda and cuda and cuda[0] < (needed := int(torch.cuda.split(".")[0])):
        found = f"driver {smi.driver} runs CUDA {cuda[0]}.{cuda[1]} at most, torch is built for CUDA {torch.cuda}"
        return found, (
            f"update the driver to {OLDEST_DRIVER.get(needed, 'a newer one')} or newer; or install a torch built for "
            f"CUDA {cuda[0]} and the extra {EXTRAS.get(cuda[0], EXTRAS[12])}; {OR_CPU}"
        )
    reason = (torch.refusal if torch is not None else "") or smi.fault or "torch gives no reason"
    return f"a GPU is present, but cannot be used: {reason}", f"look at nvidia-smi and at Xid lines of dmesg, {OR_CPU}"


def check_gpus(torch: TorchFacts, ranks: int) -> list[Finding]:
    """Can each GPU be used, by code that this torch has for it, and is there one for each rank?"""
    findings = []
    for index, gpu in enumerate(torch.gpus):
        major, minor = gpu.capability
        if gpu.capability != UNKNOWN and torch.archs and not runs_on(gpu.capability, torch.archs):
            found = f"GPU {index}, {gpu.name}, is sm_{major}{minor}; this torch has code for {' '.join(torch.archs)}"
            mend = f"train on another GPU, or install a torch built for sm_{major}{minor}; {OR_CPU}"
            findings.append(error("GPU", found, mend))
        elif gpu.fault:
            busy = "a GPU in exclusive mode may be another process's; " if "busy" in gpu.fault else ""
            mend = f"{busy}look at nvidia-smi and at Xid lines of dmesg, take the node out, {OR_CPU}"
            findings.append(error("GPU", f"GPU {index}, {gpu.name}, cannot be used: {gpu.fault}", mend))
    if not findings:
        findings.append(ok("GPU", _listed(torch)))
    if ranks > len(torch.gpus):
        found = f"{ranks} ranks on this node, {len(torch.gpus)} GPUs that torch sees"
        mend = "start one rank per GPU (launch/train.sh --ranks, PNEUMO_RANKS_PER_NODE), or ask for more GPUs"
        findings.append(error("ranks", found, mend))
    return findings


def _listed(torch: TorchFacts) -> str:
    kinds: dict[tuple[str, int], int] = {}
    for gpu in torch.gpus:
        kind = gpu.name, gpu.memory
        kinds[kind] = kinds.get(kind, 0) + 1
    return ", ".join(f"{count} x {name}, {memory / 2**30:.0f} GiB" for (name, memory), count in kinds.items())


def runs_on(capability: tuple[int, int], archs: tuple[str, ...]) -> bool:
    """Return whether a build's architectures (as sm_90, sm_90a, compute_120) cover a GPU.

    Binary code runs on its own major version from its minor on, that of suffix a on exactly its own GPU; PTX
    (`compute_`) is compiled for anything newer.
    """
    for arch in archs:
        found = re.fullmatch(r"(sm|compute)_(\d+)(\d)([af]?)", arch)
        if found is None:
            continue
        built = int(found[2]), int(found[3])
        if built == capability:
            return True
        if found[4] == "a":
            continue
        if built <= capability and (found[1] == "compute" or built[0] == capability[0]):
            return True
    return False


def check_settings(gpus: tuple[SmiGpu, ...]) -> list[Finding]:
    """Do compute mode, MIG and memory errors let one rank per GPU train?"""
    findings = []
    for gpu in gpus:
        if gpu.compute_mode == "Prohibited":
            found = f"GPU {gpu.index} is in compute mode Prohibited"
            findings.append(error("compute mode", found, f"as root: nvidia-smi -i {gpu.index} -c DEFAULT; {OR_CPU}"))
        if gpu.mig == "Enabled":
            found = f"GPU {gpu.index} is divided by MIG: a process sees one slice of it"
            whole = f"nvidia-smi -i {gpu.index} -mig 0"
            mend = f"train with one rank on its slice (CUDA_VISIBLE_DEVICES=MIG-…), or as root: {whole}"
            findings.append(warning("MIG", found, mend))
        if gpu.memory_errors:
            found = f"GPU {gpu.index} has {gpu.memory_errors} uncorrected memory errors since the driver was loaded"
            mend = f"take the node out, as root: nvidia-smi -i {gpu.index} --gpu-reset"
            findings.append(warning("GPU memory", found, mend))
    modes = {gpu.compute_mode for gpu in gpus} - {"Prohibited"}
    if modes == {"Exclusive_Process"}:
        findings.append(ok("compute mode", "Exclusive_Process: one process per GPU, as training uses them"))
    return findings


def check_links(links: Mapping[tuple[int, int], str]) -> list[Finding]:
    """How do the GPUs of this node reach each other?"""
    if not links:
        return []
    kinds = sorted(set(links.values()))
    if all(kind.startswith("NV") for kind in kinds):
        return [ok("GPU links", f"NVLink between all ({', '.join(kinds)})")]
    slow = [pair for pair, kind in links.items() if kind == "SYS"]
    if not slow:
        return [ok("GPU links", f"PCIe between some ({', '.join(kinds)}), none across sockets")]
    found = f"PCIe across sockets (SYS) between {len(slow)} of {len(links)} pairs, as GPU {slow[0][0]} and {slow[0][1]}"
    mend = "train on GPUs of one socket where they are enough (CUDA_VISIBLE_DEVICES); gradients travel slowly here"
    return [warning("GPU links", found, mend)]
