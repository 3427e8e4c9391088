"""The GPU tables of docs/performance.md, and their plot, from the rows that `benchmarks.gpu` has measured.

    python -m benchmarks.gpu_report
    python -m benchmarks.gpu_report --rows /tmp/gpu-benchmark/rows.jsonl --device "NVIDIA H100 80GB HBM3"

What no row says is "not yet measured". Rows of a CPU, which show only that the parts work, are never shown.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.gpu_shipped_report import shipped_tables
from benchmarks.gpu_store import LOADER, LOADER_SIZES, LOADERS, NETWORKS, WAYS, Row, Task, latest, read_rows
from benchmarks.tables import NOT_MEASURED, idle, number, percent, table
from shards.files import atomic_write

ROOT = Path(__file__).resolve().parents[1]
BEGIN, END = "<!-- gpu tables: made by benchmarks.gpu_report -->", "<!-- gpu tables end -->"
PLOT = "gpu-rates.png"
LAYOUTS = ("bf16", "channels_last")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "gpu-rows.jsonl", help="file of the rows")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of performance.md (docs)")
    parser.add_argument("--device", help="card whose rows are shown (default: that of the newest row)")
    arguments = parser.parse_args()
    measured = of_device(read_rows(arguments.rows), arguments.device)
    page: Path = arguments.docs / "performance.md"
    atomic_write(page, replaced(page.read_text(), tables(measured)))
    print(f"{page}: {len(measured)} rows")
    if measured:
        draw(measured, arguments.docs / PLOT)
        print(arguments.docs / PLOT)
    return 0


def of_device(rows: Sequence[Row], device: str | None) -> list[Row]:
    """Return the rows of one GPU, by default that of the newest one."""
    found = [row for row in rows if row["device_type"] == "cuda"]
    name = device or (found[-1]["device"] if found else None)
    return [row for row in found if row["device"] == name]


def replaced(text: str, made: str) -> str:
    """Return a page with what stands between the two marks replaced. Raises ValueError where it has no such marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{made}\n{END}{after}"


def tables(rows: Sequence[Row]) -> str:
    """Return all tables as Markdown; `rows` are of one GPU."""
    parts = [heading(rows), targets_table(rows)]
    parts += [network_table(rows, network, size) for network, size in NETWORKS]
    parts += [loader_table(rows), shipped_tables(rows)]
    if rows:
        parts.append(f"![Images per second of each network and way]({PLOT})\n")
    return "\n".join(parts)


