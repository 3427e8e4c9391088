"""CSVs of folds and groups: columns by their names, published files as they are, and one line for what is wrong."""

from collections.abc import Callable
from pathlib import Path

import pytest

from shards.build.film_values import Films, read_folds, read_groups
from shards.build.folds import ALWAYS, HOLDOUT
from shards.dataset.keys import image_pseudonym
from shards.errors import InputError

FILMS = Films(frozenset({"1.2.3", "1.2.4", "1.2.5", "d.png"}))


def write(folder: Path, text: str) -> Path:
    path = folder / "f.csv"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "text",
    [
        "fname,fold,exist_labels\n1.2.3.png,0,0\n1.2.4.png,4,1\n1.2.5.png,stage_2,0\n9.9.png,1,0\n",
        "1.2.3,0\n1.2.4,4\n1.2.5,stage_2\n",
        "\ufeffImageId , Fold \r\n 1.2.3 , 0 \r\n1.2.4,4.0\r\n1.2.5,always_train\r\n",
        ",fold,image_id,sex\n0,0.0,1.2.3,M\n1,+4,1.2.4,F\n2,Stage 2,1.2.5,\n",
        "image_id,kfold\n1.2.3,fold0\n1.2.4,fold_4\n1.2.5,extra\n",
        "fold,film\n0,1.2.3.dcm\n4,1.2.4.dcm\nexternal,1.2.5.dcm\n",
        "image_id,group,split,fold\n1.2.3,g,train,0\n1.2.4,g,train,4\n1.2.5,h,always_train,\nd.png,h,test,\n",
        "key,image_id,fold\n1.2.4,1.2.3,0\n1.2.3,1.2.4,4\nx,1.2.5,stage_2\n",
    ],
)
def test_published_folds_are_read_as_they_are(tmp_path: Path, text: str) -> None:
    assert read_folds(write(tmp_path, text), FILMS) == {"1.2.3": 0, "1.2.4": 4, "1.2.5": ALWAYS}


def test_the_holdout_has_its_number_or_its_name(tmp_path: Path) -> None:
    text = "image_id,split,fold\n1.2.3,,-1\n1.2.4,holdout,\n1.2.5,,hold-out\nd.png,train,-1.0\n"
    assert set(read_folds(write(tmp_path, text), FILMS).values()) == {HOLDOUT}


def test_an_id_that_has_a_suffix_is_found_before_one_without_it(tmp_path: Path) -> None:
    films = Films(frozenset({"d.png", "d"}))
    assert read_folds(write(tmp_path, "d.png,1\nd,2\n"), films) == {"d.png": 1, "d": 2}


def test_blank_values_say_nothing(tmp_path: Path) -> None:
    assert read_folds(write(tmp_path, "image_id,fold\n1.2.3,\n1.2.4,1\n"), FILMS) == {"1.2.4": 1}
    assert read_groups(write(tmp_path, "image_id,group\n1.2.3,\n1.2.4,\n1.2.5,x\n"), FILMS) == {"1.2.5": "x"}


@pytest.mark.parametrize(
    "text",
    [
        "1.2.3,P1\n1.2.4,P 2\n",
        "image_id,patient_id\n1.2.3,P1\n1.2.4,P 2\n",
        "PatientID,age,fname\nP1,7,1.2.3.png\nP 2,8,1.2.4.png\n",
        "image_id,patient,group,fold\n1.2.3,x,P1,0\n1.2.4,x,P 2,1\n",
        "image,ward\n1.2.3,P1\n1.2.4,P 2\n",
    ],
)
def test_groups_are_found_by_the_columns_name(tmp_path: Path, text: str) -> None:
    assert read_groups(write(tmp_path, text), FILMS) == {"1.2.3": "P1", "1.2.4": "P 2"}


def test_a_word_beside_an_id_is_a_group_and_no_header(tmp_path: Path) -> None:
    assert read_groups(write(tmp_path, "1.2.3,case\n1.2.4,control\n"), FILMS) == {"1.2.3": "case", "1.2.4": "control"}


