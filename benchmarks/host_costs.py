"""What the host does beside the GPU: steps, the end of an epoch, prediction and input. It runs on a CPU.

    python -m benchmarks.host_costs                 all parts
    python -m benchmarks.host_costs --part step     one part

The values before are those of commit e2bae37. They are from another run, so compare only their order of magnitude.
"""

import argparse
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from benchmarks import host_input, host_prediction, host_step, host_validation
from benchmarks.host_cost import HostCost
from benchmarks.tables import table

PARTS: Mapping[str, Callable[[Path], list[HostCost]]] = {
    "step": host_step.costs,
    "validation": host_validation.costs,
    "prediction": host_prediction.costs,
    "input": host_input.costs,
}


def main() -> None:
    """Measure the parts and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, default=Path("/tmp/host-costs"), help="films and shards are kept here")
    parser.add_argument("--part", choices=PARTS, action="append", help="measure these parts only")
    arguments = parser.parse_args()
    rows = [row for part in arguments.part or PARTS for row in PARTS[part](arguments.work)]
    print(report(rows))


def report(rows: Sequence[HostCost]) -> str:
    """Return the table of costs."""
    return table(["part", "cost", "before", "after", "target", ""], [_line(row) for row in rows])


def _line(row: HostCost) -> list[str]:
    verdict = "" if row.target is None else "met" if row.after <= row.target else "**missed**"
    target = "" if row.target is None else f"{row.target:g} {row.unit}"
    return [row.part, row.what, f"{row.before} {row.unit}", f"{row.after:.3g} {row.unit}", target, verdict]


if __name__ == "__main__":
    main()
