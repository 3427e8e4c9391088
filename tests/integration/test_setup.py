"""What setup.sh installs for which driver, and whether it leaves a machine's own torch alone."""

import re
import subprocess
import sys
from pathlib import Path

import pytest
from integration.conftest import ROOT


def driver_sh(call: str, *arguments: object, path: Path | None = None, site: Path | None = None) -> tuple[int, str]:
    """Call a function of launch/driver.sh as setup.sh does; return its exit code and what it printed."""
    script = f'set -euo pipefail; source launch/driver.sh; {call} "$@"'
    environment = {"PATH": f"{path}:/usr/bin:/bin" if path else "/usr/bin:/bin"}
    done = subprocess.run(
        ["bash", "-c", script, "bash", *map(str, arguments)],
        env={**environment, **({"PYTHONPATH": str(site)} if site else {})},
        cwd=ROOT,
        capture_output=True,
        text=True,
    )
    assert not done.stderr
    return done.returncode, done.stdout.strip()


@pytest.mark.parametrize(
    ("says", "version", "extra"),
    [
        ("echo 580.65.06", "580", "dali-cuda13"),
        ("echo 595.10; echo 595.10", "595", "dali-cuda13"),
        ("echo 570.86.15", "570", "dali-cuda12"),
        ("echo 540.4.0", "540", "dali-cuda12"),  # as a Jetson says
        ("echo NVIDIA-SMI has failed; exit 9", "", "dali-cuda13"),
        ("exit 6", "", "dali-cuda13"),
    ],
)
def test_driver_decides_which_dali_is_installed(tmp_path: Path, says: str, version: str, extra: str) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{says}\n")
    program.chmod(0o755)
    assert driver_sh("driver_version", path=tmp_path) == (0, version)
    assert driver_sh("dali_extra", version) == (0, extra)


def test_machine_without_a_driver_gets_the_newer_one() -> None:
    assert driver_sh("driver_version") == (0, "")
    assert driver_sh("dali_extra", "") == (0, "dali-cuda13")


@pytest.mark.parametrize(
    ("version", "available", "has_vision", "taken"),
    [
        ("2.11.0+cu128", True, True, True),
        ("2.15.0", True, True, True),
        ("2.10.1", True, True, False),
        ("2.11.0+cpu", False, True, False),
        ("2.12.0", True, False, False),
    ],
)
def test_torch_of_the_machine_is_taken_where_it_finds_the_gpu(
    tmp_path: Path, version: str, available: bool, has_vision: bool, taken: bool
) -> None:
    (tmp_path / "torch").mkdir()
    (tmp_path / "torch/__init__.py").write_text(
        f"__version__ = {version!r}\nclass cuda:\n    is_available = staticmethod(lambda: {available})\n"
    )
    (tmp_path / "torchvision.py").write_text("" if has_vision else "raise RuntimeError('of another torch')\n")
    code, _ = driver_sh("has_site_torch", sys.executable, site=tmp_path)
    assert (code == 0) == taken


def test_pins_of_torch_and_its_libraries_are_dropped_and_no_others() -> None:
    code, text = driver_sh("without_torch", "constraints.txt")
    before, after = (ROOT / "constraints.txt").read_text().split("\n"), text.split("\n")
    assert code == 0
    dropped = {line.partition("==")[0] for line in before if line and line not in after}
    assert {"torch", "torchvision", "triton", "nvidia-cublas", "nvidia-cudnn-cu13", "nvidia-nccl-cu13"} < dropped
    assert all(re.match(r"torch|triton|cuda-|nvidia-", name) for name in dropped)
    kept = {line.partition("==")[0] for line in after}
    assert {"nvidia-dali-cuda120", "nvidia-dali-cuda130", "nvidia-nvimgcodec-cu13", "numpy", "nvtx", "sympy"} < kept
