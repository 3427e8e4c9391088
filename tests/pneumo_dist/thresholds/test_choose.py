"""Choice of the rule for masks between the config's thresholds, a named rule and the tuned triplet."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from report_runs import store, tune_run

from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.config.rules import RuleName
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.stacking import Stacking
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.choose import choose_rule, in_words, own_triplet, run_thresholds
from pneumo_dist.thresholds.rules import TunedRule
from shards.dataset.table import Shards
from shards.errors import InputError

FIXED = Triplet(0.7, 800, 0.3)


def ensemble(**fields: object) -> EnsembleConfig:
    return EnsembleConfig.model_validate({"name": "exp", "members": [{"experiment": "exp"}], **fields})


def choose(config: EnsembleConfig | None, name: RuleName | None, run: Path) -> tuple[Rule, TunedRule | None]:
    return choose_rule(config, name, lambda: run_thresholds(run))


def test_config_comes_before_the_tuned_triplet_and_a_named_rule_before_both(films: Shards, tmp_path: Path) -> None:
    run = tmp_path / "exp"
    rules = tune_run(store(films, run, class_probability=0.5)).rules
    assert list(rules) == ["triplet", "components", "gate", "stacking"]
    fixed = ensemble(thresholds=vars(FIXED), smallest_part=101)
    assert choose(fixed, None, run) == (Rule(FIXED, smallest_part=101), None)
    for config in (ensemble(), None):
        assert choose(config, None, run) == (rules["triplet"].rule, rules["triplet"])
    without_small = Rule(rules["triplet"].rule.triplet, smallest_part=7)
    assert choose(ensemble(smallest_part=7), None, run) == (without_small, None)
    for name, tuned in rules.items():
        assert tuned.name == name and choose(fixed, name, run) == (tuned.rule, tuned)
    assert choose(ensemble(rule="gate"), None, run) == (rules["gate"].rule, rules["gate"])
    assert choose(ensemble(rule="gate"), "triplet", run) == (rules["triplet"].rule, rules["triplet"])
    small = replace(rules["stacking"].rule, smallest_part=7)
    assert choose(ensemble(rule="stacking", smallest_part=7), None, run) == (small, None)


def test_thresholds_of_the_config_need_no_tuning(tmp_path: Path) -> None:
    fixed = ensemble(thresholds=vars(FIXED))
    assert choose(fixed, None, tmp_path / "nowhere") == (Rule(FIXED), None)
    assert own_triplet(fixed, None) == FIXED
    assert own_triplet(fixed, "triplet") is own_triplet(ensemble(), None) is own_triplet(None, None) is None
    with pytest.raises(InputError, match=r"exp/oof/thresholds\.json: no thresholds; run"):
        choose(ensemble(), None, tmp_path / "exp")


def test_thresholds_of_other_predictions_are_refused(films: Shards, tmp_path: Path) -> None:
    run = tmp_path / "exp"
    tune_run(store(films, run))
    path = run / "oof/thresholds.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "predictions_sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"thresholds\.json: was tuned on other predictions than .*'.* tune' again"):
        run_thresholds(run)
    (run / "oof/predictions/manifest.json").unlink()
    assert run_thresholds(run).digest == "0" * 64, "without predictions there is nothing to compare with"


def test_rule_that_was_not_tuned_is_an_input_error(films: Shards, tmp_path: Path) -> None:
    tune_run(store(films, tmp_path / "exp"))
    with pytest.raises(InputError, match="no rule gate, which needs a classification head; it has triplet, components"):
        choose(ensemble(), "gate", tmp_path / "exp")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(Triplet(0.7, 1800, 0.3)), "empty below 1,800 px above 0.700, else everything above 0.300"),
        (Rule(Triplet(0.5, 0, 0.5), smallest_part=41), "everything above 0.500; without components below 41 px"),
        (
            Rule(Triplet(0.7, 9, 0.3), smallest_part=1, gate=0.25),
            "empty below 9 px above 0.700, else everything above 0.300; empty if the class probability is not above "
            "0.250",
        ),
        (
            Rule(Triplet(0, 0, 0.4), stacking=Stacking(("mass",), (1,), (1,), (1,), 0, 0.125)),
            "everything above 0.400; empty if the stacked gate gives it no more than 0.125",
        ),
    ],
)
def test_rules_are_described_in_words(rule: Rule, words: str) -> None:
    assert in_words(rule) == words
