"""Tasks of `benchmarks.gpu`, and the JSON Lines file of finished rows."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

Row = dict[str, Any]

ENCODERS = ("se_resnext50_32x4d", "se_resnext101_32x4d", "senet154", "resnet34")
# The first encoder at half the resolution of the films, and every encoder at full resolution.
NETWORKS = ((ENCODERS[0], 512), *((encoder, 1024) for encoder in ENCODERS))
LOADER = "loader"
LOADER_SIZES = (512, 1024)
STORED = 1024


@dataclass(frozen=True)
class Way:
    """A way to train: its letter and description in the tables, and its settings.

    `layout` is whether to use channels last; None means the faster layout measured for the network. `loader` "plain"
    is a plain loop with a DataLoader and albumentations; the others are the trainer's.
    """

    letter: str
    text: str
    loader: str = "synthetic"
    amp: str = "bf16"
    layout: bool | None = None
    compile: bool = False
    codec: str = "png"


WAYS = {
    "plain": Way("a", "plain loop, IEEE float32, DataLoader + albumentations", "plain", "float32", False),
    "bf16": Way("b", "bf16, synthetic input, contiguous", layout=False),
    "channels_last": Way("b'", "the same, channels last", layout=True),
    "fp16": Way("c'", "fp16 with a scaler, the faster layout", amp="fp16"),
    "compile": Way("d", "(c) and torch.compile", compile=True),
    "dali-png": Way("e", "(d) and DALI from PNG shards", "dali", compile=True),
    "dali-jpeg": Way("f", "(d) and DALI from JPEG shards", "dali", compile=True, codec="jpeg"),
}
# The ways in the order of measurement, the most informative first.
ORDER = ("bf16", "channels_last", "compile", "dali-jpeg", "fp16", "dali-png", "plain")
# The experiments of configs/ whose step is measured as on one of eight ranks, and the overrides of each variant.
GRAPHS, LAYOUT = "shipped-graphs", "shipped-layout"
SHIPPED_NETWORKS = tuple((f"heavy_{name}", 768) for name in ("se_resnext50", "se_resnext101", "senet154"))
SHIPPED_WAYS: dict[str, tuple[str, ...]] = {
    "shipped": (),
    LAYOUT: (),
    "shipped-fused": ("runtime.fused=true",),
    "shipped-compile": ("runtime.fused=true", "runtime.compile=true"),
    GRAPHS: ("runtime.fused=true",),
    "shipped-batch": ("runtime.fused=true", "micro_batch=16"),
}
# The codec of each way to load; "plain" is torch's DataLoader with albumentations, recipe A, on all cores.
LOADERS = {"dali-png": "png", "dali-jpeg": "jpeg", "plain-png": "png", "plain-jpeg": "jpeg"}


@dataclass(frozen=True)
class Task:
    """The subject of one row: a network (or LOADER), the side of its input in pixels, and the way."""

    network: str
    size: int
    way: str

    def matches(self, row: Row, device: str) -> bool:
        """Return whether a row measures this task on this device."""
        return row["device"] == device and all(row[name] == value for name, value in asdict(self).items())


def tasks(
    networks: Sequence[tuple[str, int]],
    ways: Sequence[str],
    sizes: Sequence[int] = LOADER_SIZES,
    shipped: Sequence[tuple[str, int]] = SHIPPED_NETWORKS,
) -> list[Task]:
    """Return tasks in order of measurement: the most informative first, and each way after those it depends on.

    `ways` are keys of WAYS for the `networks`, keys of SHIPPED_WAYS for the `shipped` experiments, and LOADER for the
    loaders alone at `sizes`.
    """
    chosen = list(ways)
    if any(WAYS[way].layout is None for way in chosen if way in WAYS):
        # These two determine the faster layout.
        chosen += ["bf16", "channels_last"]
    trained = [Task(encoder, size, way) for encoder, size in networks for way in ORDER if way in chosen]
    first = [task for task in trained if (task.network, task.size) == networks[0]]
    steps = [Task(name, size, way) for way in SHIPPED_WAYS for name, size in shipped if way in chosen]
    loaders = [Task(LOADER, size, way) for size in sizes for way in LOADERS if LOADER in chosen]
    return [*first, *steps, *loaders, *trained[len(first) :]]


def read_rows(path: Path) -> list[Row]:
    """Return the finished rows, oldest first; none if the file does not exist.

    A last line without a line break was cut off and is ignored.
    """
    if not path.exists():
        return []
    lines = path.read_text().split("\n")
    return [json.loads(line) for line in lines[:-1] if line]


def append_row(path: Path, row: Row) -> None:
    """Append a row, replacing a last line that was cut off."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as stream:
        stream.seek(0)
        whole = stream.read().rfind(b"\n") + 1
        stream.truncate(whole)
        stream.write(json.dumps(row, sort_keys=True).encode() + b"\n")


def latest(rows: Sequence[Row], task: Task, device: str) -> Row | None:
    """Return the newest row of a task on a device."""
    return next((row for row in reversed(rows) if task.matches(row, device)), None)


def missing(tasks: Sequence[Task], rows: Sequence[Row], device: str) -> list[Task]:
    """Return the tasks without a row on this device."""
    return [task for task in tasks if latest(rows, task, device) is None]


def better_layout(rows: Sequence[Row], network: str, size: int, device: str) -> bool | None:
    """Return whether channels last is the faster layout of a network, None if not both are measured."""
    pair = [latest(rows, Task(network, size, way), device) for way in ("bf16", "channels_last")]
    if pair[0] is None or pair[1] is None:
        return None
    return bool(pair[1]["images_per_s"] > pair[0]["images_per_s"])
