"""Experiments recorded by other versions: missing, dropped and unknown options."""

from typing import Any

import pytest

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.record import with_present_defaults, without_dropped

RECORD: dict[str, Any] = {
    "name": "exp",
    "model": {"arch": "fcn", "in_channels": 1},
    "stages": [
        {"name": name, "image_size": 64, "epochs": 2, "global_batch": 4, "micro_batch": 2, "optim": {"lr": 0.01}}
        for name in ("first", "second")
    ],
}
PRESENT = Experiment.model_validate(RECORD).model_dump(mode="json")


def test_options_that_a_record_lacks_are_filled_in() -> None:
    assert with_present_defaults(RECORD) == PRESENT
    assert with_present_defaults(PRESENT) == PRESENT


@pytest.mark.parametrize("key", ["old", "model.old", "stages.old", "stages.optim.old"])
def test_dropped_option_is_removed_at_its_default_and_kept_at_another_value(key: str) -> None:
    dropped = {key: [1, "x"]}
    assert with_present_defaults(put(PRESENT, key, [1, "x"]), dropped) == PRESENT
    other = put(PRESENT, key, [2])
    assert with_present_defaults(other, dropped) == other
    assert with_present_defaults(put(RECORD, key, [2]), dropped) == other


def test_unknown_option_is_kept_and_defaults_are_filled_in() -> None:
    assert with_present_defaults(put(RECORD, "stages.optim.odd", 1)) == put(PRESENT, "stages.optim.odd", 1)


def test_old_name_of_the_torch_loader_becomes_the_present_one() -> None:
    present = with_present_defaults({**RECORD, "data": {"loader": "torch"}})
    assert present["data"]["loader"] == "torch"
    assert with_present_defaults({**RECORD, "data": {"loader": "host"}}) == present


def test_invalid_record_is_returned_unchanged() -> None:
    wrong = {**PRESENT, "seed": "x"}
    assert with_present_defaults(wrong) == wrong


@pytest.mark.parametrize("tree", [{}, {"stages": {}}, {"model": 3}, {"stages": []}])
def test_mapping_without_the_dropped_option_is_unchanged(tree: dict[str, Any]) -> None:
    assert without_dropped(tree, {"model.old": 1, "stages.optim.old": 1}) == tree


def put(tree: dict[str, Any], key: str, value: Any) -> dict[str, Any]:
    """Return a copy with a dotted key set; a key of a stage is set in every stage."""
    name, _, rest = key.partition(".")
    if name == "stages":
        return {**tree, "stages": [put(stage, rest, value) for stage in tree["stages"]]}
    return {**tree, name: put(tree[name], rest, value) if rest else value}
