"""The probes: what the libraries of this machine say, and libraries that crash, hang or say nothing."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pneumo_dist.doctor import probes
from pneumo_dist.doctor.probes import Crash, DaliFacts, TorchFacts, dali_distributions, torch_facts


def test_torch_of_this_machine(real_torch: TorchFacts | Crash) -> None:
    import torch

    assert isinstance(real_torch, TorchFacts), real_torch
    assert (real_torch.version, real_torch.cuda) == (torch.__version__, torch.version.cuda)
    assert real_torch.has_gloo and real_torch.import_fault == ""
    assert not real_torch.is_available and real_torch.gpus == ()


def test_dali_of_this_machine(real_dali: DaliFacts | Crash) -> None:
    pytest.importorskip("nvidia.dali")
    assert isinstance(real_dali, DaliFacts), real_dali
    assert real_dali.is_right
    assert dali_distributions()


BROKEN = [
    ("raise ImportError('libcudart.so.13: cannot open shared object file')", "ImportError: libcudart.so.13"),
    ("import os, signal; os.kill(os.getpid(), signal.SIGILL)", "the process died of SIGILL"),
    ("import sys; sys.exit(3)", "exit code 3"),
    ("import sys; sys.exit(0)", "no answer"),
    ("import time; time.sleep(60)", "no answer within 1 s"),
]


@pytest.mark.parametrize(("code", "reason"), BROKEN)
def test_library_that_breaks_is_a_reason_and_no_traceback(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: str, reason: str
) -> None:
    (tmp_path / "torch.py").write_text(code)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    monkeypatch.setattr(probes, "SECONDS", 1.0 if "sleep" in code else 60.0)
    found = torch_facts(cpu=True)
    assert isinstance(found, Crash) and reason in found.reason


def test_two_dalis_are_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia_dali_cuda110", "nvidia_dali_extras", "nvidia_nccl_cu13"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "nvidia-dali-cuda110" in dali_distributions()
    assert all("cuda" in name and name.startswith("nvidia-dali-") for name in dali_distributions())


FAKE_TORCH = """\
import sys, types

__version__ = "2.15.0"
_C = types.SimpleNamespace(_cuda_getDriverVersion=lambda: 12040)
version = types.SimpleNamespace(cuda="13.2")
distributed = types.ModuleType("torch.distributed")
distributed.is_available = distributed.is_gloo_available = distributed.is_nccl_available = lambda: True
sys.modules["torch.distributed"] = distributed
__path__ = []


class cuda:
    nccl = types.SimpleNamespace(version=lambda: (2, 30, 7, "rc1"))
    is_available = staticmethod(lambda: AVAILABLE)
    device_count = staticmethod(lambda: 3)
    get_arch_list = staticmethod(lambda: ["sm_75", "compute_120"])
    set_device = staticmethod(lambda index: None)

    @staticmethod
    def init():
        raise RuntimeError("The NVIDIA driver on your system is too old (found version 12040)")

    @staticmethod
    def get_device_properties(index):
        if index == 2:
            raise RuntimeError("GPU is lost")
        return types.SimpleNamespace(name="H100", total_memory=85, major=9, minor=0)


class Ones:
    def add_(self, number):
        return self

    def item(self):
        return 2.0


def ones(count, device):
    if device == "cuda:1":
        raise RuntimeError("CUDA error: busy or unavailable")
    return Ones()
"""


@pytest.fixture
def fake_torch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[bool], TorchFacts]:
    """Asks a torch of three GPUs, of which one works; or one that sees no GPU."""

    def ask(available: bool) -> TorchFacts:
        (tmp_path / "torch.py").write_text(FAKE_TORCH.replace("AVAILABLE", str(available)))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        found = torch_facts(cpu=False)
        assert isinstance(found, TorchFacts), found
        return found

    return ask


def test_gpus_are_tried_one_by_one(fake_torch: Callable[[bool], TorchFacts]) -> None:
    found = fake_torch(True)
    assert (found.driver_cuda, found.is_available, found.nccl) == (12040, True, "2.30.7")
    good, busy, lost = found.gpus
    assert (good.name, good.memory, good.capability, good.fault) == ("H100", 85, (9, 0), "")
    assert (busy.capability, busy.fault) == ((9, 0), "CUDA error: busy or unavailable")
    assert (lost.capability, lost.fault) == ((0, 0), "GPU is lost")
    # This torch has no tensors, so what training imports fails.
    assert found.import_fault


def test_why_torch_sees_no_gpu(fake_torch: Callable[[bool], TorchFacts]) -> None:
    found = fake_torch(False)
    assert not found.is_available and found.gpus == ()
    assert found.refusal == "The NVIDIA driver on your system is too old (found version 12040)"
