"""The submission file of the competition."""

from pathlib import Path

import numpy as np
import pytest
from report_runs import store

from pneumo_dist.maps.store import Predictions, encode_map, film_facts, write_block, write_table
from pneumo_dist.output.submission import (
    called_share,
    drift_warning,
    sample_order,
    submission_rows,
    write_submission,
)
from pneumo_dist.scoring.masks import Rule, apply_triplet, label_map, remove_small
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.errors import InputError

ROWS = {"b": "3 4", "a": "-1", "c": "0 1 2 3"}


def test_file_has_header_one_row_per_film_and_minus_one_for_empty(tmp_path: Path) -> None:
    write_submission(tmp_path / "submission.csv", ROWS, None)
    expected = "ImageId,EncodedPixels\nb,3 4\na,-1\nc,0 1 2 3\n"
    assert (tmp_path / "submission.csv").read_bytes().decode() == expected


@pytest.mark.parametrize(
    "text",
    [
        "ImageId,EncodedPixels\nc,1 2\na,-1\nc,5 6\nb,-1\n",
        "\ufeffImageId, EncodedPixels\r\nc, 1 2\r\n a, -1\r\n\r\nb, -1\r\n",
        "c,1 2\na,-1\nb,-1\n",
        "image_id\nc\na\nb\n",
    ],
)
def test_order_is_that_of_the_sample_with_repeated_ids_once(tmp_path: Path, text: str) -> None:
    (tmp_path / "sample.csv").write_text(text, encoding="utf-8", newline="")
    order = sample_order(tmp_path / "sample.csv")
    assert order == ["c", "a", "b"]
    write_submission(tmp_path / "submission.csv", ROWS, order)
    assert (tmp_path / "submission.csv").read_text().splitlines()[1:] == ["c,0 1 2 3", "a,-1", "b,3 4"]


def test_missing_id_writes_nothing_and_keeps_the_old_file(tmp_path: Path) -> None:
    out = tmp_path / "submission.csv"
    with pytest.raises(InputError, match=r"2 ids.*first x"):
        write_submission(out, ROWS, ["a", "x", "y"])
    assert list(tmp_path.iterdir()) == []
    out.write_text("before")
    with pytest.raises(InputError):
        write_submission(out, ROWS, ["x"])
    assert out.read_text() == "before"


@pytest.mark.parametrize("text", ["", "ImageId,EncodedPixels\n", "\n\n"])
def test_sample_without_ids_is_an_input_error(tmp_path: Path, text: str) -> None:
    (tmp_path / "sample.csv").write_text(text)
    with pytest.raises(InputError, match=r"sample\.csv"):
        sample_order(tmp_path / "sample.csv")


def test_missing_and_binary_samples_are_input_errors(tmp_path: Path) -> None:
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    for name in ("missing.csv", "binary.csv"):
        with pytest.raises(InputError, match=name):
            sample_order(tmp_path / name)


def test_rows_are_the_masks_of_the_triplet_on_the_label_grid(shapes: Shards, tmp_path: Path) -> None:
    random = np.random.default_rng(2)
    maps = [random.integers(0, 200, (32, 32), np.uint8) for _ in range(3)] + [np.zeros((32, 32), np.uint8)]
    films = [(film_facts(shapes, index), encode_map(maps[index])) for index in range(4)]
    write_table(tmp_path, write_block(tmp_path / "pred-00000.tar", films), {})
    triplet = Triplet(0.5, 20, 0.3)
    rows = submission_rows(Predictions(tmp_path), Rule(triplet))
    assert list(rows) == shapes.column("image_id").tolist()
    assert rows["shape3"] == "-1"
    for index, text in enumerate(rows.values()):
        mask = rle.decode(text, 60, 80)
        np.testing.assert_array_equal(mask, apply_triplet(label_map(maps[index], shapes.grid(index)), triplet))
    assert sum(text != "-1" for text in rows.values()) == 3
    for index, text in enumerate(submission_rows(Predictions(tmp_path), Rule(triplet, smallest_part=400)).values()):
        mask = remove_small(apply_triplet(label_map(maps[index], shapes.grid(index)), triplet), 400)
        assert text == rle.encode(mask)


def test_gate_empties_the_films_below_it_and_needs_a_class_probability(shapes: Shards, tmp_path: Path) -> None:
    full = encode_map(np.full((32, 32), 255, np.uint8))
    for folder, values in (("with", (0.2, 0.5, 0.75, 1.0)), ("without", (None,) * 4)):
        films = [({**film_facts(shapes, i), "class_probability": value}, full) for i, value in enumerate(values)]
        write_table(tmp_path / folder, write_block(tmp_path / folder / "pred-00000.tar", films), {})
    rule = Rule(Triplet(0.5, 20, 0.3), gate=0.5)
    rows = submission_rows(Predictions(tmp_path / "with"), rule)
    assert [text == "-1" for text in rows.values()] == [True, True, False, False]
    with pytest.raises(InputError, match="classification head"):
        submission_rows(Predictions(tmp_path / "without"), rule)


def test_repeated_ids_are_written_on_request(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").write_text("ImageId,EncodedPixels\nc,1 2\na,-1\nc,5 6\n")
    order = sample_order(tmp_path / "sample.csv", keep_repeats=True)
    write_submission(tmp_path / "submission.csv", ROWS, order)
    assert (tmp_path / "submission.csv").read_text().splitlines()[1:] == ["c,0 1 2 3", "a,-1", "c,0 1 2 3"]


def test_another_share_of_positive_films_is_reported() -> None:
    rows = {"a": "-1", "b": "-1", "c": "-1", "d": "3 4"}
    assert drift_warning(rows, 0.27) is None and drift_warning(rows, 0.23) is None
    for expected in (0.29, 0.21):
        warning = drift_warning(rows, expected)
        assert warning is not None and warning.startswith(
            f"25.0% of the test films are called positive, {expected:.1%}"
        )


def test_share_of_called_films_is_that_of_the_rows(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", noise=40, specks=0.003)
    for rule in (Rule(Triplet(0.5, 30, 0.3)), Rule(Triplet(0.5, 0, 0.5), smallest_part=10)):
        share = called_share(predictions, rule)
        rows = submission_rows(predictions, rule, threads=1)
        again = submission_rows(predictions, rule, threads=3)
        assert list(again.items()) == list(rows.items())
        texts = rows.values()
        assert share == sum(text != "-1" for text in texts) / 12
    assert drift_warning({"a": "3 4"}, None) is None


@pytest.mark.parametrize("image_id", ["=1+1", "@x", "+a", "-a", "x;=1"])
def test_id_that_a_spreadsheet_runs_is_refused_as_it_cannot_be_changed(tmp_path: Path, image_id: str) -> None:
    with pytest.raises(InputError, match=r"submission\.csv is not written: a spreadsheet would run the image id"):
        write_submission(tmp_path / "submission.csv", {"a": "-1", image_id: "-1"}, None)
    assert not (tmp_path / "submission.csv").exists()


def test_two_films_of_one_id_are_refused(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp", image_id="same")
    with pytest.raises(InputError, match="two films have the image id same"):
        submission_rows(predictions, Rule(Triplet(0.5, 0, 0.5)))


def test_sample_submission_without_an_end_is_refused(tmp_path: Path) -> None:
    (tmp_path / "sample.csv").symlink_to("/dev/zero")
    with pytest.raises(InputError, match=r"sample\.csv: is a pipe, a socket or a device"):
        sample_order(tmp_path / "sample.csv")
