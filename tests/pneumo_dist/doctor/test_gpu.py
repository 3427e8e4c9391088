"""GPUs: reasons why torch cannot use them, settings and links, each with a fix."""

from dataclasses import replace
from typing import Any

import pytest
from only_finding import only

from pneumo_dist.doctor.driver import DriverFiles, Smi, SmiGpu
from pneumo_dist.doctor.findings import Status
from pneumo_dist.doctor.gpu import check_driver, check_gpus, check_links, check_settings, driver_cuda, runs_on
from pneumo_dist.doctor.probes import GpuFacts, TorchFacts

ARCHS = ("sm_75", "sm_80", "sm_86", "sm_90", "sm_100", "sm_120", "compute_120")
A100 = GpuFacts(name="NVIDIA A100-SXM4-80GB", memory=80 * 2**30, capability=(8, 0), error="")
PRESENT = DriverFiles(is_loaded=True, devices=("nvidia0",), pci_gpus=1, has_library=True)
ABSENT = DriverFiles(is_loaded=False, devices=(), pci_gpus=0, has_library=False)
LISTED = SmiGpu(0, "GPU-11aa", A100.name, "535.104.05", "Default", "Disabled", 0)
OLD = Smi(gpus=(LISTED,), cuda=(12, 2))
NEW = Smi(gpus=(replace(LISTED, driver="580.65.06"),), cuda=(13, 0))


def torch_of(**changes: Any) -> TorchFacts:
    facts = {"version": "2.15.0", "cuda": "13.2", "archs": ARCHS, "has_gloo": True, "nccl": "2.30.7"}
    return TorchFacts.model_validate(facts | changes)


def test_gpu_that_torch_can_use() -> None:
    torch = torch_of(is_available=True, gpus=(A100, A100), driver_cuda=13000)
    only(
        check_driver(PRESENT, NEW, torch, {}), Status.OK, "driver 580.65.06 for CUDA 13.0; torch is built for CUDA 13.2"
    )
    only(check_gpus(torch, ranks=2), Status.OK, "2 x NVIDIA A100-SXM4-80GB, 80 GiB")


def test_node_without_gpu_trains_on_the_cpu() -> None:
    words = ("training would use the CPU", "--gpus-per-node", "--nv", "--gpus all", "pass --cpu")
    only(check_driver(ABSENT, Smi(error="nvidia-smi is not installed"), torch_of(), {}), Status.WARNING, *words)


def test_gpu_without_driver_trains_on_the_cpu_too() -> None:
    files = replace(ABSENT, pci_gpus=2)
    only(check_driver(files, Smi(), torch_of(), {}), Status.WARNING, "2 NVIDIA GPUs on the PCI bus", "580 or newer")


@pytest.mark.parametrize("visible", ["", "-1"])
def test_hidden_gpus(visible: str) -> None:
    findings = check_driver(PRESENT, NEW, torch_of(), {"CUDA_VISIBLE_DEVICES": visible})
    only(findings, Status.ERROR, f"CUDA_VISIBLE_DEVICES is '{visible}'", "unset it", "--gpus-per-node", "or pass --cpu")


def test_container_without_its_gpus() -> None:
    files = replace(PRESENT, has_library=False)
    findings = check_driver(files, Smi(error="nvidia-smi is not installed"), torch_of(), {})
    only(findings, Status.ERROR, "libcuda.so.1", "Apptainer: --nv, Docker: --gpus all")


def test_driver_that_was_updated_under_a_running_node() -> None:
    smi = Smi(error="Failed to initialize NVML: Driver/library version mismatch")
    only(check_driver(PRESENT, smi, torch_of(), {}), Status.ERROR, "version mismatch", "reboot the node")


def test_job_without_a_gpu_on_a_node_that_has_some() -> None:
    only(check_driver(PRESENT, Smi(error="No devices were found"), torch_of(), {}), Status.ERROR, "--gpus-per-node")
    files = replace(PRESENT, devices=())
    only(check_driver(files, Smi(error="x"), torch_of(), {}), Status.ERROR, "this job has no GPU", "--gpus-per-node")


def test_torch_without_cuda() -> None:
    only(check_driver(PRESENT, NEW, torch_of(cuda=None), {}), Status.ERROR, "without CUDA", "torch 2.11 or newer")


@pytest.mark.parametrize("driver", [0, 12020])
def test_driver_that_is_too_old_for_torch(driver: int) -> None:
    words = ("driver 535.104.05 supports CUDA 12.2 at most, torch is built for CUDA 13.2", "to 580", "dali-cuda12")
    only(check_driver(PRESENT, OLD, torch_of(driver_cuda=driver), {}), Status.ERROR, *words)


