"""Which rule makes the masks: the config's own thresholds, or one of the rules that `tune` found."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.predict.store import stored_digest
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.file import THRESHOLDS, ThresholdsFile, read_rules
from shards.errors import InputError


@dataclass(frozen=True)
class ChosenRule:
    """A rule for masks. `name` is that of the tuned rule which it is, `called` the share of the films that this was
    tuned on which it calls positive; both are None for a rule that was not tuned as it stands."""

    rule: Rule
    name: str | None = None
    called: float | None = None


@dataclass(frozen=True)
class RuleRequest:
    """What was asked for: by `name` a rule that tune found, as it is; without one the config's own.

    The config's own is its `fixed` triplet, else the tuned one, without parts below its `smallest_part` (0 leaves all).
    """

    name: str | None = None
    fixed: Triplet | None = None
    smallest_part: int = 0

    @property
    def is_fixed(self) -> bool:
        """Whether the triplet is the config's."""
        return self.name is None and self.fixed is not None

    def pick(self, tuned: Callable[[], ThresholdsFile]) -> ChosenRule:
        """Return the rule; what was tuned is asked for where it is needed. Raises InputError where it was not tuned."""
        if self.name is None and self.fixed is not None:
            return ChosenRule(Rule(self.fixed, self.smallest_part))
        name = self.name or "triplet"
        found = tuned().rule(name)
        if self.name is None and self.smallest_part:
            return ChosenRule(replace(found.rule, smallest_part=self.smallest_part))
        return ChosenRule(found.rule, name, found.called)


def requested_rule(config: Experiment | EnsembleConfig, name: str | None) -> RuleRequest:
    """Return what a config and `--rule` ask for."""
    if isinstance(config, Experiment):
        return RuleRequest(name)
    fixed = config.thresholds
    triplet = None if fixed is None else Triplet(fixed.top, fixed.area, fixed.bottom)
    return RuleRequest(name, triplet, config.smallest_part)


def rule_for(config: Experiment | EnsembleConfig, name: str | None, run: Path) -> ChosenRule:
    """Return the rule that a config and `--rule` ask for. Raises InputError as `tuned_rules` does."""
    return requested_rule(config, name).pick(lambda: tuned_rules(run))


def tuned_rules(run: Path) -> ThresholdsFile:
    """Return what tune found for a run.

    Raises InputError where thresholds.json is missing, damaged, or of other predictions than stand beside it.
    """
    path, predictions = run / "oof" / THRESHOLDS, run / "oof" / "predictions"
    found = read_rules(path)
    standing = stored_digest(predictions)
    if standing is not None and standing != found.digest:
        raise InputError(
            f"{path}: was tuned on other predictions than {predictions}; run 'python -m pneumo_dist tune' again"
        )
    return found


def in_words(rule: Rule) -> str:
    """Return a rule's parameters as a reader wants them."""
    triplet = rule.triplet
    text = f"everything above {triplet.bottom:.3f}"
    if triplet.area > 0:
        text = f"empty below {triplet.area:,} px above {triplet.top:.3f}, else {text}"
    if rule.smallest_part > 1:
        text += f"; without parts below {rule.smallest_part:,} px"
    if rule.gate > 0:
        text += f"; empty where the class probability is not above {rule.gate:.3f}"
    return text
