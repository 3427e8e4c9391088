"""CSV files hold no cell that a spreadsheet runs."""

import csv
import io

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shards.spreadsheet import csv_text, inert, is_formula

FORMULAS = (
    *("=1+1", "+1+cmd", "@SUM(1)", "-2+3", "-a", "\t=1", " =1", "＝1", "=cmd|' /C calc'!A0", "x;=1", "x; @y"),
    *("x\n=HYPERLINK(1)", "－1+a"),
)


@pytest.mark.parametrize("text", FORMULAS)
def test_formulas_become_text(text: str) -> None:
    assert is_formula(text)
    (row,) = csv.reader(io.StringIO(csv_text([[text, 5]]), newline=""))
    assert not is_formula(row[0]) and row[0].replace("'", "") == text.replace("'", "") and row[1] == "5"


@pytest.mark.parametrize("text", ["", "-1", "-1.5", "1.2.276", "a-b", "film=1", "3 4 5 6", "x;y", "ID_0011fe81e"])
def test_other_texts_are_unchanged(text: str) -> None:
    assert not is_formula(text) and inert(text) == text


@given(st.text())
def test_no_text_is_run_and_a_second_time_changes_nothing(text: str) -> None:
    assert not is_formula(inert(text)) and inert(inert(text)) == inert(text)


def test_a_carriage_return_ends_no_row() -> None:
    assert csv_text([["a\r=1", "b"]]) == "a =1,b\n"


def test_numbers_and_missing_values_are_written_as_they_are() -> None:
    assert csv_text([["a", None, -1.5, True]]) == "a,,-1.5,True\n"
