"""Write the GPU tables of docs/performance.md, and their plot, from the rows of `benchmarks.gpu`.

    python -m benchmarks.gpu_report
    python -m benchmarks.gpu_report --rows /tmp/gpu-benchmark/rows.jsonl --device "NVIDIA H100 80GB HBM3"

Tables show measured rows only; one sentence names the others. CPU rows, which only check that the parts work, are
never shown.
"""

import argparse
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks import ROOT
from benchmarks.gpu_shipped_report import shipped_tables
from benchmarks.gpu_store import (
    LOADER,
    LOADER_SIZES,
    LOADERS,
    NETWORKS,
    SHIPPED_WAYS,
    WAYS,
    Row,
    Task,
    latest,
    missing,
    read_rows,
    tasks,
)
from benchmarks.tables import idle, number, percent, table, times
from shards.files import atomic_write

BEGIN, END = "<!-- gpu tables: made by benchmarks.gpu_report -->", "<!-- gpu tables end -->"
PLOT = "gpu-rates.png"
LAYOUTS = ("bf16", "channels_last")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=Path, default=ROOT / "docs" / "gpu-rows.jsonl", help="file of the rows")
    parser.add_argument("--docs", type=Path, default=ROOT / "docs", help="folder of performance.md (default docs)")
    parser.add_argument("--device", help="card whose rows to show (default: all)")
    arguments = parser.parse_args()
    cards = by_card(read_rows(arguments.rows), arguments.device)
    page: Path = arguments.docs / "performance.md"
    atomic_write(page, replaced(page.read_text(), page_tables(cards)))
    print(f"{page}: {sum(map(len, cards))} rows")
    if cards:
        draw(max(cards, key=len), arguments.docs / PLOT)
        print(arguments.docs / PLOT)
    return 0


def by_card(rows: Sequence[Row], device: str | None = None) -> list[list[Row]]:
    """Return the rows of each GPU, that of the newest row first; of one GPU only if its name is given."""
    names = dict.fromkeys(row["device"] for row in reversed(rows) if row["device_type"] == "cuda")
    chosen = [name for name in names if device in (None, name)]
    return [[row for row in rows if row["device"] == name] for name in chosen]


def page_tables(cards: Sequence[Sequence[Row]]) -> str:
    """Return the tables of each card and the plot of the card with the most rows, as Markdown."""
    if not cards:
        return "No GPU has been measured yet.\n"
    plot = f"![Images per second of each network and way on the {max(cards, key=len)[0]['device']}]({PLOT})\n"
    return "\n".join([*map(tables, cards), plot])


def replaced(text: str, content: str) -> str:
    """Return a page with the text between the two marks replaced. Raises ValueError if the page lacks the marks."""
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"the page needs the lines {BEGIN!r} and {END!r}")
    return f"{before}{BEGIN}\n\n{content}\n{END}{after}"


def tables(rows: Sequence[Row]) -> str:
    """Return all tables as Markdown, for the rows of one GPU."""
    parts = [heading(rows), not_measured(rows), targets_table(rows)]
    parts += [network_table(rows, network, size) for network, size in NETWORKS]
    parts += [loader_table(rows), shipped_tables(rows)]
    return "\n".join(part for part in parts if part)


def heading(rows: Sequence[Row]) -> str:
    """Return a line that says where and when the rows were measured."""
    row = rows[-1]
    dates = sorted({each["date"] for each in rows})
    when = dates[0] if len(dates) == 1 else f"{dates[0]} to {dates[-1]}"
    dali = f"DALI {row['dali']}" if row["dali"] else "no DALI"
    return (
        f"{row['device']}, {row['cores']} CPU cores, Python {row['python']}, torch {row['torch']} with CUDA "
        f"{row['cuda']}, {dali}, {when}.\n"
    )


def not_measured(rows: Sequence[Row]) -> str:
    """Return a sentence that lists the missing rows, by network and size; nothing if all exist."""
    every = tasks(NETWORKS, [*WAYS, *SHIPPED_WAYS, LOADER])
    absent = missing(every, rows, rows[-1]["device"])
    names = []
    for network, size in dict.fromkeys((task.network, task.size) for task in absent):
        ways = [task.way for task in absent if (task.network, task.size) == (network, size)]
        total = sum((task.network, task.size) == (network, size) for task in every)
        names.append(f"{network} at {size} px ({', '.join(ways) if len(ways) < total else 'all'})")
    return f"Rows not yet measured: {'; '.join(names)}.\n" if names else ""


# --- the networks


