"""The probe of torch: the library of this machine, and a stand-in with several GPUs."""

from collections.abc import Callable
from pathlib import Path

import pytest

from pneumo_dist.doctor.probes import Crash, TorchFacts, torch_facts


def test_torch_of_this_machine(real_torch: TorchFacts | Crash) -> None:
    import torch

    assert isinstance(real_torch, TorchFacts), real_torch
    assert (real_torch.version, real_torch.cuda) == (torch.__version__, torch.version.cuda)
    assert real_torch.has_gloo and real_torch.import_error == ""
    assert not real_torch.is_available and real_torch.gpus == ()


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
    """Returns the facts about a torch that sees three GPUs, one of which works, or that sees none."""

    def probe(available: bool) -> TorchFacts:
        (tmp_path / "torch.py").write_text(FAKE_TORCH.replace("AVAILABLE", str(available)))
        monkeypatch.setenv("PYTHONPATH", str(tmp_path))
        facts = torch_facts(cpu=False)
        assert isinstance(facts, TorchFacts), facts
        return facts

    return probe


def test_gpus_are_tried_one_by_one(fake_torch: Callable[[bool], TorchFacts]) -> None:
    facts = fake_torch(True)
    assert (facts.driver_cuda, facts.is_available, facts.nccl) == (12040, True, "2.30.7")
    good, busy, lost = facts.gpus
    assert (good.name, good.memory, good.capability, good.error) == ("H100", 85, (9, 0), "")
    assert (busy.capability, busy.error) == ((9, 0), "CUDA error: busy or unavailable")
    assert (lost.capability, lost.error) == ((0, 0), "GPU is lost")
    # This torch has no tensors, so training cannot be imported.
    assert facts.import_error


def test_why_torch_sees_no_gpu(fake_torch: Callable[[bool], TorchFacts]) -> None:
    facts = fake_torch(False)
    assert not facts.is_available and facts.gpus == ()
    assert facts.init_error == "The NVIDIA driver on your system is too old (found version 12040)"
