"""Manifest, rows and block records of stored predictions: written ones are valid, and other values are refused."""

from typing import Any

import pydantic
import pytest

from pneumo_dist.maps.store_content import ROWS, BlockModel, ManifestModel

ROW: dict[str, Any] = {
    "key": "film-1",
    "image_id": "1.2.3",
    "group": None,
    "split": "test",
    "rle": None,
    "fold": None,
    "label_height": 96,
    "label_width": 80,
    "pad_top": 4,
    "pad_bottom": 0,
    "pad_left": 12,
    "pad_right": 0,
    "stored": 96,
    "class_probability": None,
    "tar": "pred-00000.tar",
    "offset": 512,
    "size": 900,
    "crc32": 2**32 - 1,
}
MANIFEST: dict[str, Any] = {"films": 1, "predictions_sha256": "0" * 64}
FULL: dict[str, Any] = {
    "experiment": "exp",
    "split": "oof",
    "image_size": 64,
    "tta": {"hflip": True, "scales": [1.0, 1.5]},
    "dataset": "1" * 64,
    "parts": [{"name": "exp/fold0/step-1.pt", "fold": 0, "weight": 1.0}, {"name": "exp/fold1/step-1.pt"}],
    "members": [{"experiment": "exp", "stage": "main", "tta": {"hflip": False}}],
}


def test_rows_manifests_and_blocks_that_are_written_are_valid() -> None:
    labelled = {**ROW, "group": "p", "rle": "", "fold": 3, "class_probability": 0.25, "split": "train"}
    ROWS.validate_python([ROW, labelled])
    ManifestModel.model_validate(MANIFEST)
    ManifestModel.model_validate({**MANIFEST, **FULL})
    BlockModel.model_validate({"digest": "0" * 64, "rows": [ROW]})


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("key", None),
        ("key", "../up"),
        ("tar", "../pred-00000.tar"),
        ("fold", -1),
        ("label_height", 0),
        ("class_probability", float("nan")),
        ("class_probability", 1.5),
        ("size", -1),
        ("split", "all"),
        ("offset", -1),
        ("crc32", 2**32),
        ("label_width", "80"),
    ],
)
def test_value_of_a_row_that_no_prediction_writes_is_refused(key: str, value: Any) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        ROWS.validate_python([ROW, {**ROW, key: value}])
    assert [each["loc"] for each in caught.value.errors()] == [(1, key)]


@pytest.mark.parametrize(
    ("values", "reason"),
    [
        ({"pad_top": 96}, "its paddings leave no pixels"),
        ({"pad_left": 90, "pad_right": 6}, "its paddings leave no pixels"),
        ({"label_height": 50_000, "label_width": 50_000}, "its label grid has more than"),
    ],
)
def test_row_without_pixels_or_with_too_many_is_refused(values: dict[str, int], reason: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=reason):
        ROWS.validate_python([{**ROW, **values}])


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("films", -1),
        ("films", "12"),
        ("predictions_sha256", "x"),
        ("parts", []),
        ("parts", [{"name": 5}]),
        ("members", []),
        ("members", [{"stage": "main"}]),
        ("tta", 3),
        ("split", "validation"),
        ("image_size", 0),
    ],
)
def test_value_of_a_manifest_that_no_prediction_writes_is_refused(key: str, value: Any) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        ManifestModel.model_validate({**MANIFEST, **FULL, key: value})
    assert {each["loc"][0] for each in caught.value.errors()} == {key}


def test_block_without_rows_is_refused() -> None:
    with pytest.raises(pydantic.ValidationError, match="rows"):
        BlockModel.model_validate({"digest": "0" * 64, "rows": []})


@pytest.mark.parametrize("text", ["\x1b[2J", "a\nb", "\x00", "x" * 1001])
def test_text_that_a_terminal_or_a_table_cannot_hold_is_refused(text: str) -> None:
    for name in ("image_id", "group"):
        with pytest.raises(pydantic.ValidationError):
            ROWS.validate_python([{**ROW, name: text}])
    with pytest.raises(pydantic.ValidationError):
        ManifestModel.model_validate({**MANIFEST, **FULL, "parts": [{"name": text}]})
