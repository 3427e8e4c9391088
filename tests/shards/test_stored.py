"""Stored files: bounded sizes, strict JSON, locks, and links that are not written through."""

import io
import json
import os
import zipfile
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from shards import stored
from shards.errors import InputError
from shards.stored import (
    KindModel,
    Strict,
    open_append,
    parse_json,
    picture_size,
    read_json,
    read_limited,
    read_parquet,
    stored_plainly,
)


class Model(Strict):
    count: int
    share: float
    names: list[str] = []  # noqa: RUF012


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("", "not valid JSON"),
        ("[" * 100_000, "not valid JSON"),
        ('{"count": 1, "share": 1, "names": ' + "[" * 1000, "not valid JSON"),
        ('{"count": 1, "share": 1, "other": ' + "[" * 500 + "]" * 500 + "}", "not valid JSON"),
        ("[]", "damaged .*object"),
        ("null", "damaged"),
        ('{"count": 1}', "damaged at share .Field required"),
        ('{"count": "1", "share": 1}', "damaged at count"),
        ('{"count": true, "share": 1}', "damaged at count"),
        ('{"count": 1.5, "share": 1}', "damaged at count"),
        ('{"count": 1, "share": NaN}', "damaged at share"),
        ('{"count": 1, "share": 1e999}', "damaged at share"),
        ('{"count": 1, "share": 1, "names": [1]}', "damaged at names.0"),
        ('\ufeff{"count": 1, "share": 1}', "not valid JSON"),
    ],
)
def test_json_of_other_types_is_refused_by_key(text: str, reason: str) -> None:
    with pytest.raises(InputError, match=rf"^file: {reason}.*; fix$"):
        parse_json(text.encode(), Model, "file", "fix")


def test_json_that_fits_keeps_what_the_model_does_not_name() -> None:
    text = '{"count": 1, "share": 2, "more": [null]}'
    assert parse_json(text.encode(), Model, "file", "fix") == json.loads(text)


SCHEMA = pa.schema([("name", pa.string()), ("number", pa.int64())])


def write(path: Path, names: Any, **options: Any) -> Path:
    numbers = pa.array(np.random.default_rng(0).integers(0, 2**60, len(names)) if not options else [0] * len(names))
    pq.write_table(pa.table([pa.array(names), numbers.cast(pa.int64())], schema=SCHEMA), path, compression="zstd")
    return path


def test_a_table_is_read_unchanged(tmp_path: Path) -> None:
    names = [f"film{number}" for number in range(10_000)]
    table = read_parquet(write(tmp_path / "good", names), SCHEMA, None, "fix")
    assert table["name"].to_pylist() == names and table.schema.equals(SCHEMA)


def test_tables_that_inflate_are_refused(tmp_path: Path) -> None:
    path = write(tmp_path / "rows", ["a"] * 5_000_000, equal=True)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"rows: 5000000 rows in \d+ bytes; fix"):
        read_parquet(path, SCHEMA, None, "fix")
    path = write(tmp_path / "text", ["1 1 " * 250_000] * 500)
    assert path.stat().st_size < 100_000
    with pytest.raises(InputError, match=r"text: holds far more than \d+ bytes can; fix"):
        read_parquet(path, SCHEMA, None, "fix")


def test_sizes_of_pictures_are_read_without_decoding() -> None:
    image = np.zeros((37, 53), np.uint8)
    for suffix in (".png", ".jpg"):
        content = cv2.imencode(suffix, image)[1].tobytes()
        assert picture_size(content) == (37, 53)
        picture_size(content[:30])
    assert picture_size(b"") is picture_size(b"text") is picture_size(b"\xff\xd8\xff") is None


def test_a_link_is_not_opened_to_append_to(tmp_path: Path) -> None:
    with open_append(tmp_path / "log") as stream:
        stream.write(b"one")
    with open_append(tmp_path / "log") as stream:
        stream.write(b"two")
    assert (tmp_path / "log").read_bytes() == b"onetwo"
    for target in ("log", "new"):
        link = tmp_path / f"to-{target}"
        link.symlink_to(tmp_path / target)
        with pytest.raises(InputError, match="is a symbolic link"):
            open_append(link)
    assert not (tmp_path / "new").exists()
    assert (tmp_path / "log").read_bytes() == b"onetwo"


@pytest.mark.parametrize("kind", ["pipe", "device", "folder", "large"])
def test_what_has_no_end_is_not_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    path = tmp_path / "manifest.json"
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        monkeypatch.setattr(stored, "MOST_JSON", 1 << 20)
        path.write_bytes(b" " * (1 << 20) + b"{}")
    error = IsADirectoryError if kind == "folder" else InputError
    with pytest.raises(error, match=r"manifest\.json"):
        read_json(path, KindModel, "fix")
    with pytest.raises(error, match=r"manifest\.json"):
        read_limited(path, 1, "fix")
    with pytest.raises(InputError, match=r"manifest\.json"):
        read_parquet(path, SCHEMA, None, "fix")


def test_a_file_of_the_largest_size_is_read(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"1234")
    assert read_limited(tmp_path / "a", 4, "fix") == b"1234"


def test_a_page_that_inflates_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    table = pa.table([pa.array(["\0" * (100 << 20)]), pa.array([0])], schema=SCHEMA)
    pq.write_table(table, tmp_path / "page", compression="zstd", use_dictionary=False)
    assert (tmp_path / "page").stat().st_size < 100_000
    monkeypatch.setattr(pq.ParquetFile, "iter_batches", lambda *_, **__: pytest.fail("a page was decoded"))
    with pytest.raises(InputError, match=r"page: holds far more than \d+ bytes can; fix"):
        read_parquet(tmp_path / "page", SCHEMA, None, "fix")


@pytest.mark.parametrize(
    ("names", "kind", "is_plain"),
    [
        (("a", "b"), zipfile.ZIP_STORED, True),
        (("a", "A"), zipfile.ZIP_STORED, False),
        (("a", "b"), zipfile.ZIP_DEFLATED, False),
    ],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_archives_are_plain_with_each_member_once(names: tuple[str, ...], kind: int, is_plain: bool) -> None:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w", kind) as archive:
        for name in names:
            archive.writestr(name, b"0" * 1000)
    with zipfile.ZipFile(stream) as archive:
        assert stored_plainly(archive, len(stream.getvalue())) == is_plain
        assert not stored_plainly(archive, 1999)
