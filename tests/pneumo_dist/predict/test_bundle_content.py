"""bundle.json: the models accept what `write_bundle` writes, and refuse any value that it never does."""

import json
import math
import zipfile
from copy import deepcopy
from typing import Any

import pytest
from tiny_runs import Trained

from pneumo_dist.predict.bundle import write_bundle
from pneumo_dist.predict.bundle_content import BundleModel
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from shards.errors import InputError
from shards.stored import parse_json

STACKING = {
    **{"features": ["class_probability"], "means": [0.0], "scales": [1.0], "coefficients": [1.0]},
    **{"intercept": 0.0, "threshold": 0.5},
}


@pytest.fixture(scope="module")
def content(trained: Trained, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The content of bundle.json of two networks without a classification head."""
    path = tmp_path_factory.mktemp("bundle") / "good"
    write_bundle(path, trained.ensemble(), Rule(Triplet(0.7, 800, 0.3), smallest_part=100), None)
    with zipfile.ZipFile(path) as archive:
        return dict(json.loads(archive.read("bundle.json")))


def parsed(content: dict[str, Any]) -> None:
    parse_json(json.dumps(content).encode(), BundleModel, "x: not a bundle: bundle.json", "write it again")


def test_written_content_is_valid(content: dict[str, Any]) -> None:
    assert len(content["parts"]) >= 2
    parsed(content)


def put(tree: Any, key: str, value: Any) -> None:
    *outer, last = [int(part) if part.isdigit() else part for part in key.split(".")]
    for part in outer:
        tree = tree[part]
    tree[last] = value


@pytest.mark.parametrize(
    ("key", "value", "reason"),
    [
        ("parts", [], "parts .List should have at least 1 item"),
        ("eval_batch", -3, "eval_batch"),
        ("eval_batch", 10**9, "eval_batch"),
        ("inputs.0.image_size", -64, "inputs.0.image_size"),
        ("inputs.0.in_channels", 0, "inputs.0.in_channels"),
        ("inputs.0.in_channels", 3, "another number of channels"),
        ("inputs.0.mean.0", math.nan, "inputs.0.mean.0 .*finite"),
        ("inputs.0.std.0", 0, "inputs.0.std.0"),
        ("image_size", 100, "image_size .*multiple of 32"),
        ("inputs", [], "inputs .List should have at least 1 item"),
        ("parts.0.input", 1, "a part has input 1, but inputs has 1"),
        ("parts.0.input", -1, "parts.0.input"),
        ("parts.0.input", "0", "parts.0.input"),
        ("parts.0.weight", math.nan, "parts.0.weight"),
        ("parts.0.weight", -1, "parts.0.weight"),
        ("parts.0.weight", 2, "parts of a member have different weights"),
        ("parts.0.file", "weights/001.safetensors", "two parts of different names have the same file"),
        ("parts.0.file", "../weights", "parts.0.file"),
        ("parts.0.fold", -1, "parts.0.fold"),
        ("parts.0.amp", "int8", "parts.0.amp"),
        ("parts.0.lineage", [], "parts.0.lineage"),
        ("parts.0.model.fcn.widths", [10**6, 8, 8], "parts.0.model.fcn.widths.0"),
        ("parts.0.model.encoder", "tu-hf-hub:someone/something", "parts.0.model.encoder"),
        ("rule.triplet.top", -0.1, "rule.triplet.top"),
        ("rule.triplet.bottom", math.inf, "rule.triplet.bottom"),
        ("rule.triplet.area", -5, "rule.triplet.area"),
        ("rule.triplet.area", "5", "rule.triplet.area"),
        ("rule.gate", 0.5, "no part has a classification head"),
        ("rule.stacking", STACKING, "no part has a classification head"),
        ("rule.stacking", {**STACKING, "features": ["perimeter"]}, "'perimeter' is no feature"),
        ("rule.stacking", {**STACKING, "scales": [0]}, "rule.stacking.scales.0"),
        ("rule.outside", True, "class probabilities from outside, which a bundle does not have"),
        ("tta.scales", [], "tta.scales"),
        ("tta.scales", [1, 1], "scales must be unique"),
        ("tta.scale_weights", [1, 1], "2 weights for 1 scales"),
    ],
)
def test_values_that_no_bundle_has_are_refused(content: dict[str, Any], key: str, value: Any, reason: str) -> None:
    changed = deepcopy(content)
    put(changed, key, value)
    with pytest.raises(InputError, match=rf"^x: not a bundle: bundle\.json: .*{reason}.*write it again"):
        parsed(changed)


def test_every_input_is_different_and_taken_by_a_part(content: dict[str, Any]) -> None:
    (only,) = content["inputs"]
    other = {**only, "image_size": 96}
    parts = [{**part, "input": number % 2} for number, part in enumerate(content["parts"])]
    parsed({**content, "inputs": [only, other], "parts": parts})
    for inputs, wrong in (
        ([only, only], "the same input twice"),
        ([only, other, other | {"std": [1, 1, 1]}], "no part"),
    ):
        with pytest.raises(InputError, match=wrong):
            parsed({**content, "inputs": inputs, "parts": parts})
    del parts[0]["input"]
    with pytest.raises(InputError, match=r"damaged at parts\.0\.input \(Field required\)"):
        parsed({**content, "inputs": [only, other], "parts": parts})
