"""Disturb the commands of a small chain, run them again as documented, and compare every file bit by bit.

    python -m tests.tools.chaos --rounds 200 --work /tmp/chaos
    python -m tests.tools.chaos --rounds 20 --seed 1000 --only "kill leaf" --work /tmp/chaos
    python -m tests.tools.chaos --rounds 5 --commands build finalize append
    python -m tests.tools.chaos --table --work /tmp/chaos

A round is a seed: --seed S --rounds N runs the seeds S to S + N - 1. Results are appended to WORK/results.jsonl, and
seeds that it contains are skipped, so 200 rounds can be spread over several runs. The chain is run once, undisturbed,
and kept in WORK. As root on Linux, rounds have their own shared memory, and full disks are tried too.
"""

import argparse
import json
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path

from .faults import STRIKES
from .processes import own_mounts
from .rounds import OTHERS, Judge, Verdict
from .snapshots import Snapshots

FAULTS = [*(fault.name for fault in STRIKES), *OTHERS]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="number of rounds (default 20)")
    parser.add_argument("--seed", type=int, default=0, help="seed of the first round (default 0)")
    parser.add_argument("--only", choices=FAULTS, metavar="KIND", help=f"one fault: {', '.join(FAULTS)}")
    parser.add_argument(
        "--commands", nargs="+", default=[], help="commands to disturb, e.g. build train-0  [default: all]"
    )
    parser.add_argument("--work", type=Path, help="folder to work in  [default: a temporary one]")
    parser.add_argument("--table", action="store_true", help="print a table of the results in WORK and exit")
    arguments = parser.parse_args()
    with ExitStack() as stack:
        work = arguments.work or Path(stack.enter_context(tempfile.TemporaryDirectory()))
        results = work.absolute() / "results.jsonl"
        if arguments.table:
            print(table(read(results)))
            return 0
        can_mount = own_mounts()
        snapshots = Snapshots(work.absolute() / "judge", arguments.commands)
        snapshots.make()
        judge = Judge(snapshots, can_mount)
        done = {verdict.seed for verdict in read(results)}
        verdicts = []
        for seed in range(arguments.seed, arguments.seed + arguments.rounds):
            if seed in done:
                continue
            verdicts.append(judge.round(seed, arguments.only))
            append(results, verdicts[-1])
            print(line(verdicts[-1]), flush=True)
        passed = sum(verdict.passed for verdict in verdicts)
        print(f"{passed} of {len(verdicts)} rounds passed")
        return 0 if passed == len(verdicts) else 1


def read(path: Path) -> list[Verdict]:
    """Return the results in a file; none if it does not exist."""
    return [Verdict(**json.loads(text)) for text in path.read_text().splitlines()] if path.exists() else []


def append(path: Path, verdict: Verdict) -> None:
    """Append a result as one line."""
    with path.open("a") as stream:
        stream.write(json.dumps(asdict(verdict)) + "\n")


def line(verdict: Verdict) -> str:
    """Return a round as one line, followed by what it found."""
    codes = ", ".join(map(str, verdict.codes))
    head = f"{verdict.seed}: {verdict.step}, {verdict.fault} at {verdict.moment:.1f} s, exit codes {codes}: "
    found = {name: value for name, value in asdict(verdict).items() if isinstance(value, list) and name != "codes"}
    faults = [f"    {name}: {each}" for name, values in found.items() for each in values]
    return "\n".join([head + ("equal" if verdict.passed else "FAILED"), *faults])


def table(verdicts: Sequence[Verdict]) -> str:
    """Return rounds by fault and command as a Markdown table: passed / all."""
    all_rounds = Counter((each.fault, each.step) for each in verdicts)
    passed = Counter((each.fault, each.step) for each in verdicts if each.passed)
    steps = list(dict.fromkeys(each.step for each in sorted(verdicts, key=lambda each: each.step)))
    lines = [["fault", *steps, "all"]]
    for fault in [name for name in FAULTS if any(each.fault == name for each in verdicts)]:
        cells = [(passed[fault, step], all_rounds[fault, step]) for step in steps]
        whole = sum(each for each, _ in cells), sum(each for _, each in cells)
        lines.append(
            [fault, *("/".join(map(str, cell)) if cell[1] else "" for cell in cells), "/".join(map(str, whole))]
        )
    lines.insert(1, ["---"] * len(lines[0]))
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


if __name__ == "__main__":
    sys.exit(main())