def heading(rows: Sequence[Row]) -> str:
    """Say where and when the rows were measured."""
    if not rows:
        return "No GPU has been measured yet.\n"
    row = rows[-1]
    dates = sorted({each["date"] for each in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    dali = f"DALI {row['dali']}" if row["dali"] else "no DALI"
    return (
        f"{row['device']}, {row['cores']} CPU cores, Python {row['python']}, torch {row['torch']} with CUDA "
        f"{row['cuda']}, {dali}, {when}.\n"
    )


# --- the networks


@dataclass(frozen=True)
class Rates:
    """The rows of one network at one size, and what follows from them; None is what no row says."""

    rows: Sequence[Row]
    network: str
    size: int

    def row(self, way: str) -> Row | None:
        device = self.rows[-1]["device"] if self.rows else ""
        return latest(self.rows, Task(self.network, self.size, way), device)

    def rate(self, way: str) -> float | None:
        row = self.row(way)
        return float(row["images_per_s"]) if row else None

    @property
    def layout(self) -> str | None:
        """The faster of the two layouts, which is way (c); None until both are measured."""
        rates = [self.rate(way) for way in LAYOUTS]
        if rates[0] is None or rates[1] is None:
            return None
        return LAYOUTS[int(rates[1] > rates[0])]

    def of_peak(self, way: str) -> float | None:
        """Return the share of the card's dense bf16 peak."""
        row, traced = self.row(way), self.row("bf16")
        if row is None or traced is None or "peak_half_tflops" not in traced:
            return None
        return float(row["images_per_s"] * traced["gflop_per_image"] / 1e3 / traced["peak_half_tflops"])

    def of_roofline(self, way: str) -> float | None:
        """Return the share of the eager roofline: of bf16's, but of float32's own for the plain loop."""
        traced = self.row("plain" if way == "plain" else "bf16")
        if traced is None or "roofline_images_per_s" not in traced:
            return None
        return self.ratio(self.rate(way), float(traced["roofline_images_per_s"]))

    def of_synthetic(self, way: str) -> float | None:
        """Return the share of the rate that the same network reaches on ready input."""
        return self.ratio(self.rate(way), self.rate("compile")) if WAYS[way].loader == "dali" else None

    @staticmethod
    def ratio(value: float | None, other: float | None) -> float | None:
        return None if value is None or other is None else value / other


def network_table(rows: Sequence[Row], network: str, size: int) -> str:
    """Return one network's table: a line a way."""
    rates = Rates(rows, network, size)
    head = [
        *("", "images/s", "batch", "of the bf16 peak", "of the eager roofline", "of its synthetic rate", "GPU idle"),
        "memory",
    ]
    lines = []
    for name, way in WAYS.items():
        row = rates.row(name)
        letter = f"{way.letter}, c" if rates.layout == name else way.letter
        what = f"({letter}) {way.text}"
        if row is None:
            of_synthetic = NOT_MEASURED if way.loader == "dali" else ""
            lines.append([what, *[NOT_MEASURED] * 4, of_synthetic, *[NOT_MEASURED] * 2])
            continue
        memory = f"{row['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in row else ""
        shares = [rates.of_peak(name), rates.of_roofline(name), rates.of_synthetic(name), idle(row)]
        lines.append([what, f"{row['images_per_s']:.1f}", str(row["batch"]), *map(percent, shares), memory])
    return f"### U-Net {network}, {size} px\n\n{table(head, lines)}"


def loader_table(rows: Sequence[Row]) -> str:
    """Return the table of the loaders alone: a line a size, DALI beside DataLoader and albumentations."""
    lines = []
    for size in LOADER_SIZES:
        rates = Rates(rows, LOADER, size)
        for codec in ("png", "jpeg"):
            ours, other = (rates.rate(way) for way in LOADERS if LOADERS[way] == codec)
            ratio = Rates.ratio(ours, other)
            lines.append(
                [f"{codec}, {size} px", *map(number, (ours, other)), f"{ratio:.2f} x" if ratio else NOT_MEASURED]
            )
    head = ["", "DALI, images/s", "DataLoader + albumentations, all cores", "ratio"]
    return f"### The loaders alone, recipe A, from shards of 1024 px\n\n{table(head, lines)}"


# --- the targets


@dataclass(frozen=True)
class Target:
    """A figure to reach, for every network."""

    text: str
    least: float
    value: Callable[[Rates], float | None]
    form: Callable[[float], str]


def _times(value: float) -> str:
    return f"{value:.2f} x"


TARGETS = (
    Target(
        "(c) of the eager roofline",
        0.55,
        lambda rates: rates.of_roofline(rates.layout) if rates.layout else None,
        lambda value: percent(value),
    ),
    Target(
        "(d) / (c)",
        1.3,
        lambda rates: rates.ratio(rates.rate("compile"), rates.rate(rates.layout)) if rates.layout else None,
        _times,
    ),
    Target("(f) / (d)", 0.95, lambda rates: rates.of_synthetic("dali-jpeg"), lambda value: percent(value)),
    Target("(d) / (a)", 4.0, lambda rates: rates.ratio(rates.rate("compile"), rates.rate("plain")), _times),
)


def targets_table(rows: Sequence[Row]) -> str:
    """Return the figures that are aimed at (on an H100), each network's beside it."""
    lines = []
    for target in TARGETS:
        for network, size in NETWORKS:
            value = target.value(Rates(rows, network, size))
            found = NOT_MEASURED if value is None else target.form(value)
            verdict = "" if value is None else "met" if value >= target.least else "**missed**"
            goal = f"at least {target.form(target.least)}"
            lines.append([target.text, f"{network}, {size} px", found, goal, verdict])
    return table(["figure", "network", "measured", "aimed at on an H100", ""], lines)


# --- the plot


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw the rates of each network, a bar a way, with its eager roofline as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(NETWORKS), figsize=(3 * len(NETWORKS), 4), squeeze=False)
    for place, (network, size) in zip(axes[0], NETWORKS, strict=True):
        rates = Rates(rows, network, size)
        values = [rates.rate(way) or 0.0 for way in WAYS]
        place.bar([way.letter for way in WAYS.values()], values, color="#4878a8")
        traced = rates.row("bf16")
        if traced is not None and "roofline_images_per_s" in traced:
            place.axhline(traced["roofline_images_per_s"], color="#c05020", linestyle="--", label="eager roofline")
            place.legend()
        place.set_title(f"{network}\n{size} px", fontsize=9)
    axes[0][0].set_ylabel("images/s")
    figure.suptitle(f"{rows[-1]['device']}, {rows[-1]['date']}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
