"""Contact sheets: the right film, without padding, with the outline at its label."""

import json
import zlib
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pytest
from edited_dataset import write_rows

from shards.build.options import BuildOptions
from shards.dataset import rle
from shards.dataset.grid import fit_square, to_square
from shards.dataset.manifest import CountsModel, write_manifest
from shards.dataset.show import GAP, caption, choose, contact_sheet, stored_content
from shards.dataset.table import SCHEMA, Shards
from shards.errors import InputError
from shards.files import sha256_file

Image = npt.NDArray[np.uint8]
Make = Callable[..., Shards]


TAR = "train-00000.tar"


def default(field: pa.Field) -> Any:
    if field.nullable:
        return None
    return "" if pa.types.is_string(field.type) else 0


def film_row(film: Image, mask: Image | None, stored: int | None, **facts: Any) -> tuple[dict[str, Any], bytes]:
    """A table row and an image member: a padded PNG square of `stored` pixels, or a JPEG of the film's size."""
    height, width = film.shape
    pad = fit_square(height, width, stored or max(height, width))
    suffix, image = (".png", to_square(film, stored)) if stored else (".jpg", film)
    content = cv2.imencode(suffix, image, [cv2.IMWRITE_JPEG_QUALITY, 95] if suffix == ".jpg" else [])[1].tobytes()
    row = {field.name: default(field) for field in SCHEMA} | {
        "split": "test" if mask is None else "train",
        "group": "patient",
        "perceptual_hash": "0" * 64,
        "label_height": height if mask is None else mask.shape[0],
        "label_width": width if mask is None else mask.shape[1],
        **{f"pad_{side}": getattr(pad, side) for side in ("top", "bottom", "left", "right")},
        "image_height": image.shape[0],
        "image_width": image.shape[1],
        "image_size": len(content),
        "image_crc32": zlib.crc32(content),
    }
    if mask is not None:
        row |= {"fold": 0, "has_mask": bool(mask.any()), "mask_area": int(mask.sum()), "rle": rle.encode(mask)}
        row |= {"mask_offset": 0, "mask_size": 1, "mask_crc32": 0}
    return row | facts, content


def bare_manifest(table: Path) -> dict[str, Any]:
    """A valid manifest for a table and a tar."""
    return {
        "codec": "png",
        "image_size": 64,
        "counts": {name: 0 for name, field in CountsModel.model_fields.items() if field.is_required()}
        | {"warnings": {}},
        "arguments": BuildOptions().public(),
        **dict.fromkeys(("salt_check", "build_digest"), ""),
        "table_sha256": sha256_file(table),
        "shards": [{"name": TAR, "sha256": "0" * 64, "bytes": 512, "samples": 1, "reencoded": 0}],
    }


@pytest.fixture
def make(tmp_path: Path) -> Make:
    """Write a dataset of rows and image members directly, so that a test can use any codec and table."""

    def write(films: Sequence[tuple[dict[str, Any], bytes]]) -> Shards:
        content, rows = b"", []
        for number, (facts, image) in enumerate(films):
            row = {**facts, "key": f"film{number}", "shard": TAR, "image_offset": len(content)}
            about = json.dumps({"key": row["key"], "warnings": row.pop("warnings", [])}).encode()
            content += image
            row |= {"json_offset": len(content), "json_size": len(about), "json_crc32": zlib.crc32(about)}
            content += about
            rows.append(row)
        (tmp_path / TAR).write_bytes(content)
        write_rows(tmp_path / "samples.parquet", rows)
        write_manifest(tmp_path, bare_manifest(tmp_path / "samples.parquet"))
        return Shards(tmp_path)

    return write


def smooth(height: int, width: int) -> Image:
    """A grey film between 60 and 180, which JPEG hardly changes and which is nowhere black like padding."""
    y, x = np.mgrid[0:height, 0:width]
    return np.asarray(np.rint(120 + 60 * np.sin(x / 17) * np.cos(y / 23)), np.uint8)


def coloured(sheet: Image) -> npt.NDArray[np.bool_]:
    return np.asarray(sheet.max(axis=2) != sheet.min(axis=2))


SHAPES = [(80, 60), (60, 80), (80, 80)]


