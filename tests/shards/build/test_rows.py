"""CSV files that people edit: read, or refused in one line, whatever they contain."""

import csv
import os
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from shards.build import rows
from shards.build.film_values import Films, read_folds, read_groups
from shards.build.labels import load_labels, match_labels
from shards.build.rows import LONGEST_CELL, Row, explain_stray, plain, read_rows, without_suffix
from shards.errors import InputError

WILD = settings(max_examples=300, suppress_health_check=[HealthCheck.function_scoped_fixture])
# Text that often looks like a CSV.
PIECES = st.sampled_from(
    [
        *("1.2.3", "a.png", "-1", "5 3", "ImageId", "EncodedPixels", "fold", "group", "stage_2", "0.0", "1E+23", "nan"),
        *(",", ",", ",", ";", "\t", "|", "\n", "\n", "\r", "\r\n", '"', '""', " ", "\ufeff", "\u2028", "\x85", "\x0c"),
    ]
)
CSV_LIKE = st.lists(PIECES | st.text(max_size=3), max_size=40).map("".join)


def write(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content.encode("utf-8", "surrogatepass") if isinstance(content, str) else content)
    return path


def refusal(path: Path, content: str | bytes) -> str:
    with pytest.raises(InputError) as error:
        read_rows(write(path, content), "--rle")
    assert len(str(error.value).splitlines()) == 1
    return str(error.value)


@WILD
@given(content=st.text() | CSV_LIKE | st.binary())
def test_a_wild_file_is_read_or_gets_one_clear_line(tmp_path: Path, content: str | bytes) -> None:
    path = write(tmp_path / "wild.csv", content)
    films = Films(frozenset({"1.2.3", "a", "007"}))

    def labelled(path: Path) -> object:
        return match_labels(load_labels(path), films.ids)

    for read in (labelled, lambda path: read_folds(path, films), lambda path: read_groups(path, films)):
        try:
            read(path)
        except InputError as error:
            assert str(path) in str(error)
            assert len(str(error).splitlines()) == 1, str(error)
    assert csv.field_size_limit() == 131_072, "the limit of the process is unchanged"


@WILD
@given(
    cells=st.lists(
        st.lists(st.text(st.characters(exclude_categories=["C", "Z"]), min_size=1), min_size=2, max_size=4), min_size=1
    ),
    ending=st.sampled_from(["\n", "\r\n", "\r"]),
    bom=st.booleans(),
)
def test_what_a_program_wrote_is_read_as_it_was(tmp_path: Path, cells: list[list[str]], ending: str, bom: bool) -> None:
    path = tmp_path / "good.csv"
    with path.open("w", newline="", encoding="utf-8-sig" if bom else "utf-8") as stream:
        csv.writer(stream, lineterminator=ending, quoting=csv.QUOTE_ALL).writerows(cells)
    assert read_rows(path, "--rle") == [Row(line, tuple(row)) for line, row in enumerate(cells, 1)]


@pytest.mark.parametrize(("separator", "name"), [(";", "';'"), ("\t", "tabs"), ("|", r"'\|'"), (" ", "spaces")])
def test_other_separators_are_named(tmp_path: Path, separator: str, name: str) -> None:
    text = "".join(f"{i}{separator}-1\n" for i in ("ImageId", "1.2.3", "1.2.4"))
    with pytest.raises(InputError, match=rf"f\.csv: its cells are separated by {name}; save it with commas"):
        read_rows(write(tmp_path / "f.csv", text), "--rle")


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("a,-1\n".encode("utf-16"), "UTF-16 text, as spreadsheets save"),
        (b"\xfe\xff" + "a,-1\n".encode("utf-16-be"), "UTF-16 text, as spreadsheets save"),
        ("a,-1\n".encode("utf-16-le"), "line 1: contains a NUL byte, so it is UTF-16"),
        ("a,-1\n".encode("utf-32"), "UTF-32"),
        (b"a,-1\nb,-\x001\n" + b"c,-1\n" * 9, "line 2: contains a NUL byte, so it is a binary or a damaged file"),
        (b"a,-1\nb\xe9,-1\n", "line 2: not UTF-8 text"),
        (b"PK\x03\x04\x14\x00", "spreadsheet's workbook"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1", "spreadsheet's workbook"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"version https://git-lfs.github.com/spec/v1\n", "Git LFS"),
        (b"<!DOCTYPE html>", "web page"),
        ('a,-1\nb,"1 2\nc,-1\n', "line 2: a quotation mark is opened and never closed"),
        ('a,-1\n"b"c,1 2\n', "line 2: text follows a closing quotation mark"),
    ],
)
def test_a_file_that_is_not_a_csv_is_named(tmp_path: Path, content: str | bytes, named: str) -> None:
    assert named in refusal(tmp_path / "f.csv", content)


