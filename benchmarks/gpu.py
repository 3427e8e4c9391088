"""Measure how fast networks train on a GPU, compared with the card's limits, and how fast films reach it.

    python -m benchmarks.gpu --work /tmp/gpu-benchmark
    python -m benchmarks.gpu --work /tmp/gpu-benchmark --encoders se_resnext50_32x4d --rows bf16,channels_last,compile
    python -m benchmarks.gpu --work /tmp/gpu-benchmark --quick
    python -m benchmarks.gpu_report

Run it from the root of the repository while nothing else uses the GPU. A separate process measures each row. The row
is then appended to the file of rows, so a run that was interrupted resumes with the missing rows. Rows of other cards
do not count. `gpu_report` turns the file into the tables of docs/performance.md.

    plain           (a) IEEE float32, DataLoader and albumentations on all cores, in the style of recipe C
    bf16            (b) the trainer's step in bf16 on synthetic input; determines the batch of the rows below
    channels_last   the same in the other memory layout; (c) is the faster of the two
    fp16            the faster layout in fp16 with a scaler
    compile         (d) the faster layout, compiled
    dali-png        (e) (d) with DALI reading PNG shards of 1024 px, recipe A's augmentation
    dali-jpeg       (f) the same from JPEG shards
    loader          the loaders alone
    shipped         the step of the heavy experiments in configs/, with their moving average, heads and batch: its
                    rate, its waits for the GPU and its parts; and the variants shipped-layout, shipped-fused,
                    shipped-compile, shipped-graphs and shipped-batch

The most informative rows come first. --minutes limits the time: the row in progress is dropped, and the same command
measures the rest later. Without DALI, the rows that need it are skipped.

The batch is the largest that fits in 70 % of the memory. Films are phantoms in the SIIM layout, made once in the --work
folder. --quick checks that every part works, on a small network; --device cpu works with --quick only. Both write to a
file next to the films, which no table uses.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import ROOT
from benchmarks.common import FilmSet, one_of, parser_of, run_limited
from benchmarks.gpu_cards import card_of
from benchmarks.gpu_steps import MOST_BATCH, QUICK, Counts, Settings
from benchmarks.gpu_store import (
    ENCODERS,
    LOADER,
    LOADER_SIZES,
    NETWORKS,
    SHIPPED_NETWORKS,
    SHIPPED_WAYS,
    WAYS,
    Row,
    Task,
    append_row,
    better_layout,
    latest,
    missing,
    read_rows,
    tasks,
)
from pneumo_dist import __version__

ROWS = ROOT / "docs" / "gpu-rows.jsonl"
QUICK_ROWS = "quick-rows.jsonl"
QUICK_ENCODER, QUICK_SIZE = "resnet18", 64


def main() -> int:
    arguments = parsed()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device; --device cpu --quick checks that the parts work", file=sys.stderr)
        return 2
    counts = QUICK if arguments.quick else Counts()
    counts = replace(counts, most_batch=arguments.most_batch or counts.most_batch)
    name = device_name(device)
    out: Path = arguments.out or (arguments.work / QUICK_ROWS if arguments.quick else ROWS)
    if device == "cuda" and card_of(name, arguments.peaks) is None:
        print(f"{name} is not in benchmarks/gpu_cards.py: without --peaks, rows have no share of a peak", flush=True)
    chosen = chosen_tasks(arguments)
    if dali_version() is None:
        print("DALI is not installed: skipping the rows that need it", flush=True)
        chosen = [task for task in chosen if not needs_dali(task)]
    left = missing(chosen, read_rows(out), name)
    print(f"{name}: {len(chosen) - len(left)} of {len(chosen)} rows exist, new rows go to {out}", flush=True)
    if not left:
        return 0
    films = FilmSet(counts.films, counts.stored)
    shards = {codec: str(films.shards(arguments.work, codec=codec)) for codec in ("png", "jpeg")}
    failed = 0
    end = time.monotonic() + 60 * arguments.minutes if arguments.minutes else None
    for number, task in enumerate(left):
        seconds = None if end is None else end - time.monotonic()
        if seconds is not None and seconds <= 0:
            print(f"time limit reached: {len(left) - number} rows remain for the next run", flush=True)
            break
        settings = settings_of(task, device, shards, counts, read_rows(out), name, arguments.peaks)
        if settings is not None and arguments.quick:
            settings = replace(settings, encoder=QUICK_ENCODER)
        figures = measured(settings, seconds) if settings is not None else None
        if figures is None:
            failed += 1
            continue
        append_row(out, {**asdict(task), **provenance(device, name), **figures})
        print(f"  {task.network} {task.size} px {task.way}: {figures['images_per_s']:.1f} images/s", flush=True)
    if failed:
        print(f"{failed} rows failed or depend on missing rows; run the same command to retry", file=sys.stderr)
    return 1 if failed else 0


def parsed(words: Sequence[str] | None = None) -> argparse.Namespace:
    """Parse the command line."""
    parser = parser_of(__doc__, "gpu")
    parser.add_argument("--out", type=Path, help="file of the rows (default docs/gpu-rows.jsonl)")
    names = ",".join(ENCODERS)
    parser.add_argument("--encoders", type=lambda text: text.split(","), help=f"encoders, of {names} (default all)")
    rows = [*WAYS, *SHIPPED_WAYS, LOADER]
    parser.add_argument("--rows", type=one_of(rows), default=rows, help=f"rows, of {','.join(rows)} (default all)")
    parser.add_argument("--minutes", type=float, help="maximum duration in minutes (default no limit)")
    parser.add_argument("--quick", action="store_true", help="check that every part works; its figures mean nothing")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu needs --quick (default cuda)")
    parser.add_argument("--most-batch", type=int, help=f"maximum batch to try (default {MOST_BATCH})")
    parser.add_argument("--peaks", help="peaks of an unknown card: TFLOP/s of bf16, TF32 and float32, and GB/s")
    arguments = parser.parse_args(words)
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("--device cpu needs --quick: its figures mean nothing")
    unknown = {*(arguments.encoders or ())} - {*ENCODERS}
    if unknown and not arguments.quick:
        parser.error(f"--encoders {','.join(sorted(unknown))}: choose from {names}")
    return arguments


def chosen_networks(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """Return encoders and sizes; --quick accepts any encoder and uses a small size."""
    if arguments.quick:
        return [(encoder, QUICK_SIZE) for encoder in arguments.encoders or [QUICK_ENCODER]]
    return [(encoder, size) for encoder, size in NETWORKS if encoder in (arguments.encoders or ENCODERS)]


def chosen_tasks(arguments: argparse.Namespace) -> list[Task]:
    """Return the tasks of the command line; the shipped experiments are those of the chosen encoders."""
    networks = chosen_networks(arguments)
    if arguments.quick:
        name, _ = SHIPPED_NETWORKS[0]
        return tasks(networks, arguments.rows, (QUICK_SIZE,), [(name, QUICK_SIZE)])
    chosen = arguments.encoders or ENCODERS
    shipped = [(name, size) for name, size in SHIPPED_NETWORKS if any(name.split("_", 1)[1] in each for each in chosen)]
    return tasks(networks, arguments.rows, LOADER_SIZES, shipped)


def needs_dali(task: Task) -> bool:
    """Return whether DALI loads a task's films."""
    return task.way.startswith("dali")


