"""All checks of a node: their order, and the effect of options and libraries."""

from dataclasses import replace
from pathlib import Path

import pytest
from tiny_runs import PLAIN

from pneumo_dist.doctor import probes
from pneumo_dist.doctor.checks import DoctorOptions, examine
from pneumo_dist.doctor.driver import Smi
from pneumo_dist.doctor.probes import Crash, DaliFacts, TorchFacts
from shards.dataset.table import Shards

OPTIONS = DoctorOptions(PLAIN, None, None, None, cpu=True, ranks=2)


@pytest.fixture(autouse=True)
def libraries(monkeypatch: pytest.MonkeyPatch, real_torch: TorchFacts | Crash, real_dali: DaliFacts | Crash) -> None:
    """Replaces the probes by what they returned before."""
    monkeypatch.setattr(probes, "torch_facts", lambda cpu: real_torch)
    monkeypatch.setattr(probes, "dali_facts", lambda on_gpu: real_dali)


def checks_of(options: DoctorOptions) -> list[str]:
    """Return the names of the checks that reported something, in order."""
    return list(dict.fromkeys(finding.check for finding in examine(options, {})[1]))


def test_options_decide_which_checks_run(films: Shards, tmp_path: Path) -> None:
    job, _ = examine(OPTIONS, {})
    assert (job.ranks, job.nodes, job.gpus) == (2, 1, 0)
    assert not {"shards", "run folder", "network", "folds", "GPU driver"} & set(checks_of(OPTIONS))
    full = replace(OPTIONS, path=Path("plain.yaml"), shards=films.folder, runs=tmp_path / "runs")
    names = checks_of(full)
    order = ["torch", "collectives", "host name", "shards", "run folder", "network", "room", "folds", "CPUs"]
    assert [name for name in names if name in order] == order


@pytest.mark.parametrize("broken", ["torch", "import"])
def test_network_is_only_checked_if_torch_works(
    monkeypatch: pytest.MonkeyPatch, real_torch: TorchFacts | Crash, broken: str
) -> None:
    assert isinstance(real_torch, TorchFacts)
    facts = Crash("no torch") if broken == "torch" else real_torch.model_copy(update={"import_error": "no module"})
    monkeypatch.setattr(probes, "torch_facts", lambda cpu: facts)
    names = checks_of(replace(OPTIONS, path=Path("plain.yaml")))
    assert "network" not in names and "torch" in names and ("libraries" in names) == (broken == "import")


def test_gpus_are_checked_unless_training_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    from pneumo_dist.doctor import checks

    monkeypatch.setattr(checks, "query_smi", lambda: Smi(error="nvidia-smi is not installed"))
    assert "GPU driver" in checks_of(replace(OPTIONS, cpu=False))