def test_films_are_known_by_what_a_pseudonym_replaced(tmp_path: Path) -> None:
    salt = b"a salt for the tests only"
    films = Films(frozenset({image_pseudonym("1.2.3", salt), image_pseudonym("1.2.4", salt)}), salt)
    second = image_pseudonym("1.2.4", salt)
    assert read_folds(write(tmp_path, f"1.2.3.png,1\n{second},2\n"), films) == {
        image_pseudonym("1.2.3", salt): 1,
        second: 2,
    }


@pytest.mark.parametrize(
    ("read", "text", "named"),
    [
        (read_folds, "1.2.3,-2\n", "line 1: 1.2.3 has fold -2; folds are numbered from 0 to 999, -1 is the holdout"),
        (read_folds, "1.2.3,1000\n", "line 1: 1.2.3 has fold 1000; folds are numbered"),
        (read_folds, "1.2.3,99999999999999999999\n", "line 1: 1.2.3 has fold '99999999999999999999'"),
        (read_folds, "image_id,fold\n1.2.3,0\n1.2.4,0.5\n", "line 3: 1.2.4 has fold '0.5'; give a whole number"),
        (read_folds, "1.2.3,val\n", "line 1: 1.2.3 has fold 'val'"),
        (read_folds, "1.2.3,O\n", "line 1: 1.2.3 has fold 'O'"),
        (
            read_folds,
            "image_id,fold\n1.2.3,0\n1.2.3,1\n",
            "line 3: 1.2.3 has fold 1 here and 0 in line 2; give it one",
        ),
        (read_folds, "1.2.3,0\n1.2.3.png,stage_2\n", "line 2: 1.2.3.png has fold always_train here and 0 in line 1"),
        (read_folds, "9.9,0\n9.9.dcm,1\n1.2.3,0\n", "line 2: 9.9.dcm has fold 1 here and 0 in line 1"),
        (read_groups, "1.2.3,x\n1.2.3,y\n", "line 2: 1.2.3 has group 'y' here and 'x' in line 1"),
        (read_groups, "1.2.3,1.2E+23\n", "line 1: a spreadsheet changed the group to 1.2E+23"),
        (read_groups, "1,2E+23,x\n", "line 1: a spreadsheet changed the image id"),
        (read_folds, "image_id,fold,Fold\n1.2.3,0,1\n", "two columns are called 'fold'; drop one"),
        (read_folds, "image_id,a,b\n1.2.3,0,1\n", "no column is called fold; it has 'image_id', 'a', 'b'"),
        (read_groups, "image_id,a,b\n1.2.3,0,1\n", "no column is called group; it has 'image_id', 'a', 'b'"),
        (read_folds, "x,y,fold\n1.2.3,0,1\n", "no column is called image_id; it has 'x', 'y', 'fold'"),
        (read_folds, "1.2.3,0,1\n", "line 1: image id and fold are expected ('1.2.3', '0', '1'); name the columns"),
        (read_folds, "image_id,fold\n1.2.3,0,1\n", "line 2: 3 cells instead of 2: '1.2.3', '0', '1'"),
        (read_folds, "image_id,fold\n1.2.3\n", "line 2: 1 cell instead of 2: '1.2.3'"),
        (read_folds, "1.2.3;0\n1.2.4;1\n", "its cells are separated by ';'; save it with commas"),
        (read_folds, "image_id,fold\n", "holds no film"),
        (read_folds, "", "holds no film"),
        (read_folds, "9.9,0\n", "contains no film of this dataset, first image id '9.9'"),
        (read_groups, "D.png,x\n", "line 1: no film is called D.png: the film is d.png; use the same case"),
    ],
)
def test_what_cannot_be_meant_is_named_by_file_and_line(
    tmp_path: Path, read: Callable[[Path, Films], object], text: str, named: str
) -> None:
    path = write(tmp_path, text)
    with pytest.raises(InputError) as error:
        read(path, FILMS)
    assert str(error.value).startswith(f"{path}")
    assert named in str(error.value)


def test_the_same_said_twice_is_said_once(tmp_path: Path) -> None:
    assert read_folds(write(tmp_path, "1.2.3,0\n1.2.3.png,0.0\n1.2.3,fold 0\n"), FILMS) == {"1.2.3": 0}
