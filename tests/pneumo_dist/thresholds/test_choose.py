"""Which rule makes the masks: what a config has, what is asked for, and what was tuned on these predictions."""

import json
from pathlib import Path

import pytest
from report_runs import store, tune_run

from pneumo_dist.config.ensemble import EnsembleConfig
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from pneumo_dist.thresholds.choose import RuleRequest, in_words, requested_rule, rule_for, tuned_rules
from shards.dataset.table import Shards
from shards.errors import InputError

FIXED = {"top": 0.7, "area": 800, "bottom": 0.3}


def ensemble(**given: object) -> EnsembleConfig:
    return EnsembleConfig.model_validate({"name": "exp", "members": [{"experiment": "exp"}], **given})


def test_config_comes_before_the_tuned_triplet_and_a_named_rule_before_both(films: Shards, tmp_path: Path) -> None:
    run = tmp_path / "exp"
    tuned = tune_run(store(films, run, class_probability=0.5)).rules
    assert list(tuned) == ["triplet", "components", "gate"]
    own = rule_for(ensemble(thresholds=FIXED, smallest_part=101), None, run)
    assert (own.rule, own.name, own.called) == (Rule(Triplet(**FIXED), smallest_part=101), None, None)
    plain = rule_for(ensemble(), None, run)
    assert (plain.rule, plain.name, plain.called) == (tuned["triplet"].rule, "triplet", tuned["triplet"].called)
    parts = rule_for(ensemble(smallest_part=7), None, run)
    assert parts.rule == Rule(tuned["triplet"].rule.triplet, smallest_part=7) and parts.name is None
    for name, found in tuned.items():
        picked = rule_for(ensemble(thresholds=FIXED, smallest_part=101), name, run)
        assert (picked.rule, picked.name, picked.called) == (found.rule, name, found.called)


def test_configs_own_thresholds_ask_for_no_tuning(tmp_path: Path) -> None:
    assert rule_for(ensemble(thresholds=FIXED), None, tmp_path / "nowhere").rule == Rule(Triplet(**FIXED))
    assert requested_rule(ensemble(thresholds=FIXED), None).is_fixed
    assert not requested_rule(ensemble(thresholds=FIXED), "triplet").is_fixed
    assert not RuleRequest().is_fixed
    with pytest.raises(InputError, match=r"exp/oof/thresholds\.json: no thresholds; run"):
        rule_for(ensemble(), None, tmp_path / "exp")


def test_thresholds_of_other_predictions_are_refused(films: Shards, tmp_path: Path) -> None:
    run = tmp_path / "exp"
    tune_run(store(films, run))
    path = run / "oof/thresholds.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "predictions_sha256": "0" * 64}))
    with pytest.raises(InputError, match=r"thresholds\.json: was tuned on other predictions than .*'.* tune' again"):
        tuned_rules(run)
    (run / "oof/predictions/manifest.json").unlink()
    assert tuned_rules(run).digest == "0" * 64, "where no predictions stand, there are none to compare with"


def test_rule_that_was_not_tuned_is_an_input_error(films: Shards, tmp_path: Path) -> None:
    tune_run(store(films, tmp_path / "exp"))
    with pytest.raises(InputError, match="no rule gate, which needs a classification head; it has triplet, components"):
        rule_for(ensemble(), "gate", tmp_path / "exp")


@pytest.mark.parametrize(
    ("rule", "words"),
    [
        (Rule(Triplet(0.7, 1800, 0.3)), "empty below 1,800 px above 0.700, else everything above 0.300"),
        (Rule(Triplet(0.5, 0, 0.5), smallest_part=41), "everything above 0.500; without parts below 41 px"),
        (
            Rule(Triplet(0.7, 9, 0.3), smallest_part=1, gate=0.25),
            "empty below 9 px above 0.700, else everything above 0.300; empty where the class probability is not above "
            "0.250",
        ),
    ],
)
def test_rules_are_told_in_words(rule: Rule, words: str) -> None:
    assert in_words(rule) == words
