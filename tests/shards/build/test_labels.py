"""The label CSV in its existing variants, and one clear line for each malformed one."""

from pathlib import Path

import pytest

from shards.build.labels import load_labels, match_labels
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


@pytest.mark.parametrize("row", ["1.2.840.3, nan", "1.2.840.3, empty", "scan, 5 3x", "scan, ?", "mask, 5 3x"])
def test_a_bad_first_row_without_a_header_is_no_header(tmp_path: Path, row: str) -> None:
    with pytest.raises(InputError, match="line 1"):
        load_labels(write(tmp_path / "l.csv", f"{row}\n1.2.840.4, -1\n"))


def test_an_id_that_is_also_a_header_word_is_an_id_if_a_mask_follows(tmp_path: Path) -> None:
    assert read(write(tmp_path / "l.csv", "film,-1\nimage,5 3\n")) == {"film": ["-1"], "image": ["5 3"]}


@pytest.mark.parametrize("text", ["", "ImageId, EncodedPixels\n", "\n\n"])
def test_a_csv_without_rows_is_refused(tmp_path: Path, text: str) -> None:
    with pytest.raises(InputError, match=r"l\.csv.*no label row"):
        load_labels(write(tmp_path / "l.csv", text))


def test_a_missing_csv_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"gone\.csv.* --rle$"):
        load_labels(tmp_path / "gone.csv")
    with pytest.raises(InputError, match=r"is a folder; give the CSV file with --rle$"):
        load_labels(tmp_path)


def test_another_encoding_is_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"l\.csv.*UTF-8"):
        load_labels(write(tmp_path / "l.csv", ROWS, "utf-16"))


@pytest.mark.parametrize(
    "header",
    [
        *("Image Id,Encoded Pixels", "ImageId,EncodedPixels", " image_id , encoded_pixels", "IMAGE-ID,Encoded-Pixels"),
        *("Bild,Maske (RLE)", "File name,Mask", "filename,rle", "img,RLE 1024", "image,label"),
    ],
)
def test_headers_are_headers_whatever_their_spelling(tmp_path: Path, header: str) -> None:
    assert read(write(tmp_path / "l.csv", f"{header}\n{ROWS}")) == EXPECTED


@pytest.mark.parametrize(
    "mask", ["EncodedPixels", "Encoded pixel", "RLE", "RLE mask", "Mask (RLE)", "Mask", "Pixels", "Label"]
)
def test_columns_that_change_places_are_read_by_their_names(tmp_path: Path, mask: str) -> None:
    assert read(write(tmp_path / "l.csv", f"{mask},ImageId\n5 3,a\n-1,b\n")) == {"a": ["5 3"], "b": ["-1"]}


@pytest.mark.parametrize("header", ["Label,RLE", "Scan,Image"])
def test_columns_are_swapped_only_if_both_names_say_so(tmp_path: Path, header: str) -> None:
    assert read(write(tmp_path / "l.csv", f"{header}\na,5 3\n")) == {"a": ["5 3"]}


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "n/a", "None", "null", ""])
def test_a_mask_that_is_missing_in_the_first_row_is_no_header(tmp_path: Path, word: str) -> None:
    with pytest.raises(InputError, match="line 1"):
        load_labels(write(tmp_path / "l.csv", f"film,{word}\nother,-1\n"))


def test_blank_cells_at_the_end_of_a_row_are_no_cells(tmp_path: Path) -> None:
    assert read(write(tmp_path / "l.csv", "ImageId,EncodedPixels,,\na,-1,\nb,5 3, ,\n")) == {"a": ["-1"], "b": ["5 3"]}


