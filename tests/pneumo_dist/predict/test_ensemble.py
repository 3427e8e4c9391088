"""The networks of an ensemble."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from builders import tiny_experiment
from tiny_runs import ALONE, OTHER, PLAIN, Trained, stored

from pneumo_dist.config.ensemble import EnsembleConfig, MemberConfig, TtaConfig
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.data.films import InputSpec
from pneumo_dist.network.fcn import Fcn
from pneumo_dist.predict.ensemble import NetworkInput, TrainedFold, find_trained_folds, resolve, shares
from pneumo_dist.runs.checkpoint import load_checkpoint, top_steps, weights_of
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train.fold import train_fold
from shards.dataset.table import Shards
from shards.errors import InputError


def steps(trained: Trained, **member: Any) -> list[int]:
    """Return the steps of fold 0's networks, from their names."""
    ensemble = trained.ensemble(members=[{"experiment": "plain", "folds": [0], **member}])
    return [int(network.name.split("step-")[1][:8]) for network in ensemble.networks]


def test_best_top_k_and_last_follow_the_history(trained: Trained) -> None:
    folder = trained.runs / "plain/fold0/main/checkpoints"
    history = load_checkpoint(CheckpointFolder(folder).files()[0].path)["history"]
    assert len(history) == 2
    ranked = top_steps(history, 2)
    assert steps(trained) == steps(trained, top_k=5) == ranked
    assert steps(trained, checkpoints="best") == steps(trained, top_k=1) == ranked[:1]
    assert steps(trained, checkpoints="last") == [max(ranked)]
    assert steps(trained, checkpoints="nth", top_k=1) == ranked[:1]
    assert steps(trained, checkpoints="nth") == steps(trained, checkpoints="nth", top_k=2) == ranked[1:]
    with pytest.raises(InputError, match=r"main/checkpoints: has 2 validated checkpoints, and the 3-th best is asked"):
        steps(trained, checkpoints="nth", top_k=3)
    member = MemberConfig(experiment="plain", folds=(0,))
    (trained_fold,) = find_trained_folds(member, trained.runs, [])
    one = replace(trained_fold, stage=trained_fold.stage.model_copy(update={"top_k": 1}))
    assert [file.step for file in one.files(member)] == ranked[:1]
    (early,) = steps(trained, stage="early")
    assert early == CheckpointFolder(trained.runs / "plain/fold0/early/checkpoints").files()[0].step


def test_stage_is_that_of_the_trained_config_or_of_the_given_one(trained: Trained) -> None:
    member = MemberConfig(experiment="plain", folds=(1,))
    (trained_fold,) = find_trained_folds(member, trained.runs, [0, 1])
    assert (trained_fold.number, trained_fold.stage.name) == (1, "main")
    changed = PLAIN.model_copy(update={"stages": PLAIN.stages[:1]})
    (trained_fold,) = find_trained_folds(member, trained.runs, [0, 1], changed)
    assert trained_fold.stage.name == "early"


@pytest.mark.slow
@pytest.mark.parametrize("average", ["predictions", "weights"])
def test_networks_trained_on_crops_predict_whole_films(
    films: Shards, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, average: str
) -> None:
    seen: list[int] = []
    forward = Fcn.forward

    def spy(network: Fcn, images: torch.Tensor) -> torch.Tensor:
        seen.append(images.shape[-1])
        return forward(network, images)

    experiment = tiny_experiment(
        {"name": "main", "image_size": 32, "eval_image_size": 64, "top_k": 2}, data={"loader": "torch"}
    )
    train_fold(FoldRun(experiment, 0, films, tmp_path / "x/fold0", ALONE), Experiment.model_dump_json)
    monkeypatch.setattr(Fcn, "forward", spy)
    made = Trained(films, tmp_path).ensemble(members=[{"experiment": "x", "folds": [0], "average": average}])
    assert [each.image_size for each in made.inputs] == [64] and made.image_size == made.film_size == 64
    stored(Trained(films, tmp_path), made, tmp_path / "maps", "oof", folds=(0,))
    assert set(seen) == {64}


