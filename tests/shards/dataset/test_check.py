"""Readers refuse tables that no build writes, with a valid digest or without one."""

import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from edited_dataset import edit_rows, resign, write_rows

from shards.dataset.show import stored_content
from shards.dataset.table import TABLE, Shards, save_table
from shards.dataset.verify import verify
from shards.errors import InputError

Row = dict[str, Any]


def positive(rows: list[Row]) -> Row:
    return next(row for row in rows if row["has_mask"] and row["split"] == "train")


def test_a_table_of_another_digest_is_refused_and_verify_looks_at_all_the_same(own_dataset: Path) -> None:
    rows = pq.read_table(own_dataset / TABLE).to_pylist()
    rows[0]["sex"] = "O"
    rows[1]["mask_area"] += 1
    rows[1] |= {"has_mask": True, "rle": "0 5"}
    write_rows(own_dataset / TABLE, rows)
    with pytest.raises(InputError, match=r"samples\.parquet: differs from the manifest's digest; restore it"):
        Shards(own_dataset)
    faults = verify(own_dataset)
    assert len(faults) > 1 and "digest" in faults[0]
    assert any(rows[1]["key"] in fault for fault in faults)


@pytest.mark.parametrize("content", [b"", b"PAR1", b"no table" * 100])
def test_verify_tells_of_a_table_that_it_cannot_read_and_goes_on_with_the_tars(
    own_dataset: Path, content: bytes
) -> None:
    (own_dataset / TABLE).write_bytes(content)
    tar = own_dataset / "train-00001.tar"
    tar.write_bytes(tar.read_bytes()[:-1])
    faults = verify(own_dataset)
    assert [TABLE in fault for fault in faults] == [True, False, True]
    assert "train-00001.tar" in faults[1] and "unreadable" in faults[2]
    (own_dataset / TABLE).unlink()
    assert any("samples.parquet: missing" in fault for fault in verify(own_dataset))


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        (lambda rows: rows[3].update(split="trian"), "has a split other than"),
        (lambda rows: rows[3].update(shard="../train-00000.tar"), "has a shard that the manifest does not list"),
        (lambda rows: rows[3].update(label_height=0), "label_height is outside 1 to 65535"),
        (lambda rows: rows[3].update(label_height=2**31 - 1), "label_height is outside"),
        (lambda rows: rows[3].update(label_height=65_535, label_width=65_535), "more than 1073741824 pixels"),
        (lambda rows: rows[3].update(pad_left=-1), "pad_left is outside"),
        (
            lambda rows: rows[3].update(image_height=65_535, image_width=65_535),
            "image of more than 1073741824 pixels",
        ),
        (lambda rows: rows[3].update(image_id="\x1b]0;title\x07"), "image_id has a line break, a control character"),
        (lambda rows: rows[3].update(view="PA\nAP"), "view has a line break"),
        (
            lambda rows: rows[3].update(group="x" * 1001),
            "group has a line break, a control",
        ),
        (lambda rows: rows[3].update(pad_left=40, pad_right=40), "no pixel between its paddings"),
        (lambda rows: rows[3].update(image_offset=-512), "image_offset is outside"),
        (lambda rows: rows[3].update(image_size=2**40), "image_size is outside"),
        (lambda rows: positive(rows).update(fold=-1), "fold is outside"),
        (lambda rows: positive(rows).update(fold=None), "split train without a fold"),
        (lambda rows: positive(rows).update(rle=None), "has no rle"),
        (lambda rows: positive(rows).update(rle="-1"), "an RLE that contradicts its mask_area"),
        (lambda rows: positive(rows).update(has_mask=False), "a has_mask that contradicts its mask_area"),
        (lambda rows: positive(rows).update(mask_area=0), "contradicts"),
        (lambda rows: positive(rows).update(mask_area=64 * 64 + 1), "a mask larger than its grid"),
        (lambda rows: positive(rows).update(mask_offset=None), "has no mask_offset"),
        (lambda rows: positive(rows).update(group=None), "has no group"),
        (lambda rows: rows[3].update(perceptual_hash="x"), "perceptual_hash does not have 64"),
        (lambda rows: rows[3].update(spacing_row=float("nan")), "spacing_row is not a number"),
    ],
)
def test_values_that_no_build_writes_are_refused(own_dataset: Path, change: Callable[..., None], fault: str) -> None:
    edit_rows(own_dataset, change)
    with pytest.raises(InputError, match=fault):
        Shards(own_dataset)
    assert any(fault in line for line in verify(own_dataset))


@pytest.mark.parametrize("change", ["rename", "drop", "type", "null"])
def test_columns_are_those_of_the_format(own_dataset: Path, change: str) -> None:
    table = pq.read_table(own_dataset / TABLE)
    place = table.schema.get_field_index("view")
    if change == "rename":
        table = table.rename_columns({"view": "viwe"})
    elif change == "drop":
        table = table.drop_columns(["view"])
    else:
        values = pa.array([1] * len(table)) if change == "type" else pa.nulls(len(table), pa.string())
        table = table.set_column(place, "view", values)
    save_table(own_dataset / TABLE, table)
    resign(own_dataset)
    with pytest.raises(InputError, match="view is missing" if change == "null" else "its columns are not those"):
        Shards(own_dataset)


def test_members_are_read_within_their_tar_and_at_the_size_of_the_table(own_dataset: Path) -> None:
    edit_rows(own_dataset, lambda rows: rows[3].update(image_size=2**31 - 1))
    with pytest.raises(InputError, match="does not match its CRC32"):
        Shards(own_dataset).read(3, "image")
    edit_rows(own_dataset, lambda rows: rows[4].update(image_height=128, image_width=128))
    with pytest.raises(InputError, match="is not 128x128 pixels"):
        Shards(own_dataset).read(4, "image")


@pytest.mark.parametrize("suffix", [".bmp", ".tiff", ".webp", ".jp2"])
def test_a_member_in_another_format_is_not_decoded(
    own_dataset: Path, monkeypatch: pytest.MonkeyPatch, suffix: str
) -> None:
    """Decoders take many formats, whose size only they know."""
    done, content = cv2.imencode(suffix, np.zeros((900, 900), np.uint8))
    assert done
    tar = own_dataset / "train-00000.tar"
    offset, picture = tar.stat().st_size, content.tobytes()
    tar.write_bytes(tar.read_bytes() + picture)
    place = {"image_offset": offset, "image_size": len(picture), "image_crc32": zlib.crc32(picture)}
    edit_rows(own_dataset, lambda rows: rows[0].update(place))
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("was decoded"))
    with pytest.raises(InputError, match="is not an image of 64x64 pixels"):
        stored_content(Shards(own_dataset), 0)
