"""Changes that a resume allows, and checkpoints that have not seen a fold."""

import hashlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest
from builders import experiment_of

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.data.plan import split_fold
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.lineage import (
    Ancestor,
    Lineage,
    check_same_run,
    check_unseen,
    keys_digest,
    stage_lineage,
    training_digest,
)
from shards.dataset.table import Shards
from shards.errors import InputError

PATH = Path("step-00000001-0123456789abcdef.pt")
FIRST: dict[str, Any] = {"name": "first", "image_size": 64}
SECOND: dict[str, Any] = {"name": "second", "image_size": 64, "optim": {"lr": 1e-3}}


def two_stages(first: dict[str, Any] | None = None, **values: Any) -> Experiment:
    return experiment_of({**FIRST, **(first or {})}, SECOND, **{"name": "exp", **values})


def lineage_of(shards: Shards, fold: int, second_fold: int | None = None) -> Lineage:
    experiment = two_stages()
    run = FoldRun(experiment, fold, shards, Path(), Ranks.alone())
    lineage = stage_lineage(run, experiment.stages[0], None)
    if second_fold is None:
        return lineage
    return stage_lineage(replace(run, fold=second_fold), experiment.stages[1], lineage)


def check(shards: Shards, wanted: Experiment, saved: Experiment | None = None, stage: int = 0) -> None:
    lineage = lineage_of(shards, 0)
    state = {"experiment": (saved or two_stages()).model_dump(mode="json"), "lineage": lineage.to_plain()}
    check_same_run(wanted, state, PATH, wanted.stages[stage], lineage)


def test_unchanged_run_resumes(films: Shards) -> None:
    check(films, two_stages())


@pytest.mark.parametrize(
    ("values", "key"),
    [
        ({"seed": 1}, "seed"),
        ({"model": {"encoder": "resnet18"}}, "model.encoder"),
        ({"data": {"mean": (0.5, 0.5, 0.5)}}, "data.mean"),
        ({"first": {"optim": {"lr": 0.5}}}, "optim.lr"),
        ({"first": {"global_batch": 16}}, "global_batch"),
        ({"first": {"augment": {"hflip": 0.25}}}, "augment.hflip"),
        ({"first": {"sample_rate": 0.5}}, "sample_rate"),
        ({"data": {"channels_last": True}}, "data.channels_last"),
        ({"data": {"loader": "synthetic"}}, "data.loader"),
        ({"model": {"sync_batch_norm": True}}, "model.sync_batch_norm"),
        ({"amp": "float32"}, "amp"),
        ({"runtime": {"compile": True, "tf32": False}}, "runtime.compile, runtime.tf32"),
        ({"runtime": {"fused": True}}, "runtime.fused"),
        ({"init": {"experiment": "x", "stage": "y"}}, "init"),
        ({"first": {"optim": {"ema_decay": 0.9}}}, "optim.ema_decay"),
        ({"first": {"schedule": {"warmup_steps": 9}}}, "schedule.warmup_steps"),
        ({"first": {"freeze_encoder_epochs": 1}}, "freeze_encoder_epochs"),
        ({"first": {"always_train": True}}, "always_train"),
    ],
)
def test_changed_key_is_named(films: Shards, values: dict[str, Any], key: str) -> None:
    with pytest.raises(InputError) as caught:
        check(films, two_stages(**values))
    assert f"trained with another {key};" in str(caught.value) and PATH.name in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"first": {"epochs": 99, "early_stop": 3, "top_k": 1, "save_every": 7, "eval_batch": 2}},
        {"first": {"repeat": "until_no_gain", "save_minutes": 1}},
        {"data": {"threads": 4, "prefetch": 5, "cache_dir": "/local"}},
        {"runtime": {"watchdog_minutes": 1, "start_minutes": 1}},
        {"stages": [FIRST]},
        {"stages": [FIRST, {**SECOND, "optim": {"lr": 0.7}}]},
    ],
)
def test_harmless_keys_and_other_stages_may_change(films: Shards, values: dict[str, Any]) -> None:
    check(films, two_stages(**values))


def test_optimizer_that_was_not_fused_by_an_earlier_default_may_be_fused(films: Shards) -> None:
    check(films, two_stages(), saved=two_stages(runtime={"fused": False}))
    for saved, wanted in ((False, True), (True, None), (True, False), (None, False)):
        with pytest.raises(InputError, match=r"trained with another runtime\.fused;"):
            check(films, two_stages(runtime={"fused": wanted}), saved=two_stages(runtime={"fused": saved}))


