"""What the NVIDIA driver shows of itself: its files, and what nvidia-smi prints."""

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
    """`is_loaded` is what `distributed.pick_device` takes as a GPU that is present."""

    is_loaded: bool
    devices: tuple[str, ...]
    pci_gpus: int
    has_library: bool


def driver_files(root: Path = Path("/")) -> DriverFiles:
    """Look for the driver's files under `root`, and for its library by the loader's own search."""
    loaded = any((root / name).exists() for name in ("proc/driver/nvidia/version", "dev/nvidiactl"))
    devices = tuple(sorted(path.name for path in root.glob("dev/nvidia*") if re.fullmatch(r"nvidia\d+", path.name)))
    gpus = [path for path in root.glob("sys/bus/pci/devices/*") if _is_gpu(path)]
    return DriverFiles(loaded, devices, len(gpus), _has_library())


def _is_gpu(device: Path) -> bool:
    """NVIDIA's number, and the class of a display or 3D controller."""
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
    """A GPU as nvidia-smi lists it; what it does not know of a GPU is empty, or 0."""

    index: int
    uuid: str
    name: str
    driver: str
    compute_mode: str
    mig: str
    memory_errors: int


@dataclass(frozen=True)
class Smi:
    """What nvidia-smi prints; `fault` is why it prints nothing, `links` the kind of link of each pair of GPUs."""

    gpus: tuple[SmiGpu, ...] = ()
    cuda: tuple[int, int] | None = None
    links: tuple[tuple[tuple[int, int], str], ...] = ()
    fault: str = ""

    @property
    def driver(self) -> str:
        return self.gpus[0].driver if self.gpus else ""


def query_smi() -> Smi:
    """Ask nvidia-smi, where there is one."""
    if shutil.which("nvidia-smi") is None:
        return Smi(fault="there is no nvidia-smi")
    code, banner = _run(["nvidia-smi"])
    if code != 0:
        lines = banner.strip().splitlines()
        return Smi(fault=lines[0] if lines else f"nvidia-smi ended with exit code {code}")
    listed = _run(["nvidia-smi", f"--query-gpu={','.join(QUERY)}", "--format=csv,noheader,nounits"])[1]
    return Smi(parse_gpus(listed), parse_cuda(banner), parse_links(_run(["nvidia-smi", "topo", "-m"])[1]))


def _run(command: Sequence[str]) -> tuple[int, str]:
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except (OSError, subprocess.TimeoutExpired) as error:
        return 1, str(error)
    return done.returncode, done.stdout or done.stderr


def parse_cuda(banner: str) -> tuple[int, int] | None:
    """Return the CUDA version of nvidia-smi's banner; drivers from 610 on call it that of the UMD."""
    found = re.search(r"CUDA (?:UMD )?Version\s*:\s*(\d+)\.(\d+)", banner)
    return (int(found[1]), int(found[2])) if found else None


def parse_gpus(listed: str) -> tuple[SmiGpu, ...]:
    """Return the GPUs of a query of `QUERY` as CSV without header; lines that are none are left out."""
    rows = [[_known(field) for field in line.split(", ")] for line in listed.splitlines()]
    return tuple(
        SmiGpu(int(row[0]), row[1], row[2], row[3], row[4], row[5], int(row[6]) if row[6].isdigit() else 0)
        for row in rows
        if len(row) == len(QUERY) and row[0].isdigit()
    )


def _known(field: str) -> str:
    """nvidia-smi writes [N/A], [Not Supported] and [Unknown Error]."""
    field = field.strip()
    return "" if field.startswith("[") else field


def parse_links(matrix: str) -> tuple[tuple[tuple[int, int], str], ...]:
    """Return (GPU, GPU) -> kind of link, as NV18, PIX, PXB, PHB, NODE or SYS, of `nvidia-smi topo -m`."""
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
    """Return the GPUs that CUDA_VISIBLE_DEVICES lets a process see; nvidia-smi does not heed it."""
    if visible is None:
        return gpus
    names = [name.strip() for name in visible.split(",") if name.strip()]
    return tuple(
        gpu
        for gpu in gpus
        if any(name == str(gpu.index) or (name.startswith("GPU-") and gpu.uuid.startswith(name)) for name in names)
    )
