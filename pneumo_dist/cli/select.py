"""The command select, which builds an ensemble from a library of out-of-fold predictions."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import click

from pneumo_dist.cli.options import FOLDER
from pneumo_dist.ranks.environment import is_first
from shards import console
from shards.errors import InputError

if TYPE_CHECKING:
    from pneumo_dist.thresholds.candidates import Candidate
    from pneumo_dist.thresholds.select import Selection


@click.command(short_help="Select an ensemble from out-of-fold predictions.")
@click.argument("runs", nargs=-1, required=True, type=FOLDER)
@click.option("--name", default="selected", show_default=True, help="Name of the ensemble.")
@click.option("--steps", type=click.IntRange(1, 500), default=20, show_default=True, help="Number of picks.")
@click.option("--out", type=FOLDER, help="YAML file to write the ensemble to.  [default: print it]")
def select(runs: tuple[Path, ...], name: str, steps: int, out: Path | None) -> None:
    """Select an ensemble from runs with out-of-fold predictions, each given by its folder in RUNS.

    The folder of all runs selects from all that have predictions. Candidates are picked one after the other, with
    replacement, each time the one that adds most to the mean Dice; the picks become weights. The score is that of each
    fold's films under a selection of the other folds.
    """
    if not is_first(os.environ):
        return
    from pneumo_dist.thresholds.candidates import as_yaml, ensemble_of, open_candidates
    from pneumo_dist.thresholds.select import select
    from shards.files import atomic_write

    if out is not None and out.is_dir():
        raise InputError(f"--out {out}: is a folder; give the file to write")
    candidates = open_candidates(_folders(runs, name))
    with console.progress(0, "film", "select") as bar:
        selection = select([each.predictions for each in candidates], steps, lambda: bar.update(1))
    lines = _lines(candidates, selection)
    text = as_yaml(ensemble_of(candidates, selection.whole.picks, name), lines)
    print("\n".join(_table(candidates, selection)))
    if out is None:
        print(f"\n{text}", end="")
        return
    print("\n".join(lines))
    atomic_write(out, text)
    print(f"ensemble: {out}")


def _folders(paths: Sequence[Path], selected: str) -> dict[str, Path]:
    """Return the folders of runs by their names; of a folder of all runs, those with out-of-fold predictions.

    The weights of an earlier selection have seen all films, so it is no candidate.
    """
    from pneumo_dist.maps.store import MANIFEST
    from pneumo_dist.report.compare import run_folders

    chosen = {
        name: folder
        for name, folder in run_folders(paths).items()
        if folder in paths or (folder.name != selected and (folder / "oof" / "predictions" / MANIFEST).exists())
    }
    again = next((folder for folder in chosen.values() if folder.name == selected), None)
    if again is not None:
        raise InputError(
            f"{again}: was selected on all films, so it cannot be a candidate; leave it out, or give a --name"
        )
    if not chosen:
        raise InputError(f"{paths[0]}: no run has out-of-fold predictions; run 'python -m pneumo_dist predict' first")
    return chosen


def _table(candidates: "Sequence[Candidate]", selection: "Selection") -> list[str]:
    """Return a line for each candidate: its own score, its picks, and in how many folds it was picked."""
    width = max(len("candidate"), *(len(console.printable(each.name)) for each in candidates))
    picks = selection.whole.picks
    lines = [f"{'candidate':{width}}  alone   picks  share  picked without fold"]
    for number, candidate in enumerate(candidates):
        folds = [str(fold) for fold, scored in selection.folds.items() if scored.picks[number]]
        lines.append(
            f"{console.printable(candidate.name):{width}}  {selection.alone[number]:.4f}  {picks[number]:5}  "
            f"{picks[number] / sum(picks):5.2f}  {', '.join(folds) or '–'}"
        )
    return lines


def _lines(candidates: "Sequence[Candidate]", selection: "Selection") -> list[str]:
    """Return the scores of the selection in words."""
    from pneumo_dist.thresholds.worth import estimate

    whole = f"selected on all films: mean Dice {selection.whole.dice:.4f}, optimistic: these films chose it"
    if selection.unseen is None:
        return [whole, "no score with a selection of the other folds: all films are in one fold"]
    groups = candidates[0].predictions.groups
    assert selection.single is not None and selection.equal is not None
    unseen = estimate(selection.unseen, groups)
    lines = [
        whole,
        f"with a selection of the other folds {unseen.mean:.4f}, 95 % {unseen.low:.4f} to {unseen.high:.4f}",
    ]
    for meaning, dices in (("best candidate", selection.single), ("equal weights", selection.equal)):
        gain = estimate(selection.unseen - dices, groups)
        lines.append(
            f"{meaning}, scored alike: {dices.mean():.4f}; the selection is {gain.mean:+.4f}, 95 % {gain.low:+.4f} to "
            f"{gain.high:+.4f}"
        )
    return lines