@pytest.mark.parametrize(
    ("text", "named"),
    [
        (",ImageId,EncodedPixels\n0,1.2,-1\n", r"but 3 \('', 'ImageId', 'EncodedPixels'\); keep two"),
        ("ImageId,EncodedPixels,Class\n1.2,-1,0\n", r"but 3 \('ImageId', 'EncodedPixels', 'Class'\)"),
        ("1.2,-1,0\n", r"line 1: 3 cells instead of two \(image id, mask\): '1.2', '-1', '0'"),
        ("Scan,Mask,Class\n1.2,-1,0\n", r"but 3 \('Scan', 'Mask', 'Class'\)"),
        ("ImageId\n1.2\n", r"but 1 \('ImageId'\)"),
    ],
)
def test_a_third_column_is_named_with_what_it_holds(tmp_path: Path, text: str, named: str) -> None:
    with pytest.raises(InputError, match=named):
        load_labels(write(tmp_path / "l.csv", text))


@pytest.mark.parametrize(
    "row",
    [
        *(
            "1.2.276.0.7230010E+23,-1",
            '"1,2E+23",-1',
            "1,2E+23,-1",
            "1,2E+23;-1",
            "1.5e+17,5 3",
            "#NAME?,-1",
            "#####,-1",
        ),
        '"=""000123""",-1',
    ],
)
def test_ids_that_a_spreadsheet_changed_are_named(tmp_path: Path, row: str) -> None:
    with pytest.raises(InputError, match=r"l\.csv line 3: .*spreadsheet"):
        load_labels(write(tmp_path / "l.csv", f"ImageId,EncodedPixels\n1.2.3,-1\n{row}\n"))


def test_a_mask_that_a_spreadsheet_cut_is_named(tmp_path: Path) -> None:
    mask = ("1 1 " * 9000)[:32_766] + "1"
    assert len(mask) == 32_767 and len(mask.split()) % 2 == 0
    with pytest.raises(InputError, match=r"line 1 \(a\): the mask has 32,767 characters, the limit of a"):
        load_labels(write(tmp_path / "l.csv", f"a,{mask}\n"))
    assert len(read(write(tmp_path / "l.csv", f"a,{mask}0\n"))["a"][0]) == 32_768


def test_a_mask_longer_than_csv_cells_usually_are_is_read(tmp_path: Path) -> None:
    mask = "1 1 " * 50_000 + "1 1"
    assert read(write(tmp_path / "l.csv", f"a,{mask}\nb,-1\n")) == {"a": [mask], "b": ["-1"]}


def test_labels_find_films_by_names_of_files(tmp_path: Path) -> None:
    labels = load_labels(write(tmp_path / "l.csv", "a.png,5 3\nb.DCM,-1\na,9 1\nc.jpg,-1\nd.dcm,2 2\n"))
    found = match_labels(labels, ["a", "b", "c.jpg", "c"], known={"d"})
    assert {image_id: [row.rle for row in rows] for image_id, rows in found.items()} == {
        "a": ["5 3", "9 1"],
        "b": ["-1"],
        "c.jpg": ["-1"],
        "d": ["2 2"],
    }


def test_a_film_that_is_empty_under_one_name_and_not_under_another_is_refused(tmp_path: Path) -> None:
    labels = load_labels(write(tmp_path / "l.csv", "a.png,5 3\na,-1\n"))
    assert len(match_labels(labels, ["a", "a.png"])) == 2, "two films"
    with pytest.raises(InputError, match=r"l\.csv line 2: a is marked -1"):
        match_labels(labels, ["a"])


def test_an_id_that_nearly_matches_a_film_is_explained(tmp_path: Path) -> None:
    labels = load_labels(write(tmp_path / "l.csv", "000124,-1\n123,-1\n"))
    with pytest.raises(InputError, match=r"l\.csv line 2: no film is called 123: .*leading zeros"):
        match_labels(labels, ["000123", "000124"])
    assert match_labels(labels, ["000999"]) == labels, "ids without a film are checked later"


def test_known_ids_and_ids_without_a_film_keep_their_names(tmp_path: Path) -> None:
    labels = load_labels(write(tmp_path / "l.csv", "a.png,-1\n123,-1\nb.png,-1\n"))
    assert match_labels(labels, ["a", "000123"], known={"a.png", "123"}) == labels