@pytest.mark.parametrize(
    "stage",
    [
        {"schedule": {"name": "cosine"}},
        {"schedule": {"name": "restarts"}},
        {"schedule": {"name": "poly"}},
        {"sample_rate": 0.8, "sample_rate_end": 0.4},
        {"optim": {"swa_epochs": 2}},
    ],
)
def test_more_epochs_are_refused_if_a_rate_depends_on_them(films: Shards, stage: dict[str, Any]) -> None:
    saved, longer = (two_stages({**stage, "epochs": epochs}) for epochs in (10, 20))
    with pytest.raises(InputError, match="trained with another epochs;"):
        check(films, longer, saved)


@pytest.mark.parametrize(
    "stage",
    [
        {"schedule": {"name": "cosine", "t_max": 5}},
        {"schedule": {"name": "restarts", "t_max": 5}},
        {"schedule": {"name": "poly", "t_max": 5}},
        {"schedule": {"name": "plateau"}},
        {"sample_rate": 0.8},
    ],
)
def test_more_epochs_are_harmless_if_no_rate_depends_on_them(films: Shards, stage: dict[str, Any]) -> None:
    saved, longer = (two_stages({**stage, "epochs": epochs}) for epochs in (10, 20))
    check(films, longer, saved)


@pytest.mark.parametrize(
    "stage", [{"optim": {"swa_epochs": 2}}, {"schedule": {"name": "plateau", "watch": "loss"}}], ids=["swa", "loss"]
)
def test_another_eval_batch_is_not_harmless_if_the_training_depends_on_it(films: Shards, stage: dict[str, Any]) -> None:
    saved, smaller = (two_stages({**stage, "eval_batch": batch}) for batch in (8, 4))
    with pytest.raises(InputError, match="trained with another eval_batch;"):
        check(films, smaller, saved)


@pytest.mark.parametrize("schedule", [{"name": "plateau"}, {"name": "cosine", "watch": "loss"}])
def test_another_eval_batch_is_harmless_unless_a_plateau_of_the_loss_is_watched(
    films: Shards, schedule: dict[str, Any]
) -> None:
    saved, smaller = (two_stages({"schedule": schedule, "eval_batch": batch}) for batch in (8, 4))
    check(films, smaller, saved)


def resumed_with(saved: list[dict[str, Any]], wanted: Lineage) -> None:
    experiment = two_stages()
    state = {"experiment": experiment.model_dump(mode="json"), "lineage": saved}
    check_same_run(experiment, state, PATH, experiment.stages[0], wanted)


def changed(shards: Shards, column: str, row: int, value: Any) -> Shards:
    """The same dataset with one cell of its table changed."""
    copy = Shards(shards.folder)
    values = copy.table[column].to_pylist()
    values[row] = value
    field = copy.table.schema.field(column)
    place = copy.table.schema.get_field_index(column)
    copy.table = copy.table.set_column(place, field, pa.array(values, field.type))
    return copy


@pytest.mark.parametrize("split", ["train", "validation"])
@pytest.mark.parametrize(
    ("column", "value", "named"), [("rle", "1 1", "labels"), ("key", "another", "films"), ("fold", None, "folds")]
)
def test_refusal_says_whether_films_folds_or_labels_changed(
    films: Shards, split: str, column: str, value: Any, named: str
) -> None:
    row = int(getattr(split_fold(films, 0, False), split)[0])
    other = changed(films, column, row, 1 - int(films.column("fold")[row]) if value is None else value)
    with pytest.raises(InputError, match=rf"was trained on other {named}; use the shards that the run started with"):
        resumed_with(lineage_of(films, 0).to_plain(), lineage_of(other, 0))


@pytest.mark.parametrize(("column", "value"), [("key", "another"), ("fold", None)])
def test_older_record_detects_changed_films_or_folds_but_not_labels(films: Shards, column: str, value: Any) -> None:
    old = [
        {key: entry[key] for key in ("experiment", "stage", "fold", "always_train", "keys_sha256")}
        for entry in lineage_of(films, 0).to_plain()
    ]
    row = int(split_fold(films, 0, False).train[0])
    resumed_with(old, lineage_of(changed(films, "rle", row, "1 1"), 0))
    other = changed(films, column, row, 1 - int(films.column("fold")[row]) if value is None else value)
    with pytest.raises(InputError, match="other films or folds;"):
        resumed_with(old, lineage_of(other, 0))


def test_other_earlier_stages_are_refused(films: Shards) -> None:
    for saved in (lineage_of(films, 0, 0).to_plain(), [{**lineage_of(films, 0).to_plain()[0], "stage": "zeroth"}]):
        with pytest.raises(InputError, match="other stages;"):
            resumed_with(saved, lineage_of(films, 0))