def test_folds_are_found_if_nothing_names_them(trained: Trained) -> None:
    folds = find_trained_folds(MemberConfig(experiment="head"), trained.runs, [])
    assert [fold.number for fold in folds] == [0, 1]


@pytest.mark.parametrize(
    ("member", "named"),
    [
        ({"experiment": "nobody"}, "nobody/fold0: not trained"),
        ({"folds": [7]}, "plain/fold7: not trained"),
        ({"stage": "late"}, "has the stages early, main"),
    ],
)
def test_missing_networks_are_input_errors(trained: Trained, member: dict[str, Any], named: str) -> None:
    with pytest.raises(InputError, match=named):
        trained.ensemble(members=[{"experiment": "plain", **member}])


def test_folds_are_sorted_by_number_and_must_be_trained_alike(trained: Trained, tmp_path: Path) -> None:
    config = (trained.runs / "plain/fold0/config.yaml").read_text()
    for name in ("fold10", "fold2", "fold0", "fold2-copy"):
        (tmp_path / "plain" / name).mkdir(parents=True)
        (tmp_path / "plain" / name / "config.yaml").write_text(config)
    member = MemberConfig(experiment="plain")
    assert [fold.number for fold in find_trained_folds(member, tmp_path, [])] == [0, 2, 10]
    assert '"seed":0' in config
    (tmp_path / "plain/fold2/config.yaml").write_text(config.replace('"seed":0', '"seed":1'))
    with pytest.raises(InputError, match="fold2: was trained with another seed"):
        find_trained_folds(member, tmp_path, [])


def test_each_network_has_the_input_of_its_training_or_its_members_side(trained: Trained) -> None:
    members: list[dict[str, Any]] = [{"experiment": "other"}, {"experiment": "plain"}]
    ensemble = trained.ensemble(members=members)
    other = NetworkInput(32, 3, OTHER.data.mean, OTHER.data.std)
    plain = NetworkInput(64, 1, PLAIN.data.mean, PLAIN.data.std)
    assert [network.input for network in ensemble.networks] == [other] * 4 + [plain] * 4
    assert ensemble.inputs == [other, plain]
    assert (ensemble.image_size, ensemble.film_size) == (64, 64), "the largest"
    assert (ensemble.data, ensemble.eval_batch) == (OTHER.data, 3), "the first member's reading, the smallest batch"
    assert trained.ensemble(members=members[::-1]).data == PLAIN.data
    members[0]["image_size"] = 96
    larger = trained.ensemble(members=members)
    assert larger.inputs == [replace(other, image_size=96), plain]
    assert (larger.image_size, larger.film_size) == (96, 96)


@pytest.mark.parametrize("image_size", [32, 64, 128])
def test_image_size_of_an_ensemble_is_that_of_its_maps_alone(trained: Trained, image_size: int) -> None:
    ensemble = trained.ensemble(image_size=image_size)
    assert ensemble.image_size == image_size
    assert (ensemble.inputs, ensemble.film_size) == (trained.ensemble().inputs, 64)


def test_loader_knows_the_size_channels_and_normalisation_of_an_input(trained: Trained) -> None:
    ensemble = trained.ensemble(members=[{"experiment": "plain"}, {"experiment": "other"}], loader="dali")
    reading = PLAIN.data.model_copy(update={"loader": "dali"})
    first, second = (ensemble.input_spec(each, ALONE) for each in ensemble.inputs)
    assert first == InputSpec(64, 1, reading, ALONE.device_id)
    normalised = reading.model_copy(update={"mean": OTHER.data.mean, "std": OTHER.data.std})
    assert second == InputSpec(32, 3, normalised, ALONE.device_id)


