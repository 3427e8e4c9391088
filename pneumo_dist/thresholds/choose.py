"""Choice of the rule for masks: a tuned rule by name, or the config's own thresholds."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.rules import RuleName
from pneumo_dist.maps.store import stored_digest
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.file import read_thresholds
from pneumo_dist.thresholds.rules import THRESHOLDS, ThresholdsFile, TunedRule
from shards.errors import InputError


def choose_rule(
    config: Experiment | EnsembleConfig | None, name: RuleName | None, thresholds: Callable[[], ThresholdsFile]
) -> tuple[Rule, TunedRule | None]:
    """Choose the rule for masks: the tuned rule of this name or, without a name, the config's own rule.

    The config's own rule has the config's thresholds, or else is the tuned rule that the config names, by default the
    triplet. It removes components below the config's `smallest_part`. `thresholds` is only called if a tuned rule is
    needed.

    Returns:
        The rule, and the tuned rule it is equal to: None if the config changed its thresholds or size.

    Raises:
        InputError: A rule of this name was not tuned.
    """
    smallest = config.smallest_part if isinstance(config, EnsembleConfig) else 0
    triplet = own_triplet(config, name)
    if triplet is not None:
        return Rule(triplet, smallest), None
    tuned = thresholds().rule(name or own_name(config))
    if name is None and smallest:
        return replace(tuned.rule, smallest_part=smallest), None
    return tuned.rule, tuned


def own_name(config: Experiment | EnsembleConfig | None) -> RuleName:
    """Return the name of the tuned rule that a config uses by default."""
    return (config.rule if isinstance(config, EnsembleConfig) else None) or "triplet"


def own_triplet(config: Experiment | EnsembleConfig | None, name: RuleName | None) -> Triplet | None:
    """Return the thresholds of a config; None if it has none, or if a tuned rule is named instead."""
    if name is not None or not isinstance(config, EnsembleConfig) or config.thresholds is None:
        return None
    return Triplet(config.thresholds.top, config.thresholds.area, config.thresholds.bottom)


def run_thresholds(run: Path) -> ThresholdsFile:
    """Read the thresholds of a run.

    Raises InputError if thresholds.json is missing or damaged, or was tuned on other predictions than the run's.
    """
    path, predictions = run / "oof" / THRESHOLDS, run / "oof" / "predictions"
    thresholds = read_thresholds(path)
    digest = stored_digest(predictions)
    if digest is not None and digest != thresholds.digest:
        raise InputError(
            f"{path}: was tuned on other predictions than {predictions}; run 'python -m pneumo_dist tune' again"
        )
    return thresholds


def in_words(rule: Rule) -> str:
    """Describe a rule for readers."""
    triplet = rule.triplet
    text = f"everything above {triplet.bottom:.3f}"
    if triplet.area > 0:
        text = f"empty below {triplet.area:,} px above {triplet.top:.3f}, else {text}"
    if rule.smallest_part > 1:
        text += f"; without components below {rule.smallest_part:,} px"
    if rule.stacking is not None:
        text += f"; empty if the stacked gate gives it no more than {rule.stacking.threshold:.3f}"
    if rule.gate > 0:
        text += f"; empty if the class probability is not above {rule.gate:.3f}"
    return text
