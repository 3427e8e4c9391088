"""Autocast types, and how torch computes in this process."""

import os
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

from pneumo_dist.config.experiment import RuntimeConfig

Resolved = Literal["bf16", "fp16", "float32"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_amp(amp: str, device: torch.device) -> Resolved:
    """Return the autocast type of a config's `amp`.

    `auto` is bf16 if the hardware supports it, else fp16 on a GPU and float32 on a CPU.
    """
    if amp == "bf16":
        return "bf16"
    if amp == "fp16" and device.type == "cuda":
        return "fp16"
    if amp == "auto" and device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if amp == "auto" and _cpu_has_bf16():
        return "bf16"
    return "float32"


def configure(runtime: RuntimeConfig) -> None:
    """Apply a config's runtime options to this process."""
    torch.backends.cuda.matmul.allow_tf32 = runtime.tf32
    torch.backends.cudnn.allow_tf32 = runtime.tf32
    torch.backends.cudnn.benchmark = not runtime.deterministic
    if runtime.deterministic:
        # cuBLAS reads this on first use.
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
        torch.use_deterministic_algorithms(True)


def autocast(resolved: Resolved, device: torch.device) -> AbstractContextManager[None]:
    """Return the autocast context of a resolved type."""
    return torch.autocast(device.type, dtype=_TYPES.get(resolved, torch.bfloat16), enabled=resolved != "float32")


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