def test_a_folder_and_a_missing_file_are_named_with_the_option(tmp_path: Path) -> None:
    for path, named in ((tmp_path, "is a folder"), (tmp_path / "gone", "no such file")):
        with pytest.raises(InputError, match=f"^{path}: {named}; give the CSV file with --groups$"):
            read_rows(path, "--groups")


def test_a_pipe_is_read(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    with os.fdopen(writing, "wb") as stream:
        stream.write(b"a,1\n")
    try:
        assert read_rows(Path(f"/dev/fd/{reading}"), "--groups") == [Row(1, ("a", "1"))]
    finally:
        os.close(reading)


def test_cells_are_read_up_to_a_limit_that_is_named(tmp_path: Path) -> None:
    path = write(tmp_path / "long.csv", "a," + "1 " * (LONGEST_CELL // 2 - 1) + "1")
    assert len(read_rows(path, "--rle")[0].cells[1]) == LONGEST_CELL - 1
    assert f"line 2: a cell has more than {LONGEST_CELL:,} characters" in refusal(
        path, "a,-1\nb," + "1 " * (LONGEST_CELL // 2 + 1)
    )


def test_names_of_columns_are_read_whatever_their_spelling() -> None:
    assert {plain(name) for name in ("Image Id", "ImageId", " image_id ", "IMAGE-ID")} == {"imageid"}


@pytest.mark.parametrize("suffix", [".dcm", ".PNG", ".jpg", ".jpeg", ".dicom"])
def test_suffixes_of_images_are_no_part_of_an_id(suffix: str) -> None:
    assert without_suffix(f"1.2.3{suffix}") == "1.2.3"
    assert without_suffix("1.2.3") == "1.2.3"
    assert without_suffix(suffix) == suffix


@pytest.mark.parametrize(
    ("image_id", "film", "why"),
    [
        ("ABC.1", "abc.1", "the film is abc.1; use the same case"),
        ("ABC.png", "abc", "the film is abc; use the same case"),
        ("123", "000123", "leading zeros"),
        ("123456789012346000", "123456789012345678", "zeros after 15 digits"),
        ("17.0", "17", "add '.0'"),
        ("2-Mar", "MAR2", "date"),
    ],
)
def test_an_id_that_a_spreadsheet_changed_is_explained(image_id: str, film: str, why: str) -> None:
    found = explain_stray(["other", image_id], ["1.2.3", film])
    assert found is not None and found[0] == image_id and why in found[1]


def test_an_unknown_id_is_not_a_changed_one() -> None:
    assert explain_stray(["124", "1.2.4", "999999999999999000"], ["000123", "1.2.3", "123456789012345678"]) is None


def test_a_csv_of_endless_bytes_or_rows_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.csv"
    path.write_text("a,-1\n" * 100)
    monkeypatch.setattr(rows, "MOST_ROWS", 99)
    with pytest.raises(InputError, match=r"a\.csv: has more than 99 rows; build the films in parts"):
        read_rows(path, "--rle")
    monkeypatch.setattr(rows, "MOST_BYTES", 1 << 8)
    with pytest.raises(InputError, match=r"a\.csv: larger than 0 MiB"):
        read_rows(path, "--rle")
