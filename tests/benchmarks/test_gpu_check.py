"""`launch/gpu-check.sh`: its checks cover all tests of tests/gpu, and its report says what failed."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.gpu_check import CHECKS, Result, result_of

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_every_test_of_tests_gpu_is_in_one_check() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "--collect-only", "tests/gpu"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stdout[-3000:]
    names = {line.partition("[")[0] for line in done.stdout.splitlines() if "::" in line}
    assert len(names) > 10
    parts = [f"tests/gpu/{test}" for check in CHECKS.values() for test in check.tests]
    for name in names:
        assert sum(name == part or name.startswith(f"{part}::") for part in parts) == 1, name
    assert all(any(name.startswith(part) for name in names) for part in parts)


JUNIT = """<testsuites><testsuite>
<testcase name="good"/>
<testcase name="absent"><skipped message="no CUDA device"/></testcase>
{more}
</testsuite></testsuites>"""


def test_result_counts_tests_and_keeps_the_messages_of_failures() -> None:
    good = result_of(JUNIT.format(more=""), 2.0)
    assert good == Result("passed", 2.0, passed=1, skipped=1, failures={})
    more = '<testcase name="bad"><failure message="assert 1 == 2"/></testcase>'
    more += '<testcase name="broken"><error message="no films"/></testcase>'
    bad = result_of(JUNIT.format(more=more), 2.0)
    assert bad.outcome == "failed" and bad.failures == {"bad": "assert 1 == 2", "broken": "no films"}


def test_a_check_in_which_nothing_ran_has_failed() -> None:
    skipped = result_of(JUNIT.format(more="").replace('<testcase name="good"/>', ""), 1.0)
    assert skipped.outcome == "failed" and skipped.failures == {"no test": "all tests were skipped"}
    assert result_of("<testsuites/>", 1.0).failures == {"no test": "no test was found"}


@pytest.mark.rare
@pytest.mark.slow
def test_checks_run_on_the_cpu_and_the_report_appears_whole(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    command = ["bash", "launch/gpu-check.sh", "--cpu", "--work", str(tmp_path / "work"), "--out", str(out)]
    command += ["--checks", *(short := ["networks", "prediction"])]  # the suites run the others
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-2000:]
    report = json.loads(out.read_text())
    assert {name: check["outcome"] for name, check in report["checks"].items()} == dict.fromkeys(short, "passed")
    assert [row["way"] for row in report["rows"]] == ["bf16", "channels_last"]
    assert "PASSED" in done.stdout and str(out) in done.stdout


@pytest.mark.slow
def test_time_limit_leaves_a_report_and_fails(tmp_path: Path) -> None:
    out = tmp_path / "report.json"
    options = ["--cpu", "--checks", "prediction", "films", "--minutes", "0.02", "--out", str(out)]
    command = [sys.executable, "-m", "benchmarks.gpu_check", "--work", str(tmp_path / "work"), *options]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 1 and "FAILED" in done.stdout
    checks = json.loads(out.read_text())["checks"]
    assert [check["outcome"] for check in checks.values()] == ["out of time", "out of time"]


@pytest.mark.slow
def test_without_a_gpu_the_command_says_so() -> None:
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a CUDA device")
    done = subprocess.run(["bash", "launch/gpu-check.sh"], cwd=ROOT, capture_output=True, text=True, timeout=300)
    assert done.returncode == 2 and "no CUDA device" in done.stderr
