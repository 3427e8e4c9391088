"""Columns of a user's CSV file in the order of the dataset, and files that are no such table."""

from pathlib import Path

import numpy as np
import pytest

from pneumo_dist.report.columns import read_columns, subgroup_columns
from shards.dataset.table import Shards
from shards.errors import InputError

IDS = [f"film{number}" for number in range(30)]


def write(path: Path, lines: list[str], encoding: str = "utf-8") -> Path:
    path.write_text("\n".join(lines) + "\n", encoding)
    return path


def test_values_are_in_the_order_of_the_films(tmp_path: Path) -> None:
    order = np.random.default_rng(0).permutation(30).tolist()
    rows = [f'{number / 4},film{number}, "site {number % 2}", {number % 3},{20 + number}' for number in order[:25]]
    rows.append('7,elsewhere,"a, b",1,80')
    path = write(tmp_path / "sites.csv", ["dose,image_id,site,code,age", *rows], "utf-8-sig")
    found = read_columns(path, IDS)
    assert list(found) == ["dose", "site", "code", "age"]
    known = set(order[:25])
    assert [None if np.isnan(each) else each for each in found["dose"]] == [
        n / 4 if n in known else None for n in range(30)
    ]
    assert found["site"].tolist() == [f'"site {n % 2}"' if n in known else "" for n in range(30)]
    assert found["code"].tolist() == [str(n % 3) if n in known else "" for n in range(30)], "codes are no quantities"
    assert found["age"].dtype.kind == "f" and np.isnan(found["age"]).sum() == 5


@pytest.mark.parametrize("name", ["image_id", "ImageId", "id"])
def test_the_column_of_ids_may_have_three_names(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "sites.csv", [f"site,{name}", "A,film3"])
    assert read_columns(path, IDS)["site"][3] == "A"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["site,scanner", "A,B"], "has no column image_id"),
        (["image_id,site,site", "film1,A,B"], "two columns have one name"),
        (["image_id,", "film1,A"], "or a column has none"),
        (["image_id,site", "film1,A,B"], "row 2 has 3 values for 2 columns"),
        (["image_id,site", "film1,A", "film1,B"], "row 3 has the image id of an earlier row"),
        (["image_id,site", "other,A"], "has no film of the dataset"),
        (["image_id,site"], "has no rows below its header"),
        (["image_id,site", 'film1,"A'], "is no CSV file in UTF-8"),
    ],
)
def test_a_file_that_is_no_table_of_films_is_named(tmp_path: Path, lines: list[str], message: str) -> None:
    path = write(tmp_path / "sites.csv", lines)
    with pytest.raises(InputError, match=rf"--table {path}: .*{message}"):
        read_columns(path, IDS)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.csv: cannot be read \(No such file or directory\); give a CSV file"):
        read_columns(tmp_path / "none.csv", IDS)
    (tmp_path / "latin.csv").write_bytes("image_id,site\nfilm1,Köln\n".encode("latin-1"))
    with pytest.raises(InputError, match="is no CSV file in UTF-8"):
        read_columns(tmp_path / "latin.csv", IDS)


def test_columns_of_both_sources_are_joined(films: Shards, tmp_path: Path) -> None:
    ids = films.column("image_id").tolist()
    path = write(tmp_path / "sites.csv", ["image_id,site", *(f"{each},A" for each in ids)])
    found = subgroup_columns(films, ["sex", "view"], path)
    assert list(found) == ["sex", "view", "site"] and set(found["site"]) == {"A"}
    assert found["view"].tolist() == films.column("view").tolist()
    with pytest.raises(InputError, match=r"column site is also a column of --by|--by site: .* no such column"):
        subgroup_columns(films, ["site"], path)
    path = write(tmp_path / "views.csv", ["image_id,view", f"{ids[0]},A"])
    with pytest.raises(InputError, match="column view is also a column of --by; rename one of them"):
        subgroup_columns(films, ["view"], path)
