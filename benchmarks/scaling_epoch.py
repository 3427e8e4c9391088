"""Estimate, on paper, for which share of an epoch eight H100 work, from the steps that one H100 was measured to take.

    python -m benchmarks.scaling_epoch
    python -m benchmarks.scaling_epoch --markdown

The steps are those of docs/gpu-rows.jsonl. What only several GPUs do was never measured; docs/scaling.md lists the
assumptions, and what would refute them.
"""

import argparse
import math
import sys
from dataclasses import dataclass

from benchmarks import ROOT
from benchmarks.gpu_store import ENCODERS, Row, read_rows
from benchmarks.scaling import (
    FILMS,
    H100,
    Assumptions,
    Network,
    exposed_s,
    markdown,
    plain,
    unet_parameters,
)
from benchmarks.tables import percent

ROWS = ROOT / "docs" / "gpu-rows.jsonl"
CARD = "NVIDIA H100 80GB HBM3"
GPUS, FOLDS = 8, 5
# A film's core time with PNG decoding (docs/performance-input.md).
FILM_CORE_S = 10.4e-3
# The search of one of eight ranks for the best triplet of 2,400 films (docs/performance-inference.md).
TRIPLET_S = 93e-3
# The copy of weights, moving average and Adam's two moments to memory that is not pinned.
STATE_BYTES, COPY_BYTES_PER_S = 16, 6e9
# A step of eight ranks takes as long as the slowest of them.
STRAGGLING = 0.02


@dataclass(frozen=True)
class Epoch:
    """Seconds of an epoch on eight GPUs, and for how many of them the GPUs run kernels."""

    training: float
    reduction: float
    straggling: float
    validation: float
    triplet: float
    save: float
    busy: float

    @property
    def whole(self) -> float:
        return self.training + self.reduction + self.straggling + self.validation + self.triplet + self.save

    @property
    def share(self) -> float:
        return self.busy / self.whole


def epoch(network: Network, busy_s: float, films: int = FILMS) -> Epoch:
    """Return the epoch of one fold: four fifths of the films train, one fifth is validated.

    `busy_s` is the time for which the GPU runs kernels in a step. A validation step is a forward pass, a third of a
    training step, with the same share of idle time.
    """
    batch = network.batch * GPUS
    validated = films // FOLDS
    steps, checks, forward = (films - validated) // batch, math.ceil(validated / batch), 1 / 3
    return Epoch(
        training=steps * network.step_s,
        reduction=steps * exposed_s(network, GPUS, H100, Assumptions()),
        straggling=steps * network.step_s * STRAGGLING,
        validation=checks * network.step_s * forward,
        triplet=TRIPLET_S,
        save=network.parameters * STATE_BYTES / COPY_BYTES_PER_S,
        busy=(steps + checks * forward) * busy_s,
    )


def epoch_table(rows: list[Row]) -> list[list[str]]:
    """Return a line per measured network: the parts of an epoch, the share, and the cores that its films need."""
    parts = ("training", "reduction", "stragglers", "validation", "triplet", "save")
    lines = [["step measured on one H100", "films/s", *parts, "eight GPUs work", "cores per GPU for PNG"]]
    for row in rows:
        name = row["network"]
        encoder = next(each for each in ENCODERS if each.startswith(name.removeprefix("heavy_")))
        network = Network(name, unet_parameters(encoder), row["batch"], row["images_per_s"])
        found = epoch(network, row["busy_s"])
        seconds = (found.training, found.reduction, found.straggling, found.validation, found.triplet, found.save)
        label = f"{name}, {row['size']} px, {row['batch']} films, {row['way'].replace('_', ' ')}"
        needs = f"{network.rate * GPUS:,.0f}", f"{network.rate * FILM_CORE_S:.1f}"
        lines.append([label, needs[0], *(f"{each:.2f} s" for each in seconds), percent(found.share), needs[1]])
    return lines


def measured_rows() -> list[Row]:
    """Return the rows of steps on synthetic films whose busy time was measured on the card."""
    rows = [row for row in read_rows(ROWS) if row["device"] == CARD and "busy_s" in row]
    return sorted(rows, key=lambda row: (row["network"], row["way"]))


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/scaling.md")
    form = markdown if parser.parse_args().markdown else plain
    print(form(epoch_table(measured_rows())))
    return 0


if __name__ == "__main__":
    sys.exit(main())
