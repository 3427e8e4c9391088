"""Ensembles from YAML."""

from pathlib import Path

import pytest

from pneumo_dist.config.ensemble import EnsembleConfig, alone, load_either
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import load_config
from pneumo_dist.predict.tta import scaled_side
from shards.errors import InputError, InputErrors

CONFIGS = Path(__file__).parents[3] / "configs"
BLENDS = {
    "recipe_a_first": ((0.4, 0.2, 0.2, 0.2), (0.7, 800, 0.3)),
    "recipe_a_second": ((0.2, 0.15, 0.4, 0.25), (0.75, 1500, 0.3)),
    "recipe_a_suspected": ((0.2, 0.15, 0.4, 0.25), (0.7, 800, 0.3)),
}


@pytest.mark.parametrize("name", BLENDS)
def test_published_blends_are_shipped(name: str) -> None:
    blend = load_either(CONFIGS / f"ensembles/{name}.yaml")
    assert isinstance(blend, EnsembleConfig)
    weights, triplet = BLENDS[name]
    assert tuple(member.weight for member in blend.members) == weights
    names = [member.experiment for member in blend.members]
    assert names == ["albunet_public", "albunet_valid", "seunet", "resnet50"]
    assert all(
        (member.stage, member.top_k, member.average) == ("second_stage", 3, "predictions") for member in blend.members
    )
    assert blend.thresholds is not None
    assert (blend.thresholds.top, blend.thresholds.area, blend.thresholds.bottom) == triplet
    assert blend.smallest_part == 101 and blend.tta.hflip and blend.name == name


@pytest.mark.parametrize(
    ("name", "folds", "hflip", "triplet", "smallest"),
    [
        ("recipe_b_submission", None, True, (0.5, 0, 0.5), 3501),
        ("recipe_c_submission", (1, 2, 3, 4), False, (0.275, 3500, 0.275), 0),
    ],
)
def test_published_rules_of_single_recipes_are_configs(
    name: str, folds: tuple[int, ...] | None, hflip: bool, triplet: tuple[float, int, float], smallest: int
) -> None:
    ensemble = load_either(CONFIGS / f"ensembles/{name}.yaml")
    assert isinstance(ensemble, EnsembleConfig) and ensemble.thresholds is not None
    (member,) = ensemble.members
    assert (member.experiment, member.checkpoints, member.folds) == (name[:8], "best", folds)
    assert (ensemble.thresholds.top, ensemble.thresholds.area, ensemble.thresholds.bottom) == triplet
    assert (ensemble.tta.hflip, ensemble.smallest_part) == (hflip, smallest)


@pytest.mark.parametrize("path", sorted((CONFIGS / "ensembles").glob("*.yaml")), ids=lambda path: path.stem)
def test_members_have_their_stages_and_share_one_side(path: Path) -> None:
    blend = load_either(path)
    assert isinstance(blend, EnsembleConfig)
    sides = set()
    for member in blend.members:
        experiment = load_config(CONFIGS / f"{member.experiment}.yaml").experiment
        assert experiment.name == member.experiment
        stage = experiment.stage(member.stage) if member.stage else experiment.stages[-1]
        sides.add(stage.film_size)
    assert len(sides) == 1


def test_gold_medals_ensembles_are_as_published() -> None:
    blend = load_either(CONFIGS / "ensembles/fourth_place_submission.yaml")
    assert isinstance(blend, EnsembleConfig) and blend.thresholds is not None
    (member,) = blend.members
    assert (member.experiment, member.checkpoints, member.top_k, blend.tta.hflip) == ("fourth_place", "top-k", 4, True)
    # 800 px of a map of 768 px, in pixels of the label grid.
    area = round(800 * (1024 / 768) ** 2)
    assert (blend.thresholds.top, blend.thresholds.area, blend.thresholds.bottom) == (0.8, area, 0.4)
    mean = load_either(CONFIGS / "ensembles/second_place_weights.yaml")
    assert isinstance(mean, EnsembleConfig) and mean.thresholds is None
    (member,) = mean.members
    assert (member.experiment, member.average, member.top_k) == ("second_place", "weights", 3)


def test_heavy_networks_weight_their_scales_as_the_10th_place() -> None:
    heavy = load_either(CONFIGS / "ensembles/heavy.yaml")
    assert isinstance(heavy, EnsembleConfig)
    side = load_config(CONFIGS / "recipe_e.yaml").experiment.stages[-1].image_size
    assert [scaled_side(side, scale) for scale in heavy.tta.scales] == [768, 1024, 1536]
    assert heavy.tta.scale_weights == (0.2, 0.5, 0.3)


def test_experiment_becomes_an_ensemble_of_its_folds() -> None:
    experiment = load_either(CONFIGS / "demo.yaml", ("seed=7",))
    assert isinstance(experiment, Experiment) and experiment.seed == 7
    ensemble = alone(experiment, "main", 2, hflip=False)
    assert ensemble.name == "demo" and not ensemble.tta.hflip
    (member,) = ensemble.members
    assert (member.experiment, member.stage, member.top_k, member.folds) == ("demo", "main", 2, None)


