"""Check that training and prediction are correct on this machine's GPUs, then measure what time is left for.

    bash launch/gpu-check.sh                     at most 20 minutes; writes gpu-check.json
    bash launch/gpu-check.sh --minutes 10        at most 10 minutes
    bash launch/gpu-check.sh --cpu               the same checks on the CPU, where they prove only that they run

The checks are the tests of tests/gpu. gpu-check.json holds the machine, the result of each check with its failures, and
the rows of `benchmarks.gpu`. Send it with a bug report. The exit code is 0 if every check passed.
"""

import argparse
import datetime
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import torch

from benchmarks import ROOT
from benchmarks.common import in_fresh_process, run_limited
from benchmarks.gpu import dali_version
from benchmarks.gpu_store import read_rows
from pneumo_dist import __version__
from pneumo_dist.doctor.driver import query_smi
from pneumo_dist.source import source_digest
from shards.files import atomic_write

Outcome = Literal["passed", "failed", "out of time"]

MINUTES = 20.0
ROWS = "rows.jsonl"
SHOWN_FAILURE = 600


@dataclass(frozen=True)
class Check:
    """A part of tests/gpu: what it shows, and its files or tests."""

    text: str
    tests: tuple[str, ...]


# The most fundamental first: nothing after it means anything if films and masks do not match.
CHECKS: Mapping[str, Check] = {
    "films": Check("DALI's films match the torch loader's, and masks lie on their films", ("test_input.py",)),
    "steps": Check("steps in bf16, fp16, channels last and compiled match float32", ("test_steps.py",)),
    "networks": Check("the heavy networks match the CPU and take steps in bf16 and fp16", ("test_heavy.py",)),
    "resume": Check(
        "a run that is stopped or killed, and resumed, ends with the same bits, in deterministic mode",
        (
            "test_runs.py::test_resumed_run_ends_with_the_same_bits",
            "test_runs.py::test_killed_run_ends_with_the_same_bits",
            "test_runs.py::test_run_from_a_device_resumes_on_the_cpu",
        ),
    ),
    "prediction": Check(
        "predictions match the CPU's", ("test_runs.py::test_prediction_equals_plain_forward_passes_on_the_cpu",)
    ),
    "scoring": Check("counts of the pixels of validated films match OpenCV's", ("test_scoring.py",)),
    "ranks": Check("two ranks take the step of one, over NCCL if there are two GPUs", ("test_ranks.py",)),
}


@dataclass(frozen=True)
class Result:
    """The result of a check: how many tests passed, were skipped and failed, and the failures' messages."""

    outcome: Outcome
    seconds: float
    passed: int = 0
    skipped: int = 0
    failures: Mapping[str, str] | None = None


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=MINUTES, help="maximum duration (default %(default)s)")
    parser.add_argument(
        "--work", type=Path, default=Path("/tmp/gpu-check"), help="films and rows (default %(default)s)"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu-check.json"), help="report (default %(default)s)")
    parser.add_argument("--checks", nargs="+", choices=CHECKS, default=[*CHECKS], help="checks to run (default all)")
    parser.add_argument("--no-rows", action="store_true", help="measure nothing")
    parser.add_argument("--cpu", action="store_true", help="run on the CPU")
    arguments = parser.parse_args()
    if not arguments.cpu and not torch.cuda.is_available():
        print("error: no CUDA device; pneumo-dist doctor says why, --cpu runs the checks on the CPU", file=sys.stderr)
        return 2
    # Small networks on the CPU are many times slower on many threads.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    end = time.monotonic() + 60 * arguments.minutes
    report: dict[str, Any] = {**in_fresh_process(machine), "checks": {}, "rows": []}
    for name in arguments.checks:
        print(f"{name}: {CHECKS[name].text} …", flush=True)
        result = run_check(CHECKS[name], arguments.cpu, end - time.monotonic())
        report["checks"][name] = asdict(result)
        print(described(result), flush=True)
        save(arguments.out, report)
    if not arguments.no_rows:
        measure(arguments.work, arguments.cpu, end - time.monotonic())
        report["rows"] = read_rows(arguments.work / ROWS)
        save(arguments.out, report)
    has_passed = all(check["outcome"] == "passed" for check in report["checks"].values())
    print(f"{'PASSED' if has_passed else 'FAILED'}; {len(report['rows'])} rows measured; report: {arguments.out}")
    return 0 if has_passed else 1


def machine() -> dict[str, Any]:
    """Return the machine and the versions. Call it in a separate process, because it takes memory on each GPU."""
    is_cuda = torch.cuda.is_available()
    return {
        "version": __version__,
        "source": source_digest(),
        "date": datetime.date.today().isoformat(),
        "devices": [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())],
        "driver": query_smi().driver or None,
        "nccl": ".".join(map(str, torch.cuda.nccl.version())) if is_cuda else None,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dali": dali_version(),
        "cores": len(os.sched_getaffinity(0)),
    }