@pytest.mark.parametrize(
    ("key", "value", "named"),
    [("experiment", "other", "stages"), ("fold", 1, "folds"), ("always_train", True, "folds")],
)
def test_each_setting_of_a_recorded_stage_is_compared(films: Shards, key: str, value: Any, named: str) -> None:
    (entry,) = lineage_of(films, 0).to_plain()
    with pytest.raises(InputError, match=f"other {named};"):
        resumed_with([{**entry, key: value}], lineage_of(films, 0))


def test_second_stage_is_compared_with_the_second(films: Shards) -> None:
    check(films, two_stages({"global_batch": 16}), stage=1)
    changed_second = experiment_of(FIRST, {**SECOND, "optim": {"lr": 0.7}}, name="exp")
    with pytest.raises(InputError, match=r"trained with another optim\.lr;"):
        check(films, changed_second, stage=1)


def test_record_without_digests_of_all_films_is_read_with_empty_ones() -> None:
    old: dict[str, Any] = {
        "experiment": "exp",
        "stage": "first",
        "fold": 0,
        "always_train": False,
        "keys_sha256": "0" * 64,
    }
    assert Lineage((Ancestor(**old),)).to_plain() == [
        {**old, "films_sha256": "", "labels_sha256": "", "maps_sha256": ""}
    ]


def test_stage_that_the_saved_config_does_not_have_is_refused(films: Shards) -> None:
    with pytest.raises(InputError, match=r"trained with another .*global_batch"):
        check(films, two_stages(), experiment_of(SECOND, name="exp"))


def test_lineage_records_whether_the_extra_films_were_trained_on(films: Shards) -> None:
    train = split_fold(films, 0, False).train
    extra = changed(films, "split", int(train[0]), "always_train")
    experiment = two_stages({"always_train": True})
    run = FoldRun(experiment, 0, extra, Path(), Ranks.alone())
    (entry,) = stage_lineage(run, experiment.stages[0], None).to_plain()
    assert (entry["experiment"], entry["always_train"]) == ("exp", True)
    assert entry["keys_sha256"] == keys_digest(films.column("key")[train].tolist())
    check_unseen([entry], PATH.name, extra, 0)
    with pytest.raises(InputError, match="other films"):
        check_unseen([{**entry, "always_train": False}], PATH.name, extra, 0)


def test_lineage_lists_the_ancestors_oldest_first(films: Shards) -> None:
    plain = lineage_of(films, 0, 0).to_plain()
    assert [entry["stage"] for entry in plain] == ["first", "second"]
    assert {entry["keys_sha256"] for entry in plain} == {training_digest(films, 0, False)}
    assert training_digest(films, 0, False) != training_digest(films, 1, False)


def test_fold_of_the_checkpoint_is_unseen(films: Shards) -> None:
    for fold in (0, 1):
        check_unseen(lineage_of(films, fold, fold).to_plain(), PATH.name, films, fold)


@pytest.mark.parametrize(("first", "second"), [(1, 1), (0, 1), (1, 0)])
def test_checkpoint_or_ancestor_of_another_fold_is_refused(films: Shards, first: int, second: int) -> None:
    with pytest.raises(InputError, match=r"fold 0"):
        check_unseen(lineage_of(films, first, second).to_plain(), PATH.name, films, 0)


def test_other_films_under_the_same_fold_number_are_refused(films: Shards, shapes: Shards) -> None:
    with pytest.raises(InputError, match="stage first was trained on other films"):
        check_unseen(lineage_of(shapes, 0).to_plain(), PATH.name, films, 0)


def test_other_fold_number_is_refused_even_with_the_same_films(films: Shards) -> None:
    plain = lineage_of(films, 0).to_plain()
    plain[0]["fold"] = 1
    with pytest.raises(InputError, match="fold 0"):
        check_unseen(plain, PATH.name, films, 0)


def test_ancestor_with_one_more_training_film_is_refused(films: Shards) -> None:
    plain = lineage_of(films, 0).to_plain()
    plain[0]["keys_sha256"] = "0" * 64
    with pytest.raises(InputError, match="other films"):
        check_unseen(plain, PATH.name, films, 0)


def test_digest_of_keys_ignores_order_and_depends_on_every_key() -> None:
    assert keys_digest(["a", "b"]) == keys_digest(["b", "a"])
    assert len({keys_digest(keys) for keys in (["a"], ["a", "b"], ["ab"], [])}) == 4


def test_digest_of_keys_is_the_same_in_every_version() -> None:
    assert keys_digest(["b", "a"]) == hashlib.sha256(b"a\nb").hexdigest()
