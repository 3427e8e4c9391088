"""Autocast types: what `amp: auto` means on this machine."""

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Literal

import torch

Resolved = Literal["bf16", "fp16", "float32"]
_TYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


def resolve_amp(amp: str, device: torch.device) -> Resolved:
    """Return the autocast type: auto is bf16 where the hardware computes it, else fp16 on GPU, float32 on CPU."""
    if amp == "bf16":
        return "bf16"
    if amp == "fp16" and device.type == "cuda":
        return "fp16"
    if amp == "auto" and device.type == "cuda":
        return "bf16" if torch.cuda.get_device_capability(device) >= (8, 0) else "fp16"
    if amp == "auto" and _cpu_has_bf16():
        return "bf16"
    return "float32"


def autocast(resolved: Resolved, device: torch.device) -> AbstractContextManager[None]:
    """Return the autocast context of a resolved type."""
    return torch.autocast(device.type, dtype=_TYPES.get(resolved, torch.bfloat16), enabled=resolved != "float32")


def _cpu_has_bf16() -> bool:
    try:
        flags = Path("/proc/cpuinfo").read_text()
    except OSError:
        return False
    return "avx512_bf16" in flags or "amx_bf16" in flags