@pytest.mark.parametrize("shape", SHAPES)
def test_a_padded_png_gives_the_film_to_the_bit(make: Make, shape: tuple[int, int]) -> None:
    film = smooth(*shape)
    np.testing.assert_array_equal(stored_content(make([film_row(film, None, 80)]), 0), film)


@pytest.mark.parametrize("shape", SHAPES)
def test_a_jpeg_of_native_size_is_the_film_itself(make: Make, shape: tuple[int, int]) -> None:
    film = smooth(*shape)
    content = stored_content(make([film_row(film, None, None)]), 0)
    assert content.shape == shape
    assert np.abs(content.astype(int) - film).max() <= 6


def test_an_image_of_another_size_than_the_table_says_is_named(make: Make) -> None:
    row, content = film_row(smooth(80, 60), None, None)
    with pytest.raises(InputError, match=r"train-00000\.tar: the image of film0 is not 60x79 pixels"):
        stored_content(make([({**row, "image_height": 79}, content)]), 0)
    text = {"image_size": 4, "image_crc32": zlib.crc32(b"text")}
    with pytest.raises(InputError, match="film0 is not an image"):
        stored_content(make([({**row, **text}, b"text")]), 0)


@pytest.mark.parametrize("stored", [96, None])
@pytest.mark.parametrize("shape", [(96, 64), (64, 96), (96, 96)])
@pytest.mark.parametrize("grain", [1, 3])
def test_the_outline_runs_along_the_label(make: Make, shape: tuple[int, int], stored: int | None, grain: int) -> None:
    mask = np.zeros((shape[0] * grain, shape[1] * grain), np.uint8)
    top, bottom, left, right = (edge * grain for edge in (10, 50, 20, 40))
    mask[top:bottom, left:right] = 1
    shards = make([film_row(smooth(*shape), mask, stored)])
    sheet = contact_sheet(shards, [0], cell=192)
    assert sheet.dtype == np.uint8
    assert sheet.shape[0] > 192 + 2 * GAP and sheet.shape[1:] == (192 + 2 * GAP, 3)
    assert coloured(sheet[192 + GAP :]).any(), "the legend"
    sheet = sheet[: 192 + GAP]
    scale = 192 / max(shape) / grain
    y0, x0 = (GAP + (192 - side * 192 / max(shape)) / 2 for side in shape)
    rows, columns = (np.flatnonzero(coloured(sheet).any(axis=axis)) for axis in (1, 0))
    found = (rows[0], rows[-1], columns[0], columns[-1])
    expected = (y0 + top * scale, y0 + bottom * scale, x0 + left * scale, x0 + right * scale)
    assert np.abs(np.subtract(found, expected)).max() <= 2.5, (found, expected)
    middle = coloured(sheet)[round(y0 + 20 * grain * scale) : round(y0 + 40 * grain * scale)]
    assert not middle[:, round(x0 + 25 * grain * scale) : round(x0 + 35 * grain * scale)].any()


def test_a_label_grid_of_another_shape_covers_the_film(make: Make) -> None:
    mask = np.zeros((100, 100), np.uint8)
    mask[25:75, 50:] = 1
    film = coloured(contact_sheet(make([film_row(smooth(96, 48), mask, 96)]), [0], cell=96))
    film = film[GAP : GAP + 96, GAP + 24 : GAP + 72]
    rows, columns = (np.flatnonzero(film.any(axis=axis)) for axis in (1, 0))
    assert np.abs(np.subtract((rows[0], rows[-1], columns[0], columns[-1]), (24, 71, 24, 47))).max() <= 2


def test_the_film_fills_its_cell_without_padding(make: Make) -> None:
    shards = make([film_row(smooth(96, 64), None, 96, split="test")])
    sheet = contact_sheet(shards, [0], cell=96)
    assert not coloured(sheet).any()
    np.testing.assert_array_equal(sheet[GAP : GAP + 96, GAP + 16 : GAP + 80, 0], smooth(96, 64))
    assert len(np.unique(sheet[GAP : GAP + 96, GAP : GAP + 16])) == 1


def test_a_mask_of_one_pixel_can_be_seen(make: Make) -> None:
    mask = np.zeros((1024, 1024), np.uint8)
    mask[500, 500] = 1
    assert coloured(contact_sheet(make([film_row(smooth(64, 64), mask, 64)]), [0], cell=64)[: 64 + GAP]).any()


