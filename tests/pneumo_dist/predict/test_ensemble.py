"""The networks of an ensemble."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from tiny_runs import PLAIN, Trained

from pneumo_dist.config.ensemble import MemberConfig
from pneumo_dist.predict.ensemble import find_trained_folds
from pneumo_dist.runs.checkpoint import load_checkpoint, top_steps
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
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
    (early,) = steps(trained, stage="early")
    assert early == CheckpointFolder(trained.runs / "plain/fold0/early/checkpoints").files()[0].step


def test_stage_is_that_of_the_trained_config_or_of_the_given_one(trained: Trained) -> None:
    member = MemberConfig(experiment="plain", folds=(1,))
    (trained_fold,) = find_trained_folds(member, trained.runs, [0, 1])
    assert (trained_fold.number, trained_fold.stage.name) == (1, "main")
    changed = PLAIN.model_copy(update={"stages": PLAIN.stages[:1]})
    (trained_fold,) = find_trained_folds(member, trained.runs, [0, 1], changed)
    assert trained_fold.stage.name == "early"


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


def test_members_must_have_the_same_input(trained: Trained, tmp_path: Path) -> None:
    shutil.copytree(trained.runs, tmp_path / "runs", symlinks=True)
    other = Trained(trained.shards, tmp_path / "runs")
    both = [{"experiment": "plain"}, {"experiment": "head"}]
    assert other.ensemble(members=both).image_size == 64
    for key, old, new in (("image_size", "64", "96"), ("std", "[0.229", "[0.3")):
        for fold in (0, 1):
            path = tmp_path / f"runs/head/fold{fold}/config.yaml"
            path.write_text(path.read_text().replace(f'"{key}":{old}', f'"{key}":{new}'))
    with pytest.raises(InputError, match=r"stage\.image_size is 64 in plain and 96 in head; set image_size"):
        other.ensemble(members=both)
    with pytest.raises(InputError, match=r"data\.std is .* in plain and .* in head"):
        other.ensemble(members=both, image_size=96)
    assert other.ensemble(members=both[1:]).image_size == 96
