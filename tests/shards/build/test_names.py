"""Names of films: which can be image ids, and how their spellings match."""

import csv
import io
import os
import unicodedata
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.build.names import name_id, objection, sop_id, spelling
from shards.console import printable
from shards.dataset.keys import sample_key

WriteFilm = Callable[..., Path]
PIXELS = np.arange(64, dtype=np.uint16).reshape(8, 8)


@pytest.mark.parametrize(
    "image_id",
    [
        *("=1+1", "=cmd|'/c calc'!A0", "+1", "@SUM(A1)", "-1+2", "-a", " =1", "＝1", "＋a", "＠a", "－a"),
        *("a;=1+1", "a; @b", "a;-b"),
        *("two\nlines", "tab\there", "bell\x07", "\x1b[31mred", "line\u2028separator", "del\x7f"),
    ],
)
def test_names_that_harm_a_table_or_a_terminal_are_objected_to(image_id: str) -> None:
    found = objection(image_id)
    assert found is not None and "rename it" in found
    assert found.isprintable()


@pytest.mark.parametrize(
    "image_id",
    [
        *("1.2.840.113619.2", "00000001_000", "film-1", "film, left", "a=b", "e+1", "me@home", "a - b"),
        *("-1", "-12.5", "a;b", "Müller", "cafe\u0301", "胸部", "x" * 250, "(1) copy", "_a", "#1", "a|b"),
    ],
)
def test_other_names_are_taken(image_id: str) -> None:
    assert objection(image_id) is None


def test_a_name_in_latin_1_bytes_is_objected_to_with_the_way_out() -> None:
    found = objection(os.fsdecode(b"f\xfclm"))
    assert found is not None
    assert "not UTF-8" in found and "convmv" in found and "unzip -O" in found


@given(st.binary(min_size=1, max_size=40))
def test_every_name_is_objected_to_or_becomes_a_key_and_a_cell(name: bytes) -> None:
    image_id = os.fsdecode(name)
    assert printable(image_id).isprintable()
    printable(image_id).encode()
    if objection(image_id) is None:
        assert sample_key(image_id).isascii()
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow([image_id])
        assert text.getvalue().count("\n") == 1
        assert text.getvalue().strip('" \n')[:1] not in ("=", "+", "@", "\t")


def test_what_no_stream_takes_is_printed_as_its_byte() -> None:
    assert printable(os.fsdecode(b"f\xfclm \x1b[1m")) == r"f\xfclm \x1b[1m"
    assert printable("Müller 胸部") == "Müller 胸部"


def test_a_name_is_found_in_the_other_form_of_its_accents_and_without_its_spaces() -> None:
    composed, taken_apart = (unicodedata.normalize(form, "Müller") for form in ("NFC", "NFD"))
    assert composed != taken_apart
    for first, second in ((composed, taken_apart), (taken_apart, composed)):
        assert spelling([first, "other"])(second) == first
    assert spelling([composed, taken_apart])(taken_apart) == taken_apart
    assert spelling(["a"])(" a ") == "a"
    assert spelling(["a"])("b ") == "b "


@pytest.mark.parametrize(
    ("name", "expected"), [("a.dcm", "a"), ("a.PNG", "a"), ("1.2.3", "1.2.3"), ("a.b.dcm", "a.b"), ("IM0001", "IM0001")]
)
def test_a_file_name_without_its_suffix_is_the_image_id(name: str, expected: str) -> None:
    assert name_id(Path("folder") / name) == expected


def test_the_sop_instance_uid_is_read_without_the_pixels(write_film: WriteFilm, tmp_path: Path) -> None:
    path = write_film(tmp_path / "IM000000", PIXELS, SOPInstanceUID="1.2.3.4")
    assert sop_id(path) == "1.2.3.4"
    whole = path.read_bytes()
    path.write_bytes(whole[: -PIXELS.nbytes])  # damaged pixels do not matter
    assert sop_id(path) == "1.2.3.4"
    path.write_bytes(b"no film")
    assert sop_id(path) is None


@pytest.mark.parametrize("uid", ["", "=1+1", "1.2\\3.4", "a/b", "a b"])
def test_a_uid_that_cannot_be_an_image_id_is_none(write_film: WriteFilm, tmp_path: Path, uid: str) -> None:
    good = "1.2.3.44444444444"
    path = write_film(tmp_path / "film.dcm", PIXELS, SOPInstanceUID=good)
    # Edit the file, as pydicom does not write such values.
    path.write_bytes(path.read_bytes().replace(good.encode(), uid.encode().ljust(len(good), b"\0")))
    assert sop_id(path) is None


@given(content=st.binary(max_size=300))
def test_no_bytes_are_an_error_when_a_uid_is_looked_for(
    tmp_path_factory: pytest.TempPathFactory, content: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any bytes"
    for start in (b"", bytes(128) + b"DICM"):
        path.write_bytes(start + content)
        assert sop_id(path) is None or isinstance(sop_id(path), str)