def assert_refused(folder: Path, text: str, message: str) -> None:
    """Check that an ensemble with this text is refused with a message that names its file."""
    path = folder / "blend.yaml"
    path.write_text(text)
    with pytest.raises(InputError, match=rf"blend\.yaml: {message}"):
        load_either(path)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("wieght: 1", "members.0.wieght: unknown key; did you mean weight\\?"),
        ("height: 1", "members.0.height: unknown key; did you mean weight\\?"),
        ("zzz: 1", "members.0.zzz: unknown key; remove it"),
        ("weight: 0", "members.0.weight: Input should be greater than or equal to 0.000001"),
        ("average: both", "members.0.average: Input should be 'predictions' or 'weights'"),
        ("folds: []", "members.0.folds: Tuple should have at least 1 item"),
        ("folds: [0, 1, 0]", "members.0: Value error, folds must be unique"),
        ("weight: .inf", "members.0.weight: Input should be a finite number"),
        ("weight: 1.0e300", "members.0.weight: Input should be less than or equal to 1000000"),
        ("weight: yes", "members.0.weight: Value error, is a boolean"),
        ("image_size: 100", "members.0.image_size: Input should be a multiple of 32"),
    ],
)
def test_bad_keys_are_named_with_their_file(tmp_path: Path, change: str, message: str) -> None:
    assert_refused(tmp_path, f"name: blend\nmembers:\n  - experiment: a\n    {change}\n", message)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("tta: {hflp: true}", "tta.hflp: unknown key; did you mean hflip"),
        ("thresholds: {top: 1, area: 1, botom: 0}", "thresholds.botom: unknown key; did you mean bottom"),
        ("smalest_part: 3", "smalest_part: unknown key; did you mean smallest_part"),
    ],
)
def test_unknown_keys_name_the_nearest(tmp_path: Path, line: str, message: str) -> None:
    assert_refused(tmp_path, f"name: blend\nmembers: [{{experiment: a}}]\n{line}\n", message)


def test_all_errors_are_reported_at_once(tmp_path: Path) -> None:
    path = tmp_path / "blend.yaml"
    path.write_text("name: blend\nmembers: [{experiment: a, weight: 0}, {experiment: b, top_k: 0}]\nsmalest_part: 3\n")
    with pytest.raises(InputErrors) as caught:
        load_either(path, ("eval_batch=0",))
    keys = [message.split(": ")[1] for message in caught.value.messages]
    assert keys == ["smalest_part", "members.0.weight", "members.1.top_k", "eval_batch"]


@pytest.mark.parametrize(
    ("weights", "message"),
    [
        ("[1]", "tta: Value error, scale_weights has 1 weights for 2 scales; give one for each"),
        ("[0.2, 0.5, 0.3]", "tta: Value error, scale_weights has 3 weights for 2 scales; give one for each"),
        ("[]", "tta: Value error, scale_weights has 0 weights for 2 scales; give one for each"),
        ("[1, 0]", "tta.scale_weights.1: Input should be greater than or equal to 0.000001"),
        ("[-1, 2]", "tta.scale_weights.0: Input should be greater than or equal to 0.000001"),
        ("[1, .nan]", "tta.scale_weights.1: Input should be a finite number"),
        ("[.inf, 1]", "tta.scale_weights.0: Input should be a finite number"),
        ("[true, 1]", "tta.scale_weights: Value error, is a boolean"),
    ],
)
def test_bad_scale_weights_are_named(tmp_path: Path, weights: str, message: str) -> None:
    scales = f"tta: {{scales: [1, 2], scale_weights: {weights}}}"
    assert_refused(tmp_path, f"name: x\nmembers: [{{experiment: a}}]\n{scales}\n", message)


def test_old_name_of_the_torch_loader_is_read_with_a_warning(tmp_path: Path) -> None:
    path = tmp_path / "blend.yaml"
    path.write_text("name: blend\nmembers: [{experiment: a}]\nloader: host\n")
    for overrides, origin in (((), str(path)), (("loader=host",), "--set")):
        with pytest.warns(UserWarning, match=f"^{origin}: loader: host is now called torch; write torch$"):
            changed = load_either(path, overrides)
        assert isinstance(changed, EnsembleConfig) and changed.loader == "torch"


def test_overrides_change_an_ensemble_and_wrong_ones_are_named(tmp_path: Path) -> None:
    path = tmp_path / "blend.yaml"
    path.write_text("name: blend\nmembers: [{experiment: a}]\n")
    changed = load_either(path, ("image_size=512", "tta.scales=[1, 1.5]", "amp=float32"))
    assert isinstance(changed, EnsembleConfig)
    assert (changed.image_size, changed.tta.scales, changed.amp) == (512, (1.0, 1.5), "float32")
    with pytest.raises(InputError, match=r"^--set: image_size: Input should be a multiple of 32"):
        load_either(path, ("image_size=500",))
    with pytest.raises(InputError, match="tta: Value error, scales must be unique"):
        load_either(path, ("tta.scales=[1, 1]",))


@pytest.mark.parametrize(("key", "name"), [("members.0.image_size", "members"), ("tta.scales.1", "scales")])
def test_override_within_a_list_is_refused(key: str, name: str) -> None:
    with pytest.raises(InputError, match=f"^--set {key}: {name} is a list; set all of it"):
        load_either(CONFIGS / "ensembles/heavy.yaml", (f"{key}=64",))
