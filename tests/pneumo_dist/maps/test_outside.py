"""Class probabilities from a CSV file in place of the networks'."""

from pathlib import Path

import pytest
from report_runs import store

from pneumo_dist.maps.outside import read_probabilities, with_outside
from pneumo_dist.maps.store import check_gate
from pneumo_dist.scoring.masks import Rule
from pneumo_dist.scoring.triplet import Triplet
from shards.dataset.table import Shards
from shards.errors import InputError

GATE = Rule(Triplet(0.5, 0, 0.5), gate=0.2)


def test_probabilities_replace_those_of_the_networks(films: Shards, tmp_path: Path) -> None:
    half = store(films, tmp_path / "exp", rows=range(6), with_classes=True)
    rest = store(films, tmp_path / "exp", "holdout", rows=range(6, 12))
    ids = [str(row["image_id"]) for each in (half, rest) for row in each.rows]
    lines = [f"{name},{number / 16}" for number, name in enumerate(ids)]
    path = tmp_path / "outside.csv"
    path.write_text("\n".join(["\ufeffimage_id, probability", *reversed(lines), ""]), encoding="utf-8")
    read = with_outside(path, [half, rest])
    found = [row["class_probability"] for each in read for row in each.rows]
    assert found == [number / 16 for number in range(12)]
    assert [each.outside for each in (half, *read)] == [False, True, True]
    assert half.rows[0]["class_probability"] != found[0] and rest.rows[0]["class_probability"] is None
    assert (read[0].p8(3) == half.p8(3)).all()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("image_id,probability\na,0.5\na,0.6\n", "line 3: a is there twice"),
        ("image_id,probability\na,1.5\n", "line 2: a has the probability '1.5'; give a number from 0 to 1"),
        ("image_id,probability\na,-0.1\n", "a has the probability '-0.1'"),
        ("image_id,probability\na,nan\n", "a has the probability 'nan'"),
        ("image_id,probability\na,inf\n", "a has the probability 'inf'"),
        ("image_id,probability\na,\n", "a has the probability ''"),
        ("image_id,probability\na\n", "line 2 does not have 2 cells"),
        ("image_id,probability\na,1,2\n", "line 2 does not have 2 cells"),
        ("image_id,p\na,1\n", "has other columns; give a CSV file with the columns image_id and probability"),
        ("image_id,probability,probability\na,1,1\n", "has other columns"),
        ("", "has other columns"),
        ('image_id,probability\n"a,0.5\n', "not a CSV file in UTF-8"),
    ],
)
def test_other_files_are_refused(tmp_path: Path, text: str, says: str) -> None:
    path = tmp_path / "outside.csv"
    path.write_text(text)
    with pytest.raises(InputError, match=f"--class-probabilities .*outside.csv: .*{says}"):
        read_probabilities(path)


def test_missing_and_binary_files_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"nowhere\.csv: unreadable"):
        read_probabilities(tmp_path / "nowhere.csv")
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x80")
    with pytest.raises(InputError, match="not a CSV file"):
        read_probabilities(tmp_path / "binary.csv")


def test_every_film_has_a_row_and_every_row_a_film(films: Shards, tmp_path: Path) -> None:
    predictions = store(films, tmp_path / "exp")
    path, ids = tmp_path / "outside.csv", [str(row["image_id"]) for row in predictions.rows]
    path.write_text("image_id,probability\n" + "".join(f"{name},0.5\n" for name in ids[:-2]))
    with pytest.raises(InputError, match=rf"has no row for {ids[-2]} \(2 films missing in all\)"):
        with_outside(path, [predictions])
    path.write_text("image_id,probability\n" + "".join(f"{name},0.5\n" for name in [*ids, "stranger"]))
    with pytest.raises(InputError, match=r"stranger is no film of .*predictions \(1 unknown ids in all\)"):
        with_outside(path, [predictions])


def test_a_rule_gets_the_class_probabilities_that_it_was_tuned_with(films: Shards, tmp_path: Path) -> None:
    own = store(films, tmp_path / "exp", with_classes=True)
    outside = own.with_class_probabilities([0.5] * len(own))
    for rule in (Rule(Triplet(0.5, 0, 0.5)), Rule(Triplet(0.5, 0, 0.5), outside=True)):
        check_gate(own, rule)
        check_gate(outside, rule)
    check_gate(own, GATE)
    check_gate(outside, Rule(GATE.triplet, gate=0.2, outside=True))
    with pytest.raises(InputError, match="tuned with the networks' own class probabilities"):
        check_gate(outside, GATE)
    with pytest.raises(InputError, match="tuned with class probabilities from outside; give those of these films"):
        check_gate(own, Rule(GATE.triplet, gate=0.2, outside=True))
