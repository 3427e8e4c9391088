"""The label CSV in the forms that circulate, and one clear line for each that cannot be meant."""

from pathlib import Path

import pytest

from shards.build.labels import load_labels
from shards.errors import InputError

ROWS = "1.2.3, -1\n1.2.4, 5 3 2 1\n1.2.4, 6 4\n1.2.5,-1"
EXPECTED = {"1.2.3": ["-1"], "1.2.4": ["5 3 2 1", "6 4"], "1.2.5": ["-1"]}


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    path.write_bytes(text.encode(encoding))
    return path


def read(path: Path) -> dict[str, list[str]]:
    return {image_id: [row.rle for row in rows] for image_id, rows in load_labels(path).items()}


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
@pytest.mark.parametrize("header", ["", "ImageId, EncodedPixels\n", "ImageId,EncodedPixels\n", "id,rle\n"])
@pytest.mark.parametrize("end", ["", "\n", "\n\n  ,\n"])
@pytest.mark.parametrize("newline", ["\n", "\r\n"])
def test_every_form_in_circulation_gives_the_same_labels(
    tmp_path: Path, encoding: str, header: str, end: str, newline: str
) -> None:
    text = (header + ROWS + end).replace("\n", newline)
    assert read(write(tmp_path / "l.csv", text, encoding)) == EXPECTED


def test_rows_keep_their_line_numbers(tmp_path: Path) -> None:
    labels = load_labels(write(tmp_path / "l.csv", "ImageId, EncodedPixels\n" + ROWS))
    assert [row.line for row in labels["1.2.4"]] == [3, 4]


def test_a_repeated_empty_row_stays_empty(tmp_path: Path) -> None:
    assert read(write(tmp_path / "l.csv", "a,-1\na, -1\n")) == {"a": ["-1", "-1"]}


@pytest.mark.parametrize(
    ("bad", "part"),
    [
        ("x, 1 2 3", "odd"),
        ("x, -3 4", "negative"),
        ("x, 3 0", "below 1"),
        ("x, 3 four", "'four'"),
        ("x,", "empty"),
        ("x", "1 cell "),
        ("x,1 2,3 4", "3 cells"),
        (",1 2", "id is missing"),
        ("1.2.4, -1", "-1"),
    ],
)
def test_a_bad_row_is_named_by_file_and_line(tmp_path: Path, bad: str, part: str) -> None:
    path = write(tmp_path / "l.csv", f"ImageId, EncodedPixels\n1.2.4, 5 3\n{bad}\n1.2.6, 1 1\n")
    with pytest.raises(InputError, match=part) as error:
        load_labels(path)
    assert str(path) in str(error.value)
    assert "line 3" in str(error.value)
    assert "\n" not in str(error.value)


def test_a_bad_first_row_without_a_header_is_no_header(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="line 1"):
        load_labels(write(tmp_path / "l.csv", "1.2.840.3, nan\n1.2.840.4, -1\n"))


@pytest.mark.parametrize("text", ["", "ImageId, EncodedPixels\n", "\n\n"])
def test_a_csv_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"l\.csv.*no label row"):
        load_labels(write(tmp_path / "l.csv", text))


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv"):
        load_labels(tmp_path / "gone.csv")


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"l\.csv.*UTF-8"):
        load_labels(write(tmp_path / "l.csv", ROWS, "utf-16"))
