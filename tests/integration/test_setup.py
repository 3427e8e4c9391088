"""The packages that setup.sh installs for each driver, and when it keeps a machine's torch."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from integration.conftest import ROOT


def driver_sh(call: str, *arguments: object, path: Path | None = None, site: Path | None = None) -> tuple[int, str]:
    """Call a function of launch/driver.sh as setup.sh does. Returns its exit code and output."""
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
        ("echo 540.4.0", "540", "dali-cuda12"),  # of a Jetson
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


@pytest.mark.parametrize("extra", ["", "dali-cuda12", "dali-cuda13"])
def test_extra_of_the_caller_is_a_dali(extra: str) -> None:
    assert driver_sh("check_extra", extra) == (0, "")


@pytest.mark.parametrize("extra", ["cuda12", "dali-cuda14", "dali-cuda12 x", "dev"])
def test_other_extras_are_refused_before_anything_is_installed(extra: str, tmp_path: Path) -> None:
    shutil.copytree(ROOT / "launch", tmp_path / "launch")
    for name in ("pyproject.toml", "constraints.txt"):
        shutil.copy(ROOT / name, tmp_path)
    command = ["bash", "launch/setup.sh"]
    done = subprocess.run(
        command, cwd=tmp_path, env={"PATH": "/usr/bin:/bin", "EXTRA": extra}, capture_output=True, text=True
    )
    assert done.returncode == 2 and done.stderr == f"error: EXTRA={extra}: give dali-cuda12 or dali-cuda13\n"
    assert not (tmp_path / ".venv").exists()


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
def test_torch_of_the_machine_is_used_if_it_finds_the_gpu(
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


# A Python that records its calls. $SITE is what its torch reports about the GPU.
FAKE_PYTHON = f"""#!/bin/sh
case "$1" in
  -c) exec {sys.executable} "$@" ;;
  -) exit "$SITE" ;;
  --version) echo Python 3.12.0 ;;
  -m)
    echo "$*" >>log
    if [ "$2" = venv ]; then mkdir -p .venv/bin && cp "$0" .venv/bin/python; fi ;;
esac
"""


@pytest.mark.parametrize(
    ("driver", "has_torch", "extra", "takes_site", "warns"),
    [
        ("", True, "dali-cuda13", False, False),
        ("595.10", False, "dali-cuda13", False, False),
        ("595.10", True, "dali-cuda13", True, False),
        ("570.86", True, "dali-cuda12", True, False),
        ("570.86", False, "dali-cuda12", False, True),
    ],
)
def test_setup_installs_for_the_driver_once(
    tmp_path: Path, driver: str, has_torch: bool, extra: str, takes_site: bool, warns: bool
) -> None:
    for name in ("pyproject.toml", "constraints.txt", "launch/setup.sh", "launch/driver.sh", "launch/shell.sh"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes((ROOT / name).read_bytes())
    for name, content in (("python", FAKE_PYTHON), ("nvidia-smi", f"#!/bin/sh\necho {driver}\n")):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(0o755)

    def setup(**more: str) -> "subprocess.CompletedProcess[str]":
        environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "PYTHON": "python", "SITE": str(int(not has_torch)), **more}
        command: list[str | Path] = ["bash", tmp_path / "launch/setup.sh"]
        return subprocess.run(command, env=environment, capture_output=True, text=True, check=True)

    done = setup()
    made, installed = (tmp_path / "log").read_text().splitlines()
    assert made == f"-m venv {'--system-site-packages ' if takes_site else ''}.venv"
    pins = ".venv/constraints.txt" if takes_site else "constraints.txt"
    assert installed.endswith(f"-c {pins} -e .[dev,{extra}]")
    assert (tmp_path / ".venv/constraints.txt").exists() == takes_site
    assert ("warning: driver 570 runs CUDA 12" in done.stderr) == warns == bool(done.stderr)
    assert setup().stdout == "" and len((tmp_path / "log").read_text().splitlines()) == 2, "it is ready"
    other = {"dali-cuda12": "dali-cuda13", "dali-cuda13": "dali-cuda12"}[extra]
    assert setup(EXTRA=extra).stdout == "", "it is that one"
    assert other in setup(EXTRA=other).stdout
    made, installed = (tmp_path / "log").read_text().splitlines()[2:]
    assert made.startswith("-m venv") and installed.endswith(f"-e .[dev,{other}]")
    assert setup().stdout == "", "the choice is kept"
