"""Run the commands on thousands of films and measure their seconds and memory.

    python -m benchmarks.load --work /tmp/load-benchmark
    python -m benchmarks.load --work /tmp/load-benchmark --only tune,submit --films 2000
    python -m benchmarks.load --work /tmp/load-benchmark --before ../older-checkout

The inputs are made once in the --work folder, and an interrupted run continues with those that are missing. With
--before, each command also runs from another checkout of this repository, and the files that both write are compared
by SHA-256. Memory is sampled ten times a second: the resident size of the command's process, of its largest child, and
the proportional size (shared pages count once) of all processes together.

    build     `shards build` of 20,000 films of 64 px
    tune      `tune` on out-of-fold predictions of 512 px, with labels on a grid of 1024 px
    report    `report` on the same predictions
    submit    `submit` of as many test predictions
    segment   `segment` of 500 DICOM films of 1024 px in one call, and of 100 of them
    status    `status` of 1,000 folds with 50 epochs each
"""

import contextlib
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import cv2
import numpy as np

from benchmarks import ROOT
from benchmarks.common import FilmSet, cpu_environment, machine, parser_of, run_on_cpu
from benchmarks.load_inputs import (
    FILMS,
    GRID,
    POSITIVE,
    bundle,
    films_to_segment,
    labelled_shards,
    run_folders,
    runs_with_predictions,
    small_films,
)
from benchmarks.tables import table
from shards.console import counted
from shards.files import sha256_file

DEFAULTS = {"build": 20_000, "tune": FILMS, "report": FILMS, "submit": FILMS, "segment": 500, "status": 1_000}
HEAD = ("command", "code", "seconds", "of them of a core", "main, MiB", "largest child, MiB", "together, MiB")
_SAMPLE_SECONDS = 0.1


@dataclass(frozen=True)
class Command:
    """A command to measure: its name in the table, its arguments after `python -m`, and the files that it writes.

    Folders stand for all files below them. `fresh` is removed before the command runs.
    """

    name: str
    arguments: Sequence[object]
    writes: Sequence[Path] = ()
    fresh: Sequence[Path] = ()


@dataclass
class Usage:
    """What a command took. Memory is in MiB.

    `by_line` holds the resident size of the command's process after every hundredth line of its output.
    """

    seconds: float = 0.0
    core_seconds: float = 0.0
    main: float = 0.0
    child: float = 0.0
    together: float = 0.0
    by_line: dict[int, float] = field(default_factory=dict)


