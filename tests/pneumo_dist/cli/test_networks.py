"""Networks that options select."""

from pathlib import Path

from report_runs import ALONE
from tiny_runs import PLAIN, Trained

from pneumo_dist.cli.networks import NetworkOptions, find_networks, limits_of, load_ensemble
from pneumo_dist.ranks.watchdog import Limits

BLEND = "name: blend\nmembers: [{experiment: plain, top_k: 1}]\ntta: {hflip: false}\n"


def test_experiment_becomes_an_ensemble_with_the_options(tmp_path: Path) -> None:
    config = tmp_path / "plain.yaml"
    config.write_text(PLAIN.model_dump_json())
    ensemble, experiment = load_ensemble(NetworkOptions(config, ("seed=7",), "only", 3, hflip=False))
    assert experiment is not None and experiment.seed == 7 and ensemble.name == experiment.name == "plain"
    (member,) = ensemble.members
    assert (member.experiment, member.stage, member.top_k, ensemble.tta.hflip) == ("plain", "only", 3, False)


def test_ensemble_ignores_the_options_of_an_experiment(tmp_path: Path) -> None:
    config = tmp_path / "blend.yaml"
    config.write_text(BLEND)
    ensemble, experiment = load_ensemble(NetworkOptions(config, (), "only", 3, hflip=True))
    assert experiment is None and ensemble.tta.hflip is False
    assert (ensemble.members[0].stage, ensemble.members[0].top_k) == (None, 1)


def test_networks_are_those_of_the_chosen_folds(trained: Trained, tmp_path: Path) -> None:
    config = tmp_path / "blend.yaml"
    config.write_text(BLEND)
    chosen = NetworkOptions(config, ())
    for folds, expected in (((), {0, 1}), ((1,), {1})):
        ensemble = find_networks(load_ensemble(chosen), folds, trained.runs, trained.shards, ALONE)
        assert {network.fold for network in ensemble.networks} == expected


def test_limits_are_those_of_an_experiment(tmp_path: Path) -> None:
    config = tmp_path / "plain.yaml"
    config.write_text(PLAIN.model_dump_json())
    overrides = ("runtime.start_minutes=2", "runtime.watchdog_minutes=0.5")
    assert limits_of(load_ensemble(NetworkOptions(config, overrides))[1]) == Limits(2.0, 0.5)
    config.write_text(BLEND)
    assert limits_of(load_ensemble(NetworkOptions(config, ()))[1]) is None
