"""The command doctor: exit codes, both reports, and one report per node."""

import hashlib
import json
import os
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tools.commands import ROOT, commands_of

from pneumo_dist.cli.app import app
from pneumo_dist.doctor import probes
from pneumo_dist.doctor.probes import Crash, DaliFacts, TorchFacts
from pneumo_dist.ranks.environment import NEEDED, OPTIONAL
from shards.console import EXIT_DONE, EXIT_USAGE, run
from shards.dataset.table import Shards

CONFIG = "name: x\nglobal_batch: 2\nstages: [{name: main}]\n"
Doctor = Callable[..., tuple[int, str]]


@pytest.fixture
def doctor(
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    real_torch: TorchFacts | Crash,
    real_dali: DaliFacts | Crash,
) -> Doctor:
    """Runs the command with this machine's libraries, outside any job; returns its exit code and what it prints."""
    for name in os.environ:
        if name.startswith("SLURM") or name in (*NEEDED, *OPTIONAL):
            monkeypatch.delenv(name)
    monkeypatch.setattr(probes, "torch_facts", lambda cpu: real_torch)
    monkeypatch.setattr(probes, "dali_facts", lambda on_gpu: real_dali)

    def call(*arguments: object) -> tuple[int, str]:
        code = run(app, "pneumo_dist", ["doctor", *map(str, arguments)])
        printed = capsys.readouterr()
        assert printed.err == ""
        return code, printed.out

    return call


def test_node_that_can_train(doctor: Doctor, films: Shards, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    config.write_text(CONFIG)
    runs = tmp_path / "runs"
    code, printed = doctor("--cpu", "--config", config, "--shards", films.folder, "--runs", runs)
    assert code == EXIT_DONE, printed
    lines = printed.splitlines()
    assert lines[0] == f"doctor on {socket.gethostname()}: nodes 1, ranks per node 1, on the CPU"
    assert lines[-1].endswith("0 errors: training would run here")
    assert "not checked" not in printed and "12 films in 3 tars" in printed and not runs.exists()


def test_the_commands_of_the_pages_run(
    doctor: Doctor, films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("demo").write_text(CONFIG)
    for page, folder in (("README.md", "siim"), ("docs/doctor.md", "demo-run")):
        shutil.copytree(films.folder, f"{folder}/shards")
        lines = [each.words()[1:] for each in commands_of(ROOT / page)]
        (words,) = [
            words for words in lines if words[:2] == ["doctor", "--shards"] or words[:3:2] == ["doctor", "demo"]
        ]
        code, printed = doctor(*words[1:], "--cpu")
        assert code == EXIT_DONE and f"{folder}/shards: 12 films" in printed
        assert ("config (--config)" in printed) == ("demo" not in words)


def test_broken_shards_fail(doctor: Doctor, films: Shards, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(films.folder, tmp_path / "shards"))
    (folder / "train-00001.tar").unlink()
    code, printed = doctor("--cpu", "--shards", folder)
    assert code == EXIT_USAGE
    assert "train-00001.tar: missing" in printed and "-> restore it from a copy" in printed
    assert printed.splitlines()[-1].endswith("1 error: training would fail here")
    assert "not checked: config (--config), run folder (--runs)" in printed


def test_json(doctor: Doctor) -> None:
    code, printed = doctor("--cpu", "--json", "--ranks", 2)
    report = json.loads(printed)
    assert code == EXIT_DONE and not report["would_fail"]
    assert (report["host"], report["nodes"], report["ranks"]) == (socket.gethostname(), 1, 2)
    checks = {finding["check"] for finding in report["findings"]}
    assert {"torch", "collectives", "open files", "CPUs", "host name", "gloo network"} <= checks
    assert all(finding["mend"] for finding in report["findings"] if finding["status"] != "ok")


def test_config_decides_what_is_checked(doctor: Doctor, tmp_path: Path) -> None:
    config = tmp_path / "x.yaml"
    digest = hashlib.sha256(b"weights").hexdigest()
    model = f"model: {{encoder_weights_file: {tmp_path}/w.pt, encoder_weights_sha256: {digest}}}\n"
    config.write_text(CONFIG + model)
    code, printed = doctor("--cpu", "--config", config, "--set", "data.loader=torch")
    assert code == EXIT_USAGE
    assert "w.pt: No such file" in printed and "fetch-weights" in printed and "DALI" not in printed


def test_nodes_of_slurm(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLURM_NNODES", "2")
    monkeypatch.setenv("GLOO_SOCKET_IFNAME", "lo")
    code, printed = doctor("--cpu", "--json")
    (found,) = [each for each in json.loads(printed)["findings"] if each["check"] == "gloo network"]
    assert code == EXIT_USAGE and "it does not lead to other nodes" in found["found"]


def test_one_report_per_node_under_torchrun(doctor: Doctor, monkeypatch: pytest.MonkeyPatch) -> None:
    torchrun = {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**torchrun, "MASTER_ADDR": "localhost", "MASTER_PORT": "29500"}.items():
        monkeypatch.setenv(name, value)
    assert doctor("--cpu") == (EXIT_DONE, "")
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("LOCAL_RANK", "0")
    code, printed = doctor("--cpu")
    assert code == EXIT_DONE and "ranks per node 2" in printed


@pytest.mark.parametrize("broken", [["torch"], ["dali"], ["torch", "dali"]])
def test_broken_libraries_are_findings(doctor: Doctor, monkeypatch: pytest.MonkeyPatch, broken: list[str]) -> None:
    def crash(_: bool) -> Crash:
        return Crash("ImportError: no such symbol")

    for name in broken:
        monkeypatch.setattr(probes, f"{name}_facts", crash)
    code, printed = doctor("--cpu", "--json")
    wrong = [each for each in json.loads(printed)["findings"] if each["status"] == "error"]
    assert code == EXIT_USAGE
    assert [each["check"] for each in wrong] == [{"torch": "torch", "dali": "DALI"}[name] for name in broken]
    assert all("no such symbol" in each["found"] or each["found"] == "not installed" for each in wrong)


def test_node_without_gpu_trains_on_the_cpu(doctor: Doctor, real_torch: Any) -> None:
    if Path("/dev/nvidiactl").exists():
        pytest.skip("this machine has an NVIDIA driver")
    code, printed = doctor("--json")
    (found,) = [each for each in json.loads(printed)["findings"] if each["check"] == "GPU driver"]
    assert code == EXIT_DONE and found["status"] == "warning"
    assert "training would use the CPU" in found["found"] and "--cpu" in found["mend"]


def test_bad_config_is_one_line(doctor: Doctor, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(app, "pneumo_dist", ["doctor", "--cpu", "--config", "nowhere.yaml"]) == EXIT_USAGE
    assert "nowhere.yaml: no such config" in capsys.readouterr().err
