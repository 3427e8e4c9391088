"""Greedy selection of an ensemble from a library of predictions, with its score on films that did not select it.

R. Caruana, A. Niculescu-Mizil, G. Crew and A. Ksikes, "Ensemble selection from libraries of models", ICML 2004: forward
selection with replacement. Picks become weights.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from pneumo_dist.maps.store import Predictions
from pneumo_dist.scoring.arrays import Counts, Flags
from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.histograms import Histograms
from pneumo_dist.scoring.triplet import Triplet, best_triplet
from pneumo_dist.thresholds.blends import Picks, blend_histograms, reduced
from shards.arrays import Floats

# Smaller differences of a mean Dice are rounding.
_LEAST = 1e-12


@dataclass(frozen=True)
class Scored:
    """A blend with its exact best triplet and mean Dice on some films, and the Dice of each other film under both."""

    picks: Picks
    triplet: Triplet
    dice: float
    unseen: Floats


@dataclass(frozen=True)
class Selection:
    """What was selected on all films, and on the films outside each fold.

    Attributes:
        whole: The blend selected on all films.
        folds: For each fold, the blend selected on the films of the other folds; empty if there is only one fold.
        unseen: Dice of each film (n,) under blend and triplet of the other folds; None if there is only one fold.
        single: The same for the best candidate, chosen on the other folds.
        equal: The same for all candidates with equal weights.
        alone: Mean Dice of each candidate over all films, each with its best triplet.
    """

    whole: Scored
    folds: Mapping[int, Scored]
    unseen: Floats | None
    single: Floats | None
    equal: Floats | None
    alone: tuple[float, ...]


class _Greedy:
    """The selection on a part of the films. `others` are the films it must not see."""

    def __init__(self, films: Flags, count: int) -> None:
        self.films, self.others = films, ~films
        self.picks: Picks = (0,) * count
        self.best: Scored | None = None
        self._known: dict[Picks, Scored] = {}

    def next_picks(self) -> list[Picks]:
        """Return the blend with one more pick of each candidate."""
        return [
            tuple(count + (number == added) for number, count in enumerate(self.picks))
            for added in range(len(self.picks))
        ]

    def missing(self) -> list[Picks]:
        """Return the next blends whose score is not known yet."""
        return [key for key in map(reduced, self.next_picks()) if key not in self._known]

    def score(self, picks: Picks, histograms: Histograms) -> Scored:
        """Score a blend from the histograms of all films, and remember it."""
        triplet, dice = best_triplet(histograms[self.films])
        unseen = triplet_counts(histograms[self.others], triplet).dice if self.others.any() else np.zeros(0)
        self._known[picks] = Scored(picks, triplet, dice, unseen)
        return self._known[picks]

    def known(self, picks: Picks) -> Scored:
        """Return a blend that was scored."""
        return self._known[reduced(picks)]

    def pick(self) -> None:
        """Add the candidate whose blend is best, the first of equally good ones."""
        following = self.next_picks()
        chosen = following[0]
        for each in following[1:]:
            if self.known(each).dice > self.known(chosen).dice + _LEAST:
                chosen = each
        self.picks = chosen
        scored = self.known(chosen)
        if self.best is None or scored.dice > self.best.dice + _LEAST:
            self.best = scored


def select(
    candidates: Sequence[Predictions],
    steps: int = 20,
    on_film: Callable[[], None] = lambda: None,
    threads: int | None = None,
) -> Selection:
    """Pick a candidate `steps` times, each time the one whose addition to the blend gives the best mean Dice.

    The mean Dice of a blend is that of its exact best triplet on the same films. The best blend on the way is the
    result, the shortest of equally good ones. Of equally good candidates, the first is picked. The same is done on the
    films outside each fold, and the fold's own films then score what was selected.

    Args:
        candidates: Out-of-fold predictions of the same films, in the order of their names.
        steps: Number of picks.
        on_film: Called for each film that was read; once or more in each step.
        threads: Number of threads, by default one for each CPU. The result does not depend on it.
    """
    folds = candidates[0].folds
    numbers = np.unique(folds).tolist()
    whole = _Greedy(np.ones(len(folds), np.bool_), len(candidates))
    parts = {int(fold): _Greedy(folds != fold, len(candidates)) for fold in numbers} if len(numbers) > 1 else {}
    every: Picks = (1,) * len(candidates)
    for step in range(steps):
        wanted = {part: part.missing() + ([every] if step == 0 else []) for part in (whole, *parts.values())}
        blends = list(dict.fromkeys(picks for missing in wanted.values() for picks in missing))
        for picks, histograms in blend_histograms(candidates, blends, on_film, threads):
            for part, missing in wanted.items():
                if picks in missing:
                    part.score(picks, histograms)
        for part in (whole, *parts.values()):
            part.pick()
    singles = _singles(len(candidates))
    return Selection(
        whole=_found(whole),
        folds={fold: _found(part) for fold, part in parts.items()},
        unseen=_joined(folds, {fold: _found(part) for fold, part in parts.items()}),
        single=_joined(
            folds, {fold: _first_best([part.known(each) for each in singles]) for fold, part in parts.items()}
        ),
        equal=_joined(folds, {fold: part.known(every) for fold, part in parts.items()}),
        alone=tuple(whole.known(each).dice for each in singles),
    )


def _singles(count: int) -> list[Picks]:
    return [tuple(int(number == only) for number in range(count)) for only in range(count)]


def _first_best(scored: Sequence[Scored]) -> Scored:
    best = scored[0]
    for each in scored[1:]:
        if each.dice > best.dice + _LEAST:
            best = each
    return best


def _found(part: _Greedy) -> Scored:
    assert part.best is not None, "no step was made"
    return part.best


def _joined(folds: Counts, scored: Mapping[int, Scored]) -> Floats | None:
    """Return the Dice of each film under the blend that did not see it; None without any."""
    if not scored:
        return None
    dices = np.zeros(len(folds))
    for fold, each in scored.items():
        dices[folds == fold] = each.unseen
    return dices
