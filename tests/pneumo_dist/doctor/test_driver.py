"""The driver's files and the output of nvidia-smi. The texts are shortened from real machines."""

from pathlib import Path

import pytest

from pneumo_dist.doctor import driver
from pneumo_dist.doctor.driver import (
    driver_files,
    is_hidden,
    parse_cuda,
    parse_gpus,
    parse_links,
    query_smi,
    visible_gpus,
)

LISTED = """\
0, GPU-11aa, NVIDIA A100-SXM4-80GB, 535.104.05, Default, Disabled, 0
1, GPU-22bb, NVIDIA A100-SXM4-80GB, 535.104.05, Exclusive_Process, Enabled, 3
2, GPU-33cc, NVIDIA GeForce RTX 4090, 535.104.05, Prohibited, [N/A], [Not Supported]
"""

NVLINK = """\
\t\x1b[4mGPU0\tGPU1\tGPU2\tNIC0\tCPU Affinity\tNUMA Affinity\tGPU NUMA ID\x1b[0m
GPU0\t X \tNV18\tNV18\tPIX\t0-23,96-119\t0\t\tN/A
GPU1\tNV18\t X \tNV18\tSYS\t0-23,96-119\t0\t\tN/A
GPU2\tNV18\tNV18\t X \tSYS\t24-47,120-143\t1\t\tN/A
NIC0\tPIX\tSYS\tSYS\t X \t\t\t\t

Legend:

  X    = Self
  SYS  = Connection traversing PCIe as well as the SMP interconnect between NUMA nodes (e.g., QPI/UPI)
  NV#  = Connection traversing a bonded set of # NVLinks

NIC Legend:

  NIC0: mlx5_0
"""


def put(root: Path, *names: str, content: str = "") -> None:
    for name in names:
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)


def test_node_without_gpu(tmp_path: Path) -> None:
    put(tmp_path, "sys/bus/pci/devices/0000:00:01.0/vendor", content="0x8086\n")
    files = driver_files(tmp_path)
    assert (files.is_loaded, files.devices, files.pci_gpus) == (False, (), 0)


@pytest.mark.parametrize("name", ["proc/driver/nvidia/version", "dev/nvidiactl"])
def test_driver_is_loaded_if_training_assumes_a_gpu(tmp_path: Path, name: str) -> None:
    put(tmp_path, name, "dev/nvidia0", "dev/nvidia1", "dev/nvidia-uvm", "dev/nvidia-modeset")
    files = driver_files(tmp_path)
    assert files.is_loaded and files.devices == ("nvidia0", "nvidia1")


def test_gpus_on_the_bus_are_display_and_3d_controllers_of_nvidia(tmp_path: Path) -> None:
    kinds = {"1": ("0x10de", "0x030200"), "2": ("0x10de", "0x040300"), "3": ("0x1002", "0x030000")}
    for number, (vendor, kind) in kinds.items():
        put(tmp_path, f"sys/bus/pci/devices/{number}/vendor", content=f"{vendor}\n")
        put(tmp_path, f"sys/bus/pci/devices/{number}/class", content=f"{kind}\n")
    assert driver_files(tmp_path).pci_gpus == 1


@pytest.mark.parametrize(
    ("banner", "version"),
    [
        ("| NVIDIA-SMI 535.104.05   Driver Version: 535.104.05   CUDA Version: 12.2     |", (12, 2)),
        ("| NVIDIA-SMI 610.43.02    KMD Version: 610.43.02     CUDA UMD Version: 13.3     |", (13, 3)),
        ("| NVIDIA-SMI 470.82.01    Driver Version: 470.82.01    CUDA Version: N/A |", None),
    ],
)
def test_cuda_of_the_banner(banner: str, version: tuple[int, int] | None) -> None:
    assert parse_cuda(banner) == version


def test_gpus_of_the_query() -> None:
    first, second, third = parse_gpus(LISTED)
    assert (first.index, first.name, first.driver) == (0, "NVIDIA A100-SXM4-80GB", "535.104.05")
    assert (first.compute_mode, first.mig, first.memory_errors) == ("Default", "Disabled", 0)
    assert (second.compute_mode, second.mig, second.memory_errors) == ("Exclusive_Process", "Enabled", 3)
    assert (third.compute_mode, third.mig, third.memory_errors) == ("Prohibited", "", 0)
    assert parse_gpus('Field "mig.mode.current" is not a valid field to query.\n') == ()


def test_links_of_the_matrix() -> None:
    assert dict(parse_links(NVLINK)) == {(0, 1): "NV18", (0, 2): "NV18", (1, 2): "NV18"}
    pair = "\tGPU0\tGPU1\tCPU Affinity\nGPU0\t X \tSYS\t0-31\nGPU1\tSYS\t X \t32-63\n"
    assert parse_links(pair) == (((0, 1), "SYS"),)
    assert parse_links("\tGPU0\tCPU Affinity\tNUMA Affinity\nGPU0\t X \t0-15\t0\n") == ()
    assert parse_links("Failed to initialize NVML") == ()


@pytest.mark.parametrize(
    ("visible", "indices"),
    [(None, [0, 1, 2]), ("1", [1]), ("2,0", [0, 2]), ("GPU-22", [1]), ("MIG-5", []), ("", [])],
)
def test_visible_gpus(visible: str | None, indices: list[int]) -> None:
    assert [gpu.index for gpu in visible_gpus(parse_gpus(LISTED), visible)] == indices


@pytest.mark.parametrize(("visible", "hidden"), [(None, False), ("", True), ("-1", True), ("0", False)])
def test_hidden_gpus(visible: str | None, hidden: bool) -> None:
    assert is_hidden(visible) is hidden


def smi(folder: Path, script: str) -> None:
    put(folder, "nvidia-smi", content=f"#!/bin/sh\n{script}\n")
    (folder / "nvidia-smi").chmod(0o755)


def test_all_three_outputs_of_nvidia_smi_are_parsed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path, "topo", content=NVLINK)
    put(tmp_path, "listed", content=LISTED)
    banner = "echo '| NVIDIA-SMI 535.104.05  Driver Version: 535.104.05  CUDA Version: 12.2 |'"
    smi(tmp_path, f"case $1 in topo) cat {tmp_path}/topo;; --query*) cat {tmp_path}/listed;; *) {banner};; esac")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    output = query_smi()
    assert (output.error, output.driver, output.cuda) == ("", "535.104.05", (12, 2))
    assert (len(output.gpus), len(output.links)) == (3, 3)


@pytest.mark.parametrize(
    ("script", "message"),
    [
        ("echo 'Failed to initialize NVML: Driver/library version mismatch'; exit 18", "version mismatch"),
        ("echo 'No devices were found'; exit 6", "No devices were found"),
        ("exit 9", "exit code 9"),
    ],
)
def test_nvidia_smi_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, script: str, message: str) -> None:
    smi(tmp_path, script)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    output = query_smi()
    assert message in output.error and output.gpus == ()


def test_nvidia_smi_that_hangs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    smi(tmp_path, "exec sleep 60")
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(driver, "SECONDS", 0.2)
    assert "timed out" in query_smi().error


def test_no_nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert query_smi().error == "nvidia-smi is not installed"