def test_input_is_that_of_the_training_unless_the_ensemble_sets_it(trained: Trained) -> None:
    ensemble = trained.ensemble()
    assert (ensemble.name, ensemble.data) == ("both", PLAIN.data)
    assert (ensemble.eval_batch, ensemble.tta, ensemble.amp) == (3, TtaConfig(), None)
    (only,) = ensemble.inputs
    assert ensemble.input_spec(only, ALONE) == InputSpec(64, 1, PLAIN.data, ALONE.device_id)
    ensemble = trained.ensemble(eval_batch=7, tta={"hflip": False}, amp="bf16", loader="dali")
    assert (ensemble.eval_batch, ensemble.tta, ensemble.amp) == (7, TtaConfig(hflip=False), "bf16")
    assert ensemble.data == PLAIN.data.model_copy(update={"loader": "dali"})


def test_networks_share_the_weight_of_their_member(trained: Trained) -> None:
    networks = trained.ensemble(
        members=[{"experiment": "plain", "weight": 3, "top_k": 1}, {"experiment": "head"}]
    ).networks
    assert [(network.member, network.fold, network.weight) for network in networks] == [
        *[(0, 0, 3), (0, 1, 3)],
        *[(1, 0, 1)] * 2,
        *[(1, 1, 1)] * 2,
    ]
    assert shares(networks) == pytest.approx([3 / 8, 3 / 8, *[1 / 16] * 4])


def test_network_is_read_from_its_checkpoint(trained: Trained) -> None:
    network = trained.ensemble().networks[0]
    state = load_checkpoint(trained.runs / "plain/fold0/main/checkpoints" / network.name.split("/")[-1])
    read = network.read()
    assert (read.model, read.amp, read.lineage) == (PLAIN.model, state["amp"], state["lineage"])
    built = read.build(network.name)
    weights = built.state_dict()
    assert not built.training
    assert all(torch.equal(weights[name], value) for name, value in weights_of(state).items())
    with pytest.raises(InputError, match=r"^another\.pt: "):
        replace(read, weights={}).build("another.pt")


def test_averaged_weights_of_each_fold_are_one_network(trained: Trained) -> None:
    config = EnsembleConfig.model_validate({"name": "x", "members": [{"experiment": "plain", "average": "weights"}]})

    def averaged(member: MemberConfig, trained_fold: TrainedFold) -> Path:
        return trained_fold.folder / f"{member.experiment}.pt"

    networks = resolve(config, trained.runs, [0, 1], ALONE, averaged).networks
    assert [network.name for network in networks] == ["plain/fold0/plain.pt", "plain/fold1/plain.pt"]
    with pytest.raises(InputError, match=r"fold0/plain\.pt: no such checkpoint"):
        networks[0].read()


def test_films_are_read_as_the_given_config_says(trained: Trained) -> None:
    config = EnsembleConfig.model_validate({"name": "x", "members": [{"experiment": "plain"}]})
    current = PLAIN.model_copy(update={"data": PLAIN.data.model_copy(update={"threads": 7})})
    ensemble = resolve(config, trained.runs, [0], ALONE, lambda _member, fold: fold.folder, current)
    assert ensemble.data == current.data


def test_missing_or_repeated_folds_and_checkpoints_are_named(trained: Trained, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"^folds 0, 0: .* name each once$"):
        find_trained_folds(MemberConfig(experiment="plain"), trained.runs, [0, 0])
    with pytest.raises(InputError, match=r"nobody: no trained folds; train experiment nobody first"):
        find_trained_folds(MemberConfig(experiment="nobody"), trained.runs, [])
    with pytest.raises(InputError, match=f"^{tmp_path}/.*: no checkpoints; train that fold first"):
        TrainedFold(PLAIN, PLAIN.stages[0], 0, tmp_path).files(MemberConfig(experiment="plain", checkpoints="last"))
    with pytest.raises(InputError, match=r"^ensemble both: has no network"):
        replace(trained.ensemble(), networks=())
