"""torch, training's imports, collectives and DALI: good ones, and each problem with a fix."""

import tomllib
from pathlib import Path
from typing import Any

import pytest
from only_finding import only

from pneumo_dist.doctor.findings import Status
from pneumo_dist.doctor.job import job_of
from pneumo_dist.doctor.libraries import (
    EXTRAS,
    OLDEST_DALI,
    OLDEST_TORCH,
    check_collectives,
    check_dali,
    check_imports,
    check_torch,
    version_of,
)
from pneumo_dist.doctor.probes import Crash, DaliFacts, TorchFacts

DALI = DaliFacts(version="2.4.0", cuda=13492, is_exact=True)
DALI_12, DALI_13 = "nvidia-dali-cuda120", "nvidia-dali-cuda130"


def torch_of(**changes: Any) -> TorchFacts:
    facts = {"version": "2.15.0+cu132", "cuda": "13.2", "archs": ("sm_75",), "has_gloo": True, "nccl": "2.30.7"}
    return TorchFacts.model_validate(facts | changes)


@pytest.mark.parametrize("version", ["2.11.0a0+git12", "2.15.0+cu132", "3.0"])
def test_good_torch(version: str) -> None:
    only(check_torch(torch_of(version=version)), Status.OK, version, "CUDA runtime 13.2")


@pytest.mark.parametrize("version", ["2.10.1", "1.13", "unknown"])
def test_torch_that_is_too_old(version: str) -> None:
    only(check_torch(torch_of(version=version)), Status.ERROR, "older than 2.11", "install torch 2.11 or newer")


def test_torch_that_does_not_import() -> None:
    crash = Crash("ImportError: libcudart.so.13: cannot open shared object file")
    only(check_torch(crash), Status.ERROR, "libcudart.so.13", "bash launch/setup.sh")


def test_version_is_compared_by_number() -> None:
    assert version_of("2.9") < version_of("2.11") < version_of("10.0")


def test_imports_of_training() -> None:
    assert check_imports(torch_of()) == []
    fault = "ModuleNotFoundError: No module named 'albumentations'"
    only(check_imports(torch_of(import_error=fault)), Status.ERROR, "albumentations", "bash launch/setup.sh")
    fault = "RuntimeError: operator torchvision::nms does not exist"
    only(
        check_imports(torch_of(import_error=fault)),
        Status.ERROR,
        "come from different builds; install both from one index",
    )


def test_collectives() -> None:
    alone, two = job_of("n0", {}, 1, None), job_of("n0", {}, 2, None)
    only(check_collectives(torch_of(), two), Status.OK, "gloo, NCCL 2.30.7")
    only(check_collectives(torch_of(nccl=None), two), Status.ERROR, "without NCCL", "install a torch that has")
    only(check_collectives(torch_of(nccl=None), alone), Status.WARNING, "without NCCL")
    on_cpu = job_of("n0", {}, 0, 2)
    only(check_collectives(torch_of(nccl=None), on_cpu), Status.OK, "gloo")
    only(check_collectives(torch_of(has_gloo=False), on_cpu), Status.ERROR, "without gloo")


@pytest.mark.parametrize("driver", [None, (12, 4), (13, 0)])
def test_dali_on_the_cpu_needs_no_driver(driver: tuple[int, int] | None) -> None:
    for name in (DALI_12, DALI_13):
        only(check_dali(DALI, (name,), driver, on_gpu=False), Status.OK, f"{name} 2.4.0", "ran on the CPU")


@pytest.mark.parametrize(("name", "driver"), [(DALI_12, (12, 4)), (DALI_12, (13, 0)), (DALI_13, (13, 3))])
def test_driver_supports_its_cuda_generation_and_older_ones(name: str, driver: tuple[int, int]) -> None:
    only(check_dali(DALI, (name,), driver, on_gpu=True), Status.OK, "ran on the GPU")


@pytest.mark.parametrize("facts", [DALI, Crash("RuntimeError: CUDA driver version is insufficient")])
def test_dali_of_a_newer_cuda_than_the_driver_runs(facts: DaliFacts | Crash) -> None:
    words = ("built for CUDA 13, the driver supports CUDA 12.4", f"pip uninstall {DALI_13}", ".[dali-cuda12]", "to 580")
    only(check_dali(facts, (DALI_13,), (12, 4), on_gpu=True), Status.ERROR, *words)


def test_dali_whose_package_name_lacks_its_cuda() -> None:
    only(check_dali(DALI, (), (12, 4), on_gpu=True), Status.ERROR, "DALI is built for CUDA 13")
    only(check_dali(DALI, (), (13, 0), on_gpu=True), Status.OK, "DALI 2.4.0")


@pytest.mark.parametrize(
    ("driver", "extra"), [(None, "dali-cuda13"), ((13, 0), "dali-cuda13"), ((12, 9), "dali-cuda12")]
)
def test_dali_that_is_missing(driver: tuple[int, int] | None, extra: str) -> None:
    crash = Crash("ModuleNotFoundError: No module named 'nvidia.dali'")
    findings = check_dali(crash, (), driver, on_gpu=driver is not None)
    only(
        findings, Status.ERROR, "not installed", f'pip install -c constraints.txt -e ".[{extra}]"', "data.loader: torch"
    )


def test_two_dalis_overwrite_each_other() -> None:
    findings = check_dali(DALI, (DALI_12, DALI_13), (13, 0), on_gpu=True)
    only(findings, Status.ERROR, "both installed", f"pip uninstall {DALI_12} {DALI_13}", ".[dali-cuda13]")


@pytest.mark.parametrize(
    ("facts", "word"),
    [
        (Crash("the process died of SIGILL"), "the process died of SIGILL"),
        (DaliFacts(version="1.48.0", cuda=12000, is_exact=True), "1.48.0 is older than 2.0"),
        (DaliFacts(version="2.4.0", cuda=13492, is_exact=False), "decodes an image to wrong values"),
    ],
)
def test_dali_that_does_not_work(facts: DaliFacts | Crash, word: str) -> None:
    only(check_dali(facts, (DALI_13,), None, on_gpu=False), Status.ERROR, word, ".[dali-cuda13]")


def test_versions_and_extras_are_those_of_the_project() -> None:
    project = tomllib.loads((Path(__file__).parents[3] / "pyproject.toml").read_text())["project"]
    assert "torch>={}.{}".format(*OLDEST_TORCH) in project["dependencies"]
    for generation, extra in EXTRAS.items():
        name = f"nvidia-dali-cuda{generation}0"
        assert project["optional-dependencies"][extra] == ["{}>={}.{}".format(name, *OLDEST_DALI)]
