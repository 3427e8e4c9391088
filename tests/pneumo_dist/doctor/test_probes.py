"""Probes of libraries that crash, hang or do not answer, and the installed DALI packages."""

from pathlib import Path

import pytest

from pneumo_dist.doctor import probes
from pneumo_dist.doctor.probes import Crash, dali_distributions, torch_facts

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
    facts = torch_facts(cpu=True)
    assert isinstance(facts, Crash) and reason in facts.reason


def test_two_dalis_are_listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nvidia_dali_cuda110", "nvidia_dali_extras", "nvidia_nccl_cu13"):
        folder = tmp_path / f"{name}-1.0.dist-info"
        folder.mkdir()
        (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert "nvidia-dali-cuda110" in dali_distributions()
    assert all("cuda" in name and name.startswith("nvidia-dali-") for name in dali_distributions())
