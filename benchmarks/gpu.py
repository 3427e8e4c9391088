"""How fast networks train on a GPU, beside what the card allows; and how fast films reach it.

    python -m benchmarks.gpu --work /tmp/gpu-benchmark
    python -m benchmarks.gpu --work /tmp/gpu-benchmark --encoders se_resnext50_32x4d --rows bf16,channels_last,compile
    python -m benchmarks.gpu --work /tmp/gpu-benchmark --quick
    python -m benchmarks.gpu_report

Run it from the root of the repository on a machine whose GPU nothing else uses. Each row is measured by a process of
its own and added to the file of rows as it ends, so that a run that was cut off goes on with what is missing; a row of
another card is not a row of this one. `gpu_report` makes the tables of docs/performance.md of that file.

    plain           (a) IEEE float32, DataLoader and albumentations with all cores, in the style of recipe C
    bf16            (b) the trainer's own step in bf16 on ready input; it finds the batch of the rows below
    channels_last   the same in the other memory layout; (c) is the faster of the two
    fp16            the better layout in fp16 with a scaler
    compile         (d) the better layout compiled
    dali-png        (e) (d) fed by DALI from PNG shards of 1024 px, recipe A's augmentation
    dali-jpeg       (f) the same from JPEG shards
    loader          the loaders alone
    shipped         the own step of the heavy experiments in configs/, with moving average, heads and batch: its rate,
                    its waits for the GPU, its parts; and changed, shipped-layout, -fused, -compile, -graphs and -batch

What tells the most comes first. --minutes ends a run that may not take longer: the row that it meets is lost, and no
other; give the same command again for the rest. Where DALI is missing, the rows that need it are left out.

The batch is the largest that fits in 70 % of the memory. Films are synthetic ones in the SIIM layout, made once in the
--work folder. --quick shows that every part works, on a small network; --device cpu is for that alone. Both write
beside the films, to a file that no table is made of.
"""