def settings_of(
    task: Task, device: str, shards: dict[str, str], counts: Counts, rows: Sequence[Row], name: str, peaks: str | None
) -> Settings | None:
    """Return how to measure a row, given the earlier rows; None if a row that it depends on is missing."""
    batch: int | None = None
    layout = better_layout(rows, task.network, task.size, name)
    if task.way in WAYS and task.network != LOADER and task.way not in ("plain", "bf16"):
        first = latest(rows, Task(task.network, task.size, "bf16"), name)
        if first is None or (WAYS[task.way].layout is None and layout is None):
            return None
        batch = int(first["batch"])
    return Settings(task, device, shards, bool(layout), batch, counts, peaks)


def measured(settings: Settings, seconds: float | None = None) -> dict[str, Any] | None:
    """Measure a row in a separate process; return None if it fails (the end of its output is printed) or times out."""
    task = settings.task
    with tempfile.TemporaryDirectory() as folder:
        request, result = Path(folder) / "settings.json", Path(folder) / "row.json"
        request.write_text(json.dumps(asdict(settings)))
        command = [sys.executable, "-m", "benchmarks.gpu_rows", str(request), str(result)]
        with (Path(folder) / "output").open("w+") as output:
            code = run_limited(command, seconds, output)
            if code is None:
                print(f"  {task.network} {task.size} px {task.way}: dropped at the time limit", flush=True)
                return None
            if code:
                output.seek(0)
                print(f"  {task.network} {task.size} px {task.way} failed:\n{output.read()[-2000:]}", file=sys.stderr)
                return None
        figures: dict[str, Any] = json.loads(result.read_text())
        return figures


def device_name(device: str) -> str:
    """Return the GPU's name; the name of a CPU starts with "CPU", so it cannot be mistaken for a GPU."""
    if device == "cpu":
        return f"CPU ({platform.machine()})"
    # In a child process, because this one must not hold GPU memory while others measure.
    command = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name(0))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def provenance(device: str, name: str) -> Row:
    """Return the columns of a row that say where, when and with which versions it was measured."""
    return {
        "device": name,
        "device_type": device,
        "date": datetime.date.today().isoformat(),
        "code": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "cuda": torch.version.cuda,
        "dali": dali_version(),
        "cores": os.cpu_count(),
    }


def dali_version() -> str | None:
    """Return DALI's version, None if it is not installed."""
    for cuda in ("130", "120"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(f"nvidia-dali-cuda{cuda}")
    return None


if __name__ == "__main__":
    sys.exit(main())