def commands(part: str, work: Path, count: int) -> list[Command]:
    """Return the commands of a part, after its inputs are made."""
    if part == "build":
        films, out = small_films(work, count), work / "built"
        options = ["--dicom", films / "films", "--rle", films / "labels.csv", "--out", out, "--image-size", 64]
        salt = out.with_name(f"{out.name}.salt")
        salt.write_text("00" * 32 + "\n")
        salt.chmod(0o600)
        return [Command(f"build, {count:,} films", ["shards", "build", *options], [out], [out])]
    if part == "segment":
        phantoms, out = FilmSet(min(25, count), GRID, POSITIVE).folder(work), work / "segmented"
        options = ["--bundle", bundle(work), "--out", out, "--cpu"]
        few = max(count // 5, 1)
        return [
            Command(
                f"segment, {each:,} films",
                ["pneumo_dist", "segment", films_to_segment(work, phantoms, each), *options],
                [out],
                [out],
            )
            for each in (few, count)
        ]
    if part == "status":
        return [Command(f"status, {count:,} folds", ["pneumo_dist", "status", run_folders(work, count)])]
    runs = runs_with_predictions(work, count)
    run, config = runs / "load", ["--config", work / "load.yaml", "--runs", runs]
    thresholds = [run / "oof" / name for name in ("thresholds.json", "thresholds.png", "components.png")]
    if part == "tune":
        return [Command(f"tune, {count:,} films", ["pneumo_dist", "tune", *config], thresholds, thresholds)]
    if part == "report":
        arguments = ["pneumo_dist", "report", *config, "--shards", labelled_shards(work, count)]
        return [Command(f"report, {count:,} films", arguments, [run / "report.html", run / "overlays.png"])]
    if not thresholds[0].exists():
        run_on_cpu([sys.executable, "-m", "pneumo_dist", "tune", *map(str, config)])
    return [Command(f"submit, {count:,} films", ["pneumo_dist", "submit", *config], [run / "test/submission.csv"])]


def measure(command: Command, checkout: Path) -> Usage:
    """Run a command from a checkout. Raises RuntimeError with its last output if it fails."""
    for path in command.fresh:
        shutil.rmtree(path) if path.is_dir() else path.unlink(missing_ok=True)
    usage, started = Usage(), time.perf_counter()
    environment = {**cpu_environment(2), "PYTHONPATH": str(checkout)}
    with (Path(os.devnull)).open("r+") as nothing:
        process = subprocess.Popen(
            [sys.executable, "-m", *map(str, command.arguments)],
            cwd=checkout,
            env=environment,
            stdin=nothing,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    assert process.stdout is not None
    os.set_blocking(process.stdout.fileno(), False)
    output = b""
    while True:
        with contextlib.suppress(BlockingIOError):
            output += process.stdout.read() or b""
        lines = output.count(b"\n") // 100 * 100
        resident = _sample(process.pid, usage)
        if lines and resident:
            usage.by_line.setdefault(lines, resident)
        pid, status, resources = os.wait4(process.pid, os.WNOHANG)
        if pid:
            break
        time.sleep(_SAMPLE_SECONDS)
    usage.seconds = time.perf_counter() - started
    usage.core_seconds = resources.ru_utime + resources.ru_stime
    process.returncode = os.waitstatus_to_exitcode(status)
    output += process.stdout.read() or b""
    process.stdout.close()
    if process.returncode:
        raise RuntimeError(f"{command.name} failed:\n{output.decode(errors='replace')[-3000:]}")
    return usage


def _sample(main: int, usage: Usage) -> float:
    """Add the memory of a process and of all below it to the peaks; return the resident size of the process."""
    resident, total = 0.0, 0.0
    for pid in _tree(main):
        with contextlib.suppress(OSError, ValueError):
            facts = _kilobytes(Path(f"/proc/{pid}/status").read_text())
            total += _kilobytes(Path(f"/proc/{pid}/smaps_rollup").read_text())["Pss"] / 1024
            if pid == main:
                resident, usage.main = facts["VmRSS"] / 1024, max(usage.main, facts["VmHWM"] / 1024)
            else:
                usage.child = max(usage.child, facts["VmHWM"] / 1024)
    usage.together = max(usage.together, total)
    return resident


def _tree(pid: int) -> list[int]:
    """Return a process and all processes below it."""
    found = [pid]
    for each in found:
        with contextlib.suppress(OSError):
            for task in Path(f"/proc/{each}/task").iterdir():
                found += map(int, (task / "children").read_text().split())
    return found


def _kilobytes(text: str) -> dict[str, int]:
    fields = (line.split() for line in text.splitlines())
    return {each[0].rstrip(":"): int(each[1]) for each in fields if len(each) == 3 and each[2] == "kB"}


def digests(paths: Sequence[Path]) -> dict[Path, str]:
    """Return the SHA-256 of files, and of all files below folders, but for DICOM objects: their UIDs are always new."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path])]
    return {file: sha256_file(file) for file in files if file.is_file() and file.suffix != ".dcm"}


def row(command: Command, code: str, usage: Usage) -> list[str]:
    figures = [usage.seconds, usage.core_seconds, usage.main, usage.child, usage.together]
    return [command.name, code, f"{figures[0]:.1f}", f"{figures[1]:.1f}", *(f"{each:.0f}" for each in figures[2:])]


def compared(before: Mapping[Path, str], after: Mapping[Path, str]) -> str:
    """Say whether two runs of a command wrote the same files."""
    different = sorted(str(path) for path in before.keys() | after.keys() if before.get(path) != after.get(path))
    return f"{counted(len(after), 'file')} equal" if not different else f"DIFFERENT: {', '.join(different[:5])}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = parser_of(__doc__, "load", list(DEFAULTS))
    parser.add_argument("--films", type=int, help="number of films, or of folds for status (default: those above)")
    parser.add_argument("--before", type=Path, help="another checkout, to compare with")
    arguments = parser.parse_args(argv)
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    checkouts = {"now": ROOT} if arguments.before is None else {"before": arguments.before.resolve(), "now": ROOT}
    lines, notes = [], []
    for part in arguments.only:
        for command in commands(part, work, arguments.films or DEFAULTS[part]):
            written = []
            for code, checkout in checkouts.items():
                usage = measure(command, checkout)
                written.append(digests(command.writes))
                lines.append(row(command, code, usage))
                print(" ".join(lines[-1]), flush=True)
                if usage.by_line:
                    sizes = ", ".join(f"{line}: {size:.0f}" for line, size in usage.by_line.items())
                    notes.append(f"{command.name}, {code}: resident MiB by lines printed: {sizes}")
            if len(written) == 2 and command.writes:
                notes.append(f"{command.name}: {compared(*written)}")
    print(f"\n{machine(np, cv2)}\n\n{table(HEAD, lines)}")
    print("\n".join(notes))
    return 0


if __name__ == "__main__":
    sys.exit(main())