import argparse
import contextlib
import datetime
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu_cards import card_of
from benchmarks.gpu_steps import Settings
from benchmarks.gpu_store import (
    ENCODERS,
    LOADER,
    LOADER_SIZES,
    NETWORKS,
    SHIPPED_NETWORKS,
    SHIPPED_WAYS,
    STORED,
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
from benchmarks.input_pipeline import built_shards
from benchmarks.shards import ROOT
from pneumo_dist import __version__

ROWS = ROOT / "docs" / "gpu-rows.jsonl"
QUICK_ROWS = "quick-rows.jsonl"
# From 64 images of 1024 px with 32 channels on, torch's channels-last upsampling has more values than it counts.
MOST_BATCH = 48


@dataclass(frozen=True)
class Counts:
    """How much a row measures."""

    films: int = 64
    stored: int = STORED
    warm: int = 10
    steps: int = 30
    profiled: int = 5
    most_batch: int = MOST_BATCH


QUICK = Counts(films=12, stored=128, warm=1, steps=2, profiled=2, most_batch=2)
QUICK_ENCODER, QUICK_SIZE = "resnet18", 64


def main() -> int:
    arguments = parsed()
    device = arguments.device
    if device == "cuda" and not torch.cuda.is_available():
        print("error: no CUDA device; --device cpu --quick shows that the parts work", file=sys.stderr)
        return 2
    counts = QUICK if arguments.quick else Counts()
    counts = replace(counts, most_batch=arguments.most_batch or counts.most_batch)
    name = device_name(device)
    out: Path = arguments.out or (arguments.work / QUICK_ROWS if arguments.quick else ROWS)
    if device == "cuda" and card_of(name, arguments.peaks) is None:
        print(f"{name} is not in benchmarks/gpu_cards.py: without --peaks, rows have no share of a peak", flush=True)
    wanted = chosen_tasks(arguments)
    if dali_version() is None:
        print("there is no DALI here: rows that need it are left out", flush=True)
        wanted = [task for task in wanted if not needs_dali(task)]
    left = missing(wanted, read_rows(out), name)
    print(f"{name}: {len(wanted) - len(left)} of {len(wanted)} rows are there, rows go to {out}", flush=True)
    if not left:
        return 0
    side = counts.stored
    shards = {codec: str(built_shards(arguments.work, counts.films, side, codec, side)) for codec in ("png", "jpeg")}
    failed = 0
    end = time.monotonic() + 60 * arguments.minutes if arguments.minutes else None
    for number, task in enumerate(left):
        seconds = None if end is None else end - time.monotonic()
        if seconds is not None and seconds <= 0:
            print(f"{len(left) - number} rows are left for the next run", flush=True)
            break
        settings = settings_of(task, device, shards, counts, read_rows(out), name, arguments.peaks)
        if settings is not None and arguments.quick:
            settings = replace(settings, encoder=QUICK_ENCODER)
        found = measured(settings, seconds) if settings is not None else None
        if found is None:
            failed += 1
            continue
        append_row(out, {**asdict(task), **machine(device, name), **found})
        print(f"  {task.network} {task.size} px {task.way}: {found['images_per_s']:.1f} images/s", flush=True)
    if failed:
        print(f"{failed} rows failed or lack the rows that they build on; run again to try them again", file=sys.stderr)
    return 1 if failed else 0


def parsed(given: Sequence[str] | None = None) -> argparse.Namespace:
    """Read the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/gpu-benchmark"), help="folder for films and shards")
    parser.add_argument("--out", type=Path, help="file of the rows (default docs/gpu-rows.jsonl)")
    parser.add_argument("--encoders", type=_listed, help=f"encoders, of {','.join(ENCODERS)} (all)")
    rows = [*WAYS, *SHIPPED_WAYS, LOADER]
    parser.add_argument("--rows", type=_listed, default=rows, help=f"rows, of {','.join(rows)} (all)")
    parser.add_argument("--minutes", type=float, help="most minutes of the run (no limit)")
    parser.add_argument("--quick", action="store_true", help="as little of everything as shows that it works")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda", help="cpu goes with --quick (cuda)")
    parser.add_argument("--most-batch", type=int, help=f"largest batch that is tried (default {MOST_BATCH})")
    parser.add_argument("--peaks", help="of a card that is not known: TFLOP/s of bf16, TF32, float32, and GB/s")
    arguments = parser.parse_args(given)
    unknown = {*arguments.rows} - {*rows}
    if unknown:
        parser.error(f"--rows {','.join(sorted(unknown))}: choose from {','.join(rows)}")
    if arguments.device == "cpu" and not arguments.quick:
        parser.error("--device cpu is for --quick: its figures mean nothing")
    known = {encoder for encoder, _ in NETWORKS}
    strange = {*(arguments.encoders or ())} - known
    if strange and not arguments.quick:
        parser.error(f"--encoders {','.join(sorted(strange))}: choose from {','.join(ENCODERS)}")
    return arguments


def _listed(text: str) -> list[str]:
    return text.split(",")


def chosen_networks(arguments: argparse.Namespace) -> list[tuple[str, int]]:
    """Return encoders and sizes; --quick takes any encoder, at its small size."""
    if arguments.quick:
        return [(encoder, QUICK_SIZE) for encoder in arguments.encoders or [QUICK_ENCODER]]
    return [(encoder, size) for encoder, size in NETWORKS if encoder in (arguments.encoders or ENCODERS)]


def chosen_tasks(arguments: argparse.Namespace) -> list[Task]:
    """Return the tasks that were asked for; the shipped experiments are those whose encoders were chosen."""
    networks = chosen_networks(arguments)
    if arguments.quick:
        name, _ = SHIPPED_NETWORKS[0]
        return tasks(networks, arguments.rows, (QUICK_SIZE,), [(name, QUICK_SIZE)])
    chosen = arguments.encoders or ENCODERS
    shipped = [(name, size) for name, size in SHIPPED_NETWORKS if any(name.split("_", 1)[1] in each for each in chosen)]
    return tasks(networks, arguments.rows, LOADER_SIZES, shipped)


def needs_dali(task: Task) -> bool:
    """Return whether a task's films come through DALI."""
    return task.way.startswith("dali")


def settings_of(
    task: Task, device: str, shards: dict[str, str], counts: Counts, rows: Sequence[Row], name: str, peaks: str | None
) -> Settings | None:
    """Return how a row is measured, by what rows before it have found; None where one that it builds on is missing."""
    batch: int | None = None
    layout = better_layout(rows, task.network, task.size, name)
    if task.way in WAYS and task.network != LOADER and task.way not in ("plain", "bf16"):
        first = latest(rows, Task(task.network, task.size, "bf16"), name)
        if first is None or (WAYS[task.way].layout is None and layout is None):
            return None
        batch = int(first["batch"])
    return Settings(
        task=task,
        device=device,
        shards=shards,
        layout=bool(layout),
        batch=batch,
        warm=counts.warm,
        steps=counts.steps,
        profiled=counts.profiled,
        most_batch=counts.most_batch,
        peaks=peaks,
    )


def measured(settings: Settings, seconds: float | None = None) -> dict[str, Any] | None:
    """Measure a row in a process of its own; None where it failed, with its last words on stderr, or took too long."""
    task = settings.task
    with tempfile.TemporaryDirectory() as folder:
        given, found = Path(folder) / "settings.json", Path(folder) / "found.json"
        given.write_text(json.dumps(asdict(settings)))
        command = [sys.executable, "-m", "benchmarks.gpu_rows", str(given), str(found)]
        # A session of its own: what ends a row ends its loader's processes too.
        with (Path(folder) / "words").open("w+") as words:
            process = subprocess.Popen(
                command, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=words, text=True, start_new_session=True
            )
            try:
                code = process.wait(seconds)
            except subprocess.TimeoutExpired:
                print(f"  {task.network} {task.size} px {task.way}: the time is over", flush=True)
                return None
            finally:
                with contextlib.suppress(ProcessLookupError):
                    os.killpg(process.pid, signal.SIGKILL)
                process.wait()
            if code:
                words.seek(0)
                print(f"  {task.network} {task.size} px {task.way} failed:\n{words.read()[-2000:]}", file=sys.stderr)
                return None
        result: dict[str, Any] = json.loads(found.read_text())
        return result


def device_name(device: str) -> str:
    """Return the GPU's name; that of a CPU begins so that nobody takes it for one."""
    if device == "cpu":
        return f"CPU ({platform.machine()})"
    # In a process of its own: this one must not hold memory of the GPU while others measure.
    command = [sys.executable, "-c", "import torch; print(torch.cuda.get_device_name(0))"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()


def machine(device: str, name: str) -> Row:
    """Return what a row says of where and when it was measured."""
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
    """Return DALI's version, None where it is missing."""
    for cuda in ("130", "120"):
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            return importlib.metadata.version(f"nvidia-dali-cuda{cuda}")
    return None


if __name__ == "__main__":
    sys.exit(main())
