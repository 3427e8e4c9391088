"""Facts about torch and DALI, asked of them in processes of their own: what crashes or hangs there is a finding."""

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
    """A GPU as torch sees it; `fault` is why it cannot be used."""

    name: str
    memory: int
    """Bytes."""
    capability: tuple[int, int]
    fault: str


class TorchFacts(Schema):
    """torch and its GPUs; `refusal` is why it sees none, `import_fault` why training's code cannot be imported."""

    version: str
    cuda: str | None
    archs: tuple[str, ...]
    has_gloo: bool
    nccl: str | None
    driver_cuda: int = 0
    """The newest CUDA that the driver runs, as 1000 * major + 10 * minor; 0 is no driver."""
    is_available: bool = False
    gpus: tuple[GpuFacts, ...] = ()
    refusal: str = ""
    import_fault: str = ""


class DaliFacts(Schema):
    """DALI's version, its CUDA as a number (13.4.92 is 13492), and whether its graph gave back what went in."""

    version: str
    cuda: int
    is_right: bool


@dataclass(frozen=True)
class Crash:
    """A probe that gave no answer."""

    reason: str


Facts = TypeVar("Facts", TorchFacts, DaliFacts)


def torch_facts(cpu: bool) -> TorchFacts | Crash:
    """Return what torch says; with `cpu` nothing of GPUs."""
    root = Path(__file__).parents[2]
    return _ask(TorchFacts, "probe_torch.py", str(root), *(["cpu"] if cpu else []))


def dali_facts(on_gpu: bool) -> DaliFacts | Crash:
    """Return what DALI says after running a small graph."""
    return _ask(DaliFacts, "probe_dali.py", *(["gpu"] if on_gpu else []))


def dali_distributions() -> tuple[str, ...]:
    """Return the names of the installed DALI packages, as nvidia-dali-cuda130; more than one overwrite each other."""
    names = {str(each.name).lower().replace("_", "-") for each in metadata.distributions() if each.name}
    return tuple(sorted(name for name in names if name.startswith("nvidia-dali-") and "cuda" in name))


def _ask(facts: type[Facts], script: str, *arguments: str) -> Facts | Crash:
    # -P: the script's folder must not shadow anybody's modules.
    command = [sys.executable, "-P", str(Path(__file__).with_name(script)), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=SECONDS, stdin=subprocess.DEVNULL)
    except subprocess.TimeoutExpired:
        return Crash(f"no answer within {SECONDS:.0f} s")
    if done.returncode:
        return Crash(_reason(done.returncode, done.stderr))
    # Libraries may print lines of their own.
    lines = [line for line in done.stdout.splitlines() if line.startswith("{")]
    return facts.model_validate(json.loads(lines[-1])) if lines else Crash("no answer")


def _reason(code: int, stderr: str) -> str:
    if code < 0:
        return f"the process died of {signal.Signals(-code).name}"
    lines = [line for line in stderr.splitlines() if line.strip()]
    return lines[-1].strip() if lines else f"exit code {code}"