def run_check(check: Check, cpu: bool, seconds: float) -> Result:
    """Run a check's tests in a separate process, at most for the given time."""
    if seconds <= 0:
        return Result("out of time", 0.0)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder, (Path(folder) / "output").open("w+") as output:
        report = Path(folder) / "report.xml"
        code = run_limited(pytest_command(check, cpu, "--junitxml", str(report)), seconds, output)
        spent = time.monotonic() - started
        if code is None:
            return Result("out of time", spent)
        if not report.exists():
            output.seek(0)
            return Result("failed", spent, failures={f"exit code {code}": output.read()[-SHOWN_FAILURE:]})
        return result_of(report.read_text(), spent)


def pytest_command(check: Check, cpu: bool, *options: str) -> list[str]:
    """Return the command that runs a check's tests, those for the CPU or those for a GPU."""
    tests = [f"tests/gpu/{test}" for test in check.tests]
    return [sys.executable, "-m", "pytest", "-q", *tests, "-m", "not gpu" if cpu else "gpu", *options]


def result_of(junit: str, seconds: float) -> Result:
    """Return the result in pytest's JUnit report. A check in which no test passed has failed."""
    passed, skipped, failures = 0, 0, {}
    for case in ElementTree.fromstring(junit).iter("testcase"):
        fault = next((found for kind in ("failure", "error") if (found := case.find(kind)) is not None), None)
        if fault is not None:
            failures[str(case.get("name"))] = str(fault.get("message"))[:SHOWN_FAILURE]
        elif case.find("skipped") is not None:
            skipped += 1
        else:
            passed += 1
    if not passed and not failures:
        failures["no test"] = "all tests were skipped" if skipped else "no test was found"
    return Result("failed" if failures else "passed", seconds, passed, skipped, failures)


def described(result: Result) -> str:
    """Return a result as text."""
    counts = f"{result.passed} passed, {result.skipped} skipped, {len(result.failures or {})} failed"
    lines = [f"  {result.outcome} in {result.seconds:.0f} s ({counts})"]
    return "\n".join(lines + [f"  {name}: {message}" for name, message in (result.failures or {}).items()])


def measure(work: Path, cpu: bool, seconds: float) -> None:
    """Measure rows of `benchmarks.gpu`, the most informative first, at most for the given time."""
    if seconds <= 0:
        return
    work.mkdir(parents=True, exist_ok=True)
    limits = ["--minutes", f"{seconds / 60:.3f}", "--out", str(work / ROWS)]
    quick = ["--quick", "--device", "cpu", "--rows", "bf16,channels_last"] if cpu else []
    subprocess.run([sys.executable, "-m", "benchmarks.gpu", "--work", str(work), *limits, *quick], cwd=ROOT)


def save(path: Path, report: Mapping[str, Any]) -> None:
    atomic_write(path, json.dumps(report, indent=2) + "\n")


if __name__ == "__main__":
    sys.exit(main())
