"""The types that `amp` selects."""

from pathlib import Path

import pytest
import torch

from pneumo_dist.ranks import precision
from pneumo_dist.ranks.precision import Resolved, autocast, resolve_amp

CPU = torch.device("cpu")


@pytest.mark.parametrize(("amp", "expected"), [("bf16", "bf16"), ("float32", "float32"), ("fp16", "float32")])
def test_named_types_on_the_cpu(amp: str, expected: str) -> None:
    assert resolve_amp(amp, CPU) == expected


@pytest.mark.parametrize(
    ("flags", "expected"),
    [("flags: avx512f avx512_bf16", "bf16"), ("flags: amx_bf16", "bf16"), ("flags: avx512f avx2", "float32")],
)
def test_auto_is_bf16_only_where_the_cpu_computes_it(
    flags: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Path, "read_text", lambda path: flags)
    assert resolve_amp("auto", CPU) == expected


def test_auto_without_cpu_flags_is_float32(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(precision, "_cpu_has_bf16", lambda: False)
    assert resolve_amp("auto", CPU) == "float32"


@pytest.mark.parametrize(
    ("capability", "expected"), [((9, 0), "bf16"), ((8, 0), "bf16"), ((7, 5), "fp16"), ((7, 0), "fp16")]
)
def test_auto_on_a_gpu_follows_its_generation(
    capability: tuple[int, int], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: capability)
    assert resolve_amp("auto", torch.device("cuda", 0)) == expected
    assert resolve_amp("fp16", torch.device("cuda", 0)) == "fp16"


@pytest.mark.parametrize(("resolved", "dtype"), [("bf16", torch.bfloat16), ("float32", torch.float32)])
def test_autocast_computes_in_the_resolved_type(resolved: Resolved, dtype: torch.dtype) -> None:
    with autocast(resolved, CPU):
        assert torch.nn.functional.linear(torch.ones(2, 2), torch.ones(2, 2)).dtype == dtype