def test_cells_stand_in_rows_in_the_order_asked_for(make: Make) -> None:
    greys = [10, 60, 110, 160, 210]
    shards = make([film_row(np.full((32, 32), grey, np.uint8), None, 32, split="test") for grey in greys])
    order = [4, 0, 2, 1, 3]
    sheet = contact_sheet(shards, order, columns=3, cell=32)
    tile = (sheet.shape[0] - GAP) // 2 - GAP
    assert tile > 32 and sheet.shape == (2 * (tile + GAP) + GAP, 3 * (32 + GAP) + GAP, 3)
    seen = [sheet[GAP + n // 3 * (tile + GAP) + 16, GAP + n % 3 * (32 + GAP) + 16, 0] for n in range(5)]
    assert seen == [greys[index] for index in order]
    assert contact_sheet(shards, [0], columns=3, cell=32).shape[1] == 32 + 2 * GAP


def test_captions_tell_fold_or_split_view_and_area(make: Make) -> None:
    film, mask = smooth(32, 32), np.zeros((64, 64), np.uint8)
    mask[:40, :40] = 1
    shards = make(
        [
            film_row(film, mask, 32, fold=2, view="PA", image_id="film 0"),
            film_row(film, mask * np.uint8(0), 32, split="always_train", fold=None, view="AP"),
            film_row(film, None, 32, split="test"),
            film_row(film, None, 32, split="test", warnings=["no ViewPosition: taken as a frontal film"]),
        ]
    )
    assert [caption(shards, index) for index in range(4)] == [
        "fold 2  PA  1,600 px",
        "always train  AP  no mask",
        "test  no label",
        "test  no label  !",
    ]
    sheet = contact_sheet(shards, [0], cell=128)
    assert len(sheet) > len(contact_sheet(shards, [0], cell=127)) + 1, "the image id needs a cell of 128 pixels"
    strip = sheet[GAP + 128 : -GAP, GAP:-GAP]
    assert strip.max() > 150
    assert sheet[-GAP:].max() == sheet[:GAP].max() == strip.min()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"indices": []}, "no films"), ({"columns": 0}, "columns 0"), ({"cell": 31}, "cell 31")],
)
def test_sheets_that_cannot_be_are_refused(dataset: Path, arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(InputError, match=message):
        contact_sheet(Shards(dataset), **{"indices": [0], **arguments})


def part_of(shards: Shards, index: int) -> tuple[str, int]:
    return str(shards.column("split")[index]), int(shards.column("fold")[index])


def test_a_choice_is_spread_over_folds_and_classes(dataset: Path) -> None:
    shards = Shards(dataset)
    has_mask = shards.column("has_mask")
    parts = {part_of(shards, index) for index in range(len(shards))}
    few = choose(shards, len(parts), seed=0)
    assert {part_of(shards, index) for index in few} == parts
    assert len({bool(has_mask[index]) for index in few if part_of(shards, index)[0] == "train"}) == 2
    kinds = {(part_of(shards, index), bool(has_mask[index])) for index in range(len(shards))}
    more = choose(shards, 2 * len(kinds), seed=0)
    counts = Counter((part_of(shards, index), bool(has_mask[index])) for index in more)
    assert set(counts) == kinds
    assert len(set(more)) == len(more) == 2 * len(kinds)
    assert max(counts.values()) <= 3


def test_a_choice_is_reproducible_and_its_seed_counts(dataset: Path) -> None:
    shards = Shards(dataset)
    assert choose(shards, 9, seed=4) == choose(shards, 9, seed=4)
    assert any(choose(shards, 9, seed=4) != choose(shards, 9, seed=seed) for seed in range(5, 9))


def test_all_films_come_where_more_are_asked_for(dataset: Path) -> None:
    shards = Shards(dataset)
    assert sorted(choose(shards, 1000, seed=0)) == list(range(len(shards)))
    positives = choose(shards, 1000, seed=0, positives_only=True)
    assert sorted(positives) == np.flatnonzero(shards.column("has_mask")).tolist()


def test_a_choice_of_nothing_is_refused(make: Make, dataset: Path) -> None:
    with pytest.raises(InputError, match="count 0"):
        choose(Shards(dataset), 0, seed=0)
    with pytest.raises(InputError, match="no positive films"):
        choose(make([film_row(smooth(32, 32), None, 32, split="test")]), 3, seed=0, positives_only=True)
