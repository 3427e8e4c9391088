"""Facts about the NVIDIA driver: its files, and the output of nvidia-smi."""

import ctypes
import re
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

QUERY = (
    "index",
    "uuid",
    "name",
    "driver_version",
    "compute_mode",
    "mig.mode.current",
    "ecc.errors.uncorrected.volatile.total",
)
SECONDS = 60.0


@dataclass(frozen=True)
class DriverFiles:
    """Files of the driver on this node.

    Attributes:
        is_loaded: Whether the driver is loaded, by the same files as `ranks.ranks.pick_device` checks.
        devices: Names of the GPUs' device files, as nvidia0.
        pci_gpus: Number of NVIDIA GPUs on the PCI bus.
        has_library: Whether libcuda.so.1 can be loaded.
    """

    is_loaded: bool
    devices: tuple[str, ...]
    pci_gpus: int
    has_library: bool


def driver_files(root: Path = Path("/")) -> DriverFiles:
    """Look for the driver's files below `root`, and load its library by name."""
    loaded = any((root / name).exists() for name in ("proc/driver/nvidia/version", "dev/nvidiactl"))
    devices = tuple(sorted(path.name for path in root.glob("dev/nvidia*") if re.fullmatch(r"nvidia\d+", path.name)))
    gpus = [path for path in root.glob("sys/bus/pci/devices/*") if _is_gpu(path)]
    return DriverFiles(loaded, devices, len(gpus), _has_library())


def _is_gpu(device: Path) -> bool:
    """Return whether a PCI device is a display or 3D controller by NVIDIA."""
    try:
        vendor, kind = ((device / name).read_text().strip() for name in ("vendor", "class"))
    except OSError:
        return False
    return vendor == "0x10de" and kind.startswith(("0x0300", "0x0302"))


def _has_library() -> bool:
    try:
        ctypes.CDLL("libcuda.so.1")
    except OSError:
        return False
    return True


@dataclass(frozen=True)
class SmiGpu:
    """A GPU as nvidia-smi lists it. Unknown values are empty or 0."""

    index: int
    uuid: str
    name: str
    driver: str
    compute_mode: str
    mig: str
    memory_errors: int


@dataclass(frozen=True)
class Smi:
    """Output of nvidia-smi.

    Attributes:
        gpus: The GPUs of the node, whether visible to this process or not.
        cuda: Newest CUDA version that the driver supports.
        links: Kind of link between each pair of GPUs.
        error: Why nvidia-smi printed no GPUs.
    """

    gpus: tuple[SmiGpu, ...] = ()
    cuda: tuple[int, int] | None = None
    links: tuple[tuple[tuple[int, int], str], ...] = ()
    error: str = ""

    @property
    def driver(self) -> str:
        return self.gpus[0].driver if self.gpus else ""


def query_smi() -> Smi:
    """Run nvidia-smi and parse its output."""
    if shutil.which("nvidia-smi") is None:
        return Smi(error="nvidia-smi is not installed")
    code, banner = _run(["nvidia-smi"])
    if code != 0:
        lines = banner.strip().splitlines()
        return Smi(error=lines[0] if lines else f"nvidia-smi ended with exit code {code}")
    listed = _run(["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"])[1]
    return Smi(parse_gpus(listed), parse_cuda(banner), parse_links(_run(["nvidia-smi", "topo", "-m"])[1]))


def _run(command: Sequence[str]) -> tuple[int, str]:
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return process.returncode, process.stdout or process.stderr


def parse_cuda(banner: str) -> tuple[int, int] | None:
    """Return the CUDA version in nvidia-smi's banner, which drivers from 610 on call the UMD version."""
    match = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)", banner)
    return (int(match[1]), int(match[2])) if match else None


def parse_gpus(listed: str) -> tuple[SmiGpu, ...]:
    """Parse the CSV without header that a query for `QUERY` prints. Other lines are skipped."""
    rows = [[_known(field) for field in line.split(", ")] for line in listed.splitlines()]
    return tuple(
        SmiGpu(int(row[0]), row[1], row[2], row[3], row[4], row[5], int(row[6]) if row[6].isdigit() else 0)
        for row in rows
        if len(row) == len(QUERY) and row[0].isdigit()
    )


def _known(field: str) -> str:
    """Return a field, empty for [N/A], [Not Supported] and [Unknown Error]."""
    field = field.strip()
    return "" if field.startswith("[") else field


def parse_links(matrix: str) -> tuple[tuple[tuple[int, int], str], ...]:
    """Parse `nvidia-smi topo -m` into pairs of GPUs and the kind of their link: NV18, PIX, PXB, PHB, NODE or SYS."""
    plain = re.sub(r"\x1b\[[0-9;]*m", "", matrix)
    lines = [line.split() for line in plain.splitlines() if line.strip()]
    start = next((number for number, line in enumerate(lines) if line[0] == "GPU0"), len(lines))
    columns = [int(name[3:]) for line in lines[start : start + 1] for name in line if re.fullmatch(r"GPU\d+", name)]
    links = []
    for line in lines[start + 1 :]:
        if re.fullmatch(r"GPU\d+", line[0]):
            row = int(line[0][3:])
            links += [((row, column), kind) for column, kind in zip(columns, line[1:], strict=False) if column > row]
    return tuple(links)


def is_hidden(visible: str | None) -> bool:
    """Return whether a value of CUDA_VISIBLE_DEVICES hides every GPU."""
    return visible is not None and visible.strip() in ("", "-1", "NoDevFiles")


def visible_gpus(gpus: tuple[SmiGpu, ...], visible: str | None) -> tuple[SmiGpu, ...]:
    """Return the GPUs that CUDA_VISIBLE_DEVICES lets a process see; nvidia-smi ignores the variable."""
    if visible is None:
        return gpus
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return tuple(
        gpu
        for gpu in gpus
        if any(name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name)) for name in names)
    )
