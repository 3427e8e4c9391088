"""Tables of the shipped experiments' steps, from the rows of `benchmarks.gpu`."""

from collections.abc import Sequence

from benchmarks.gpu_store import SHIPPED_NETWORKS, SHIPPED_WAYS, Row, Task, latest
from benchmarks.tables import idle, percent, table

VARIANTS = {
    "shipped": "as shipped",
    "shipped-layout": "the other memory layout",
    "shipped-fused": "fused optimizer",
    "shipped-compile": "fused, compiled",
    "shipped-graphs": "fused, compiled with CUDA graphs",
    "shipped-batch": "fused, 16 films per forward pass",
}
PARTS = {"ema": "moving average", "buffers put back": "restoring buffers", "copies of buffers": "copying buffers"}


def shipped_tables(rows: Sequence[Row]) -> str:
    """Return tables of the measured steps: their rates, their waits for the GPU, and their parts."""
    tasks = [Task(name, size, way) for name, size in SHIPPED_NETWORKS for way in SHIPPED_WAYS]
    measured = {task: row for task in tasks if rows and (row := latest(rows, task, rows[-1]["device"]))}
    if not measured:
        return ""
    return f"""### The shipped experiments' steps

One of eight ranks, synthetic input, and the experiment's network, heads, moving average, precision and layout. A wait
is a call that blocks the host until the GPU has caught up.

{_rates(measured)}
{_waits(measured)}
Parts of a step other than forward and backward, in milliseconds until the host continues / until the GPU has finished:

{_parts(measured)}"""


def _rates(measured: dict[Task, Row]) -> str:
    lines = []
    for task, row in measured.items():
        rate, step = f"{row['images_per_s']:.1f}", f"{1000 * row['step_s']:.1f}"
        waits = f"{sum(_project_waits(row).values()):g}" if "waits" in row else ""
        memory = f"{row['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in row else ""
        name = [f"{task.network}, {task.size} px", VARIANTS[task.way]]
        lines.append([*name, rate, step, str(row["batch"]), percent(idle(row)), waits, memory])
    return table(["", "", "images/s", "ms per step", "batch", "GPU idle", "waits per step", "memory"], lines)


def _waits(measured: dict[Task, Row]) -> str:
    """Return the lines of code that wait, in the steps as shipped."""
    waits = {task.network: _project_waits(row) for task, row in measured.items() if task.way == "shipped"}
    locations = dict.fromkeys(location for counts in waits.values() for location in counts)
    lines = [[f"`{each}`", *(f"{counts.get(each, 0):g}" for counts in waits.values())] for each in locations]
    return table(["waits per step, by line", *waits], lines) if lines else ""


def _project_waits(row: Row) -> dict[str, float]:
    """Return a row's waits; older rows also counted torch's warning about the sync debug mode."""
    return {place: count for place, count in row.get("waits", {}).items() if place.startswith("pneumo_dist/")}


def _parts(measured: dict[Task, Row]) -> str:
    parts = {task.network: row["parts"] for task, row in measured.items() if task.way == "shipped"}
    names = dict.fromkeys(name for each in parts.values() for name in each)
    lines = [[PARTS.get(name, name), *(_pair(each.get(name)) for each in parts.values())] for name in names]
    return table(["", *parts], lines)


def _pair(value: dict[str, float] | None) -> str:
    return "" if value is None else f"{value['host_ms']:.2f} / {value['done_ms']:.2f}"
