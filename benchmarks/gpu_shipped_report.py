"""The tables of the shipped experiments' own step, from the rows of `benchmarks.gpu`."""

from collections.abc import Sequence

from benchmarks.gpu_store import SHIPPED_NETWORKS, SHIPPED_WAYS, Row, Task, latest
from benchmarks.tables import NOT_MEASURED, idle, percent, table

WORDS = {
    "shipped": "as it is",
    "shipped-layout": "the other memory layout",
    "shipped-fused": "fused optimizer",
    "shipped-compile": "fused, compiled",
    "shipped-graphs": "fused, compiled with CUDA graphs",
    "shipped-batch": "fused, 16 films a forward pass",
}


def shipped_tables(rows: Sequence[Row]) -> str:
    """Return the rates of the shipped steps, what they wait for, and what takes its time beside the network."""
    found = {task: row for task in _tasks() if rows and (row := latest(rows, task, rows[-1]["device"]))}
    return f"""### The shipped experiments' own step

One of eight ranks, ready input, the experiment's network, heads, moving average, precision and layout. Waits are calls
that hold the host until the GPU has caught up.

{_rates(found)}
{_waits(found)}
Beside forward and backward, milliseconds until the host goes on / until the GPU has done it:

{_parts(found)}"""


def _tasks() -> list[Task]:
    return [Task(name, size, way) for name, size in SHIPPED_NETWORKS for way in SHIPPED_WAYS]


def _rates(found: dict[Task, Row]) -> str:
    lines = []
    for task in _tasks():
        row = found.get(task)
        what = [f"{task.network}, {task.size} px", WORDS[task.way]]
        if row is None:
            lines.append([*what, *[NOT_MEASURED] * 6])
            continue
        rate, step = f"{row['images_per_s']:.1f}", f"{1000 * row['step_s']:.1f}"
        waits = f"{sum(_places(row).values()):g}" if "waits" in row else ""
        memory = f"{row['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in row else ""
        lines.append([*what, rate, step, str(row["batch"]), percent(idle(row)), waits, memory])
    return table(["", "", "images/s", "ms a step", "batch", "GPU idle", "waits a step", "memory"], lines)


def _waits(found: dict[Task, Row]) -> str:
    """Return the lines that wait, of the steps as they are."""
    places: dict[str, dict[str, float]] = {}
    for task, row in found.items():
        if task.way == "shipped":
            for place, count in _places(row).items():
                places.setdefault(place, {})[task.network] = count
    if not places:
        return ""
    names = [name for name, _ in SHIPPED_NETWORKS]
    lines = [[f"`{place}`", *(f"{counts.get(name, 0):g}" for name in names)] for place, counts in places.items()]
    return table(["waits a step, by line", *names], lines)


def _places(row: Row) -> dict[str, float]:
    """Return a row's waits; older rows counted torch's word about the counting itself."""
    return {place: count for place, count in row.get("waits", {}).items() if place.startswith("pneumo_dist/")}


def _parts(found: dict[Task, Row]) -> str:
    rows = {task.network: row["parts"] for task, row in found.items() if task.way == "shipped"}
    kinds = list(dict.fromkeys(kind for row in rows.values() for kind in row))
    if not kinds:
        return f"{NOT_MEASURED}\n"
    names = [name for name, _ in SHIPPED_NETWORKS]
    lines = [
        [kind, *(_pair(rows[name].get(kind)) if name in rows else NOT_MEASURED for name in names)] for kind in kinds
    ]
    return table(["", *names], lines)


def _pair(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['host_ms']:.2f} / {value['done_ms']:.2f}"
