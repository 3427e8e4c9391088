"""Large tables are decoded once per machine, and mapped by all of a user's processes."""

import multiprocessing
import os
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest

from shards.dataset import mapped as mapping
from shards.dataset import table as tables
from shards.dataset.mapped import mapped
from shards.dataset.table import SCHEMA, Shards
from shards.errors import InputError
from shards.files import sha256_file

DIGEST = "0123"
TABLE = pa.table({"key": ["a", "b", None], "area": [1, 2, 3]})


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder for temporary files. Every table counts as large."""
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tables, "MAPPED_FILMS", 1)
    return tmp_path / "tmp"


def files(temporary: Path) -> list[Path]:
    return sorted(temporary.rglob("*.arrow"))


def refused() -> pa.Table:
    raise AssertionError("it is decoded again")


def test_table_is_decoded_once_and_then_mapped(temporary: Path) -> None:
    before = pa.total_allocated_bytes()
    assert mapped(DIGEST, lambda: TABLE).equals(TABLE)
    again = mapped(DIGEST, refused)
    assert again.equals(TABLE) and len(files(temporary)) == 1
    assert pa.total_allocated_bytes() == before, "the mapped table takes memory of this process"


def test_dataset_read_through_the_mapping_is_the_same(dataset: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first, again = Shards(dataset), Shards(dataset)
    monkeypatch.setattr(tables, "MAPPED_FILMS", 10**9)
    plain = Shards(dataset)
    for each in (first, again):
        assert each.table.equals(plain.table)
        for name in SCHEMA.names:
            assert each.column(name).dtype == plain.column(name).dtype
            np.testing.assert_array_equal(each.column(name), plain.column(name))
        rows = plain.indices("train", "test")
        assert each.indices("train", "test").tolist() == rows.tolist()
        assert each.texts(rows, "key") == [str(plain.column("key")[row]) for row in rows]
        assert [each.read(int(row), "image") for row in rows] == [plain.read(int(row), "image") for row in rows]
        for fold in plain.folds():
            for found, expected in zip(each.fold_rows(fold, True), plain.fold_rows(fold, True), strict=True):
                assert found.tolist() == expected.tolist()


def test_another_table_is_never_taken_for_this_one(dataset: Path, tmp_path: Path, temporary: Path) -> None:
    Shards(dataset)
    copy = shutil.copytree(dataset, tmp_path / "copy")
    content = bytearray((copy / "samples.parquet").read_bytes())
    content[len(content) // 2] ^= 1
    (copy / "samples.parquet").write_bytes(content)
    manifest = (copy / "manifest.json").read_text()
    changed = manifest.replace(sha256_file(dataset / "samples.parquet"), sha256_file(copy / "samples.parquet"))
    (copy / "manifest.json").write_text(changed)
    with pytest.raises(InputError, match=r"samples\.parquet"):
        Shards(copy)
    assert len(files(temporary)) == 1, "a damaged table was kept"


@pytest.mark.parametrize("fault", ["missing", "a file", "open to others", "truncated"])
def test_folder_that_cannot_be_used_costs_only_memory(temporary: Path, fault: str) -> None:
    folder = temporary / f"pneumo_dist-tables-{os.getuid()}"
    if fault == "missing":
        temporary.rmdir()
    elif fault == "a file":
        folder.write_text("")
    elif fault == "open to others":
        folder.mkdir()
        folder.chmod(0o777)
    else:
        mapped(DIGEST, lambda: TABLE)
        files(temporary)[0].write_bytes(b"cut off")
    assert mapped(DIGEST, lambda: TABLE).equals(TABLE)


def test_folder_of_another_user_is_not_trusted(temporary: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mapped(DIGEST, lambda: TABLE)
    owner = os.getuid()
    monkeypatch.setattr(os, "getuid", lambda: owner + 1)
    (temporary / f"pneumo_dist-tables-{owner}").rename(temporary / f"pneumo_dist-tables-{owner + 1}")
    other = pa.table({"key": ["other"]})
    assert mapped(DIGEST, lambda: other).equals(other)


def test_unused_tables_and_leftovers_are_removed(temporary: Path) -> None:
    mapped("old", lambda: TABLE)
    mapped("used", lambda: TABLE)
    past = time.time() - mapping.KEPT_SECONDS - 60
    for path in files(temporary):
        os.utime(path, (past, past))
    (files(temporary)[0].parent / ".x.arrow.abc.tmp").write_bytes(b"part")
    mapped("used", refused)  # notes that it is used
    mapped("new", lambda: TABLE)
    assert [path.name.split("-")[0] for path in files(temporary)] == ["new", "used"]
    assert not list(temporary.rglob("*.tmp"))


def count_decodes(folder: Path, marks: Path) -> None:
    tempfile.tempdir = str(folder)

    def decode() -> pa.Table:
        (marks / str(os.getpid())).write_text("")
        time.sleep(0.3)
        return TABLE

    assert mapped(DIGEST, decode).equals(TABLE)


def test_one_of_several_processes_decodes(temporary: Path, tmp_path: Path) -> None:
    (tmp_path / "marks").mkdir()
    context = multiprocessing.get_context("fork")
    workers = [context.Process(target=count_decodes, args=(temporary, tmp_path / "marks")) for _ in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [worker.exitcode for worker in workers] == [0, 0, 0, 0]
    assert len(list((tmp_path / "marks").iterdir())) == 1
