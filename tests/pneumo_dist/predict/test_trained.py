"""Predictions use the settings of the training; keys of a config that contradict them are named."""

import warnings
from pathlib import Path
from typing import Any

import pytest
from builders import experiment_of

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.predict.trained import check_trained_alike, trained_experiment
from shards.errors import InputError

STAGES: list[dict[str, Any]] = [{"name": "a", "image_size": 64}, {"name": "b", "image_size": 96, "top_k": 4}]


def two_stages(**values: Any) -> Experiment:
    return experiment_of(**{"stages": STAGES, "data": {"loader": "torch"}, **values})


def folder_of(tmp_path: Path, experiment: Experiment, fold: int = 0) -> Path:
    folder = tmp_path / f"x/fold{fold}"
    folder.mkdir(parents=True)
    (folder / "config.yaml").write_text(experiment.model_dump_json())
    return folder


def test_without_a_config_all_settings_are_those_of_the_training(tmp_path: Path) -> None:
    trained = two_stages(seed=5)
    folder = folder_of(tmp_path, trained)
    assert trained_experiment(folder, None) == (trained, trained.stages[1])
    assert trained_experiment(folder, "a") == (trained, trained.stages[0])


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"model": {"in_channels": 1}}, "model.in_channels"),
        ({"model": {"encoder": "resnet18"}}, "model.encoder"),
        ({"data": {"loader": "torch", "mean": [0.5] * 3, "std": [0.2] * 3}}, "data.mean, data.std"),
        ({"data": {"loader": "torch", "image_dtype": "float16"}}, "data.image_dtype"),
        ({"stages": [STAGES[0], {**STAGES[1], "image_size": 128}]}, "image_size"),
        ({"stages": [STAGES[0], {**STAGES[1], "eval_image_size": 128}]}, "eval_image_size"),
    ],
)
def test_network_and_its_input_must_be_those_of_the_training(tmp_path: Path, values: dict[str, Any], keys: str) -> None:
    folder = folder_of(tmp_path, two_stages())
    with pytest.raises(InputError) as caught:
        trained_experiment(folder, None, two_stages(**values))
    path = folder / "config.yaml"
    assert str(caught.value).startswith(f"{path}: was trained with another {keys} than the given config has;")


@pytest.mark.parametrize(
    "values",
    [
        {"seed": 9, "amp": "float32"},
        {"stages": [STAGES[0], {**STAGES[1], "epochs": 99, "optim": {"lr": 1.0}}]},
        {"stages": [{**STAGES[0], "image_size": 128}, STAGES[1]]},
        {"stages": STAGES[1:]},
    ],
)
def test_settings_that_predictions_do_not_use_may_differ(tmp_path: Path, values: dict[str, Any]) -> None:
    trained = two_stages()
    assert trained_experiment(folder_of(tmp_path, trained), None, two_stages(**values)) == (
        trained,
        trained.stages[1],
    )


def test_reading_and_checkpoint_settings_are_those_of_the_config(tmp_path: Path) -> None:
    own = two_stages(
        data={"loader": "torch", "threads": 7, "prefetch": 3, "cache_dir": "/local", "channels_last": True},
        stages=[STAGES[0], {**STAGES[1], "top_k": 1, "eval_batch": 2, "save_every": 9, "save_minutes": 2}],
    )
    experiment, stage = trained_experiment(folder_of(tmp_path, two_stages()), None, own)
    assert (experiment.data, stage) == (own.data, own.stages[1])


def test_old_name_of_the_torch_loader_is_the_same_loader(tmp_path: Path) -> None:
    folder, trained = folder_of(tmp_path, two_stages()), two_stages()
    text = (folder / "config.yaml").read_text()
    assert '"loader":"torch"' in text
    (folder / "config.yaml").write_text(text.replace('"loader":"torch"', '"loader":"host"'))
    with warnings.catch_warnings(action="error"):
        assert trained_experiment(folder, None, trained) == (trained, trained.stages[1])


def test_another_loader_is_used_with_a_warning(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, two_stages())
    with pytest.warns(UserWarning, match="was trained with data.loader torch; films are read with dali, as"):
        experiment, _ = trained_experiment(folder, None, two_stages(data={"loader": "dali"}))
    assert experiment.data.loader == "dali"


def test_stage_that_was_not_trained_is_named(tmp_path: Path) -> None:
    folder = folder_of(tmp_path, two_stages())
    with pytest.raises(InputError, match="has the stages a, b"):
        trained_experiment(folder, None, two_stages(stages=[*STAGES, {"name": "c"}]))


@pytest.mark.parametrize(
    ("values", "keys"),
    [
        ({"seed": 1}, "seed"),
        (
            {"stages": [{**STAGES[0], "epochs": 3}, {**STAGES[1], "optim": {"lr": 0.5}}]},
            "stages.a.epochs, stages.b.optim.lr",
        ),
        ({"stages": [STAGES[0], {**STAGES[1], "augment": {"hflip": 0.0}}]}, "stages.b.augment.hflip"),
        ({"stages": [STAGES[0], {**STAGES[1], "loss": {"dice": 9.0}}]}, "stages.b.loss.dice"),
        ({"stages": STAGES[::-1]}, "order"),
    ],
)
def test_folds_of_different_settings_are_not_one_member(values: dict[str, Any], keys: str) -> None:
    folds = [(Path("x/fold0"), two_stages()), (Path("x/fold1"), two_stages(**values))]
    with pytest.raises(InputError, match=rf"x/fold1: was trained with another {keys} than x/fold0; .* as members"):
        check_trained_alike(folds)


def test_folds_may_differ_in_how_they_were_run() -> None:
    other = two_stages(
        runtime={"compile": True}, data={"loader": "dali", "threads": 4}, stages=[STAGES[0], {**STAGES[1], "top_k": 1}]
    )
    check_trained_alike([(Path("x/fold0"), two_stages()), (Path("x/fold1"), other)])