@dataclass(frozen=True)
class Rates:
    """Rows of one network at one size, and figures derived from them; None if a row is missing."""

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
        """The way of the faster layout, which is (c); None until both are measured."""
        rates = [self.rate(way) for way in LAYOUTS]
        if rates[0] is None or rates[1] is None:
            return None
        return LAYOUTS[int(rates[1] > rates[0])]

    def of_peak(self, way: str) -> float | None:
        """Return a rate as a share of the card's dense bf16 peak."""
        row, traced = self.row(way), self.row("bf16")
        if row is None or traced is None or "peak_half_tflops" not in traced:
            return None
        return float(row["images_per_s"] * traced["gflop_per_image"] / 1e3 / traced["peak_half_tflops"])

    def of_roofline(self, way: str) -> float | None:
        """Return a rate as a share of the eager roofline: that of float32 for the plain loop, else that of bf16."""
        traced = self.row("plain" if way == "plain" else "bf16")
        if traced is None or "roofline_images_per_s" not in traced:
            return None
        return self.ratio(self.rate(way), float(traced["roofline_images_per_s"]))

    def of_synthetic(self, way: str) -> float | None:
        """Return a rate as a share of the network's rate on synthetic input."""
        return self.ratio(self.rate(way), self.rate("compile")) if WAYS[way].loader == "dali" else None

    @staticmethod
    def ratio(value: float | None, other: float | None) -> float | None:
        return None if value is None or other is None else value / other


def network_table(rows: Sequence[Row], network: str, size: int) -> str:
    """Return one network's table, with a line for each measured way; nothing without rows."""
    rates = Rates(rows, network, size)
    shares = ("of the bf16 peak", "of the eager roofline", "of its synthetic rate", "GPU idle")
    head = ["", "images/s", "batch", *shares, "memory"]
    lines = []
    for name, way in WAYS.items():
        row = rates.row(name)
        letter = f"{way.letter}, c" if rates.layout == name else way.letter
        if row is None:
            continue
        memory = f"{row['peak_memory_gb']:.1f} GB" if "peak_memory_gb" in row else ""
        values = [rates.of_peak(name), rates.of_roofline(name), rates.of_synthetic(name), idle(row)]
        lines.append(
            [f"({letter}) {way.text}", f"{row['images_per_s']:.1f}", str(row["batch"]), *map(percent, values), memory]
        )
    return f"### U-Net {network}, {size} px\n\n{table(head, lines)}" if lines else ""


def loader_table(rows: Sequence[Row]) -> str:
    """Return the table of the loaders alone, which compares DALI with DataLoader and albumentations."""
    lines = []
    for size in LOADER_SIZES:
        rates = Rates(rows, LOADER, size)
        for codec in ("png", "jpeg"):
            ours, other = (rates.rate(way) for way in LOADERS if LOADERS[way] == codec)
            if ours is not None or other is not None:
                lines.append([f"{codec}, {size} px", number(ours), number(other), times(Rates.ratio(ours, other))])
    head = ["", "DALI, images/s", "DataLoader + albumentations, all cores", "ratio"]
    return f"### The loaders alone, recipe A, from shards of 1024 px\n\n{table(head, lines)}" if lines else ""


# --- the targets


@dataclass(frozen=True)
class Target:
    """A minimum to reach for every network."""

    text: str
    least: float
    value: Callable[[Rates], float | None]
    form: Callable[[float], str]


TARGETS = (
    Target(
        "(c) of the eager roofline",
        0.55,
        lambda rates: rates.of_roofline(rates.layout) if rates.layout else None,
        percent,
    ),
    Target(
        "(d) / (c)",
        1.3,
        lambda rates: rates.ratio(rates.rate("compile"), rates.rate(rates.layout)) if rates.layout else None,
        times,
    ),
    Target("(f) / (d)", 0.95, lambda rates: rates.of_synthetic("dali-jpeg"), percent),
    Target("(d) / (a)", 4.0, lambda rates: rates.ratio(rates.rate("compile"), rates.rate("plain")), times),
)


def targets_table(rows: Sequence[Row]) -> str:
    """Return the measured figures that have a target, which is set for an H100."""
    lines = []
    for target in TARGETS:
        for network, size in NETWORKS:
            value = target.value(Rates(rows, network, size))
            if value is not None:
                verdict = "met" if value >= target.least else "**missed**"
                goal = f"at least {target.form(target.least)}"
                lines.append([target.text, f"{network}, {size} px", target.form(value), goal, verdict])
    return table(["figure", "network", "measured", "target on an H100", ""], lines) if lines else ""


# --- the plot


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw each network's rates as bars, one per way, with its eager roofline as a line."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, len(NETWORKS), figsize=(3 * len(NETWORKS), 4), squeeze=False)
    for panel, (network, size) in zip(axes[0], NETWORKS, strict=True):
        rates = Rates(rows, network, size)
        values = [rates.rate(way) or 0.0 for way in WAYS]
        panel.bar([way.letter for way in WAYS.values()], values, color="#4878a8")
        traced = rates.row("bf16")
        if traced is not None and "roofline_images_per_s" in traced:
            panel.axhline(traced["roofline_images_per_s"], color="#c05020", linestyle="--", label="eager roofline")
            panel.legend()
        panel.set_title(f"{network}\n{size} px", fontsize=9)
    axes[0][0].set_ylabel("images/s")
    figure.suptitle(f"{rows[-1]['device']}, {rows[-1]['date']}")
    figure.tight_layout()
    figure.savefig(path, dpi=110)
    plt.close(figure)


if __name__ == "__main__":
    sys.exit(main())
