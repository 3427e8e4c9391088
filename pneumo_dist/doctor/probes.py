"""Facts about torch and DALI, read in separate processes, so that a library that crashes or hangs becomes a finding."""

import json
import signal
import subprocess
import sys
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import TypeVar

from pneumo_dist.config.schema import Schema

# The first import from a slow file system takes minutes.
SECONDS = 300.0


class GpuFacts(Schema):
    """A GPU as torch sees it. `error` is why it cannot be used, empty if it can."""

    name: str
    memory: int
    """Bytes."""
    capability: tuple[int, int]
    error: str


class TorchFacts(Schema):
    """torch and its GPUs."""

    version: str
    cuda: str | None
    archs: tuple[str, ...]
    has_gloo: bool
    nccl: str | None
    driver_cuda: int = 0
    """Newest CUDA that the driver supports, as 1000 * major + 10 * minor; 0 without a driver."""
    is_available: bool = False
    gpus: tuple[GpuFacts, ...] = ()
    init_error: str = ""
    """Why torch sees no GPU."""
    import_error: str = ""
    """Why training cannot be imported, empty if it can."""


class DaliFacts(Schema):
    """DALI and the result of a small graph."""

    version: str
    cuda: int
    """CUDA version as a number: 13.4.92 is 13492."""
    is_exact: bool
    """Whether the graph decoded an image to its exact values."""


@dataclass(frozen=True)
class Crash:
    """A probe that did not answer."""

    reason: str


Facts = TypeVar("Facts", TorchFacts, DaliFacts)


def torch_facts(cpu: bool) -> TorchFacts | Crash:
    """Return facts about torch. With `cpu`, GPUs are not touched."""
    root = Path(__file__).parents[2]
    return _run(TorchFacts, "probe_torch.py", str(root), *(["cpu"] if cpu else []))


def dali_facts(on_gpu: bool) -> DaliFacts | Crash:
    """Return facts about DALI, after running a small graph."""
    return _run(DaliFacts, "probe_dali.py", *(["gpu"] if on_gpu else []))


def dali_distributions() -> tuple[str, ...]:
    """Return the names of the installed DALI packages, e.g. nvidia-dali-cuda130. Two overwrite each other's files."""
    names = {str(each.name).lower().replace("_", "-") for each in metadata.distributions() if each.name}
    return tuple(sorted(name for name in names if name.startswith("nvidia-dali-") and "cuda" in name))


def _run(facts: type[Facts], script: str, *arguments: str) -> Facts | Crash:
    # -P keeps the script's folder from shadowing other modules.
    command = [sys.executable, "-P", str(Path(__file__).with_name(script)), *arguments]
    try:
        process = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Crash(f"no answer within {SECONDS:.0f} s")
    if process.returncode:
        return Crash(_reason(process.returncode, process.stderr))
    # Libraries may print other lines.
    lines = [line for line in process.stdout.splitlines() if line.startswith("{")]
    return facts.model_validate(json.loads(lines[-1])) if lines else Crash("no answer")


def _reason(code: int, stderr: str) -> str:
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {code}"