def test_other_errors_of_torch_are_quoted() -> None:
    torch = torch_of(init_error="CUDA unknown error - this may be due to\nan incorrectly set up environment")
    only(check_driver(PRESENT, NEW, torch, {}), Status.ERROR, "CUDA unknown error", "Xid lines in dmesg")


def test_driver_is_reported_if_torch_cannot_be_imported() -> None:
    only(check_driver(PRESENT, NEW, None, {}), Status.OK, "driver 580.65.06; without torch")
    only(check_driver(PRESENT, Smi(error="it hangs"), None, {}), Status.ERROR, "it hangs")


def test_compatibility_libraries_count() -> None:
    assert driver_cuda(torch_of(driver_cuda=13020), OLD) == (13, 2)
    assert driver_cuda(torch_of(), OLD) == driver_cuda(None, OLD) == (12, 2)
    assert driver_cuda(None, Smi()) is None


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((7, 0), ARCHS, False),
        ((7, 5), ARCHS, True),
        ((8, 9), ARCHS, True),
        ((9, 0), ("sm_80", "sm_86"), False),
        ((9, 0), ("sm_80", "compute_80"), True),
        ((12, 1), ARCHS, True),
        ((10, 3), ("sm_100a",), False),
        ((10, 0), ("sm_100a",), True),
        ((10, 3), ("sm_100f",), True),
        ((8, 0), ("sm_86",), False),
        ((9, 0), ("gfx90a",), False),
    ],
)
def test_architectures(capability: tuple[int, int], archs: tuple[str, ...], runs: bool) -> None:
    assert runs_on(capability, archs) is runs


def test_gpu_that_this_torch_has_no_code_for() -> None:
    v100 = GpuFacts(name="Tesla V100", memory=2**34, capability=(7, 0), error="no kernel image is available")
    findings = check_gpus(torch_of(is_available=True, gpus=(v100,)), ranks=1)
    only(
        findings, Status.ERROR, "GPU 0, Tesla V100, is sm_70", "sm_75 sm_80", "train on another GPU", "built for sm_70"
    )


@pytest.mark.parametrize(
    ("fault", "words"),
    [
        (
            "CUDA error: uncorrectable ECC error encountered",
            ("uncorrectable ECC", "Xid lines", "take the node out of use"),
        ),
        ("CUDA-capable device(s) is/are busy or unavailable", ("busy", "exclusive mode", "belong to another process")),
    ],
)
def test_gpu_that_cannot_be_used(fault: str, words: tuple[str, ...]) -> None:
    gpus = (A100, A100.model_copy(update={"error": fault}))
    only(check_gpus(torch_of(is_available=True, gpus=gpus), ranks=2), Status.ERROR, "GPU 1", *words)


def test_gpu_without_properties() -> None:
    lost = GpuFacts(name="GPU 0", memory=0, capability=(0, 0), error="GPU is lost")
    only(check_gpus(torch_of(is_available=True, gpus=(lost,)), ranks=1), Status.ERROR, "GPU is lost")


def test_more_ranks_than_gpus() -> None:
    listed, ranks = check_gpus(torch_of(is_available=True, gpus=(A100,)), ranks=4)
    assert listed.status is Status.OK
    only([ranks], Status.ERROR, "4 ranks on this node, but torch sees 1 GPU", "one rank per GPU")


@pytest.mark.parametrize(
    ("change", "status", "words"),
    [
        ({"compute_mode": "Prohibited"}, Status.ERROR, ("Prohibited", "nvidia-smi -i 0 -c DEFAULT")),
        ({"compute_mode": "Exclusive_Process"}, Status.OK, ("one process per GPU",)),
        ({"mig": "Enabled"}, Status.WARNING, ("divided by MIG", "CUDA_VISIBLE_DEVICES=MIG-", "nvidia-smi -i 0 -mig 0")),
        ({"memory_errors": 3}, Status.WARNING, ("3 uncorrected memory errors", "nvidia-smi -i 0 --gpu-reset")),
    ],
)
def test_settings(change: dict[str, Any], status: Status, words: tuple[str, ...]) -> None:
    assert check_settings((LISTED,)) == []
    only(check_settings((replace(LISTED, **change),)), status, *words)


def test_links() -> None:
    assert check_links({}) == []
    only(check_links({(0, 1): "NV18", (0, 2): "NV12"}), Status.OK, "NVLink between all pairs (NV12, NV18)")
    only(check_links({(0, 1): "PIX", (0, 2): "NV12"}), Status.OK, "PCIe between some pairs (NV12, PIX)")
    words = ("across sockets (SYS), which is slow, between 1 of 2 pairs, e.g. GPU 0 and 2", "CUDA_VISIBLE_DEVICES")
    only(check_links({(0, 1): "NODE", (0, 2): "SYS"}), Status.WARNING, *words)
