"""Run-length strings against the competition's definition, pixel by pixel."""

from collections.abc import Callable

import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from shards.dataset import rle
from shards.errors import InputError

Mask = npt.NDArray[np.uint8]

masks = hnp.arrays(np.uint8, hnp.array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.integers(0, 1))
quick = settings(max_examples=200, deadline=None)


@quick
@given(mask=masks)
def test_encode_gives_the_naive_encoders_string(mask: Mask, naive_encode: Callable[[Mask], str]) -> None:
    assert rle.encode(mask) == naive_encode(mask)


@quick
@given(mask=masks)
def test_decode_gives_the_naive_decoders_mask(
    mask: Mask, naive_encode: Callable[[Mask], str], naive_decode: Callable[[list[str], int, int], Mask]
) -> None:
    text = naive_encode(mask)
    decoded = rle.decode(text, *mask.shape)
    assert decoded.dtype == np.uint8
    np.testing.assert_array_equal(decoded, naive_decode([text], *mask.shape))
    np.testing.assert_array_equal(decoded, mask)


@quick
@given(mask=masks, value=st.integers(1, 255))
def test_any_pixel_other_than_zero_is_set(mask: Mask, value: int) -> None:
    np.testing.assert_array_equal(rle.decode(rle.encode(mask * np.uint8(value)), *mask.shape), mask)


@quick
@given(pair=st.tuples(*[hnp.arrays(np.uint8, (5, 7), elements=st.integers(0, 1))] * 2))
def test_a_union_is_the_or_of_its_rows(pair: tuple[Mask, Mask]) -> None:
    union = rle.decode_union([rle.encode(mask) for mask in pair], 5, 7)
    np.testing.assert_array_equal(union, pair[0] | pair[1])


@pytest.mark.parametrize(
    ("pixels", "text"),
    [
        ([(2, 3)], "11 1"),
        ([(0, 0)], "0 1"),
        ([(1, 0), (2, 0), (0, 1), (1, 1)], "1 4"),
        ([(y, x) for x in range(4) for y in range(3)], "0 12"),
        ([(0, 0), (2, 0), (2, 3)], "0 1 1 1 8 1"),
        ([], "-1"),
    ],
    ids=["last pixel", "first pixel", "column crossing", "full", "three runs", "empty"],
)
def test_known_masks_have_known_strings(pixels: list[tuple[int, int]], text: str) -> None:
    mask = np.zeros((3, 4), np.uint8)
    for place in pixels:
        mask[place] = 1
    assert rle.encode(mask) == text
    np.testing.assert_array_equal(rle.decode(text, 3, 4), mask)


def test_the_skip_is_counted_from_the_end_of_the_run_before() -> None:
    assert rle.parse(" 2 3 4 1 ").tolist() == [[2, 5], [9, 10]]


def test_an_empty_mask_has_no_runs() -> None:
    runs = rle.parse("-1")
    assert runs.shape == (0, 2) and runs.dtype == np.int64


def test_adjacent_runs_are_decoded_and_written_as_one() -> None:
    assert rle.encode(rle.decode("1 2 0 3", 4, 4)) == "1 5"


def test_a_transposed_view_is_encoded_by_its_own_columns(naive_encode: Callable[[Mask], str]) -> None:
    mask = np.arange(12, dtype=np.uint8).reshape(3, 4) % 3
    assert rle.encode(mask.T) == naive_encode(mask.T)
    assert rle.encode(mask.T) != rle.encode(mask)


@pytest.mark.parametrize(
    ("text", "part"),
    [
        ("1 2 3", "odd"),
        ("-2 3", "negative skip"),
        ("1 2 -3 2", r"negative skip \(-3\)"),
        ("1 0", "below 1"),
        ("1 -4", "below 1"),
        ("1 2 3 0", r"below 1 \(0\)"),
        ("1 two", "'two'"),
        ("1.5 2", "'1.5'"),
        ("1 1_000", "'1_000'"),
        ("99999999999999999999 1", "99999999999999999999"),
        (" ".join(["900000000000000000"] * 6), "past any image"),
        ("", "empty"),
        ("  ", "empty"),
    ],
)
def test_a_malformed_string_is_refused(text: str, part: str) -> None:
    with pytest.raises(InputError, match=part):
        rle.parse(text)


@pytest.mark.parametrize("text", ["11 2", "12 1", "0 13", "0 1 11 1", "4000000000 1"])
def test_a_run_past_the_last_pixel_is_refused(text: str) -> None:
    with pytest.raises(InputError, match="3x4"):
        rle.decode(text, 3, 4)


def test_a_mask_of_three_dimensions_is_refused() -> None:
    with pytest.raises(InputError, match="two dimensions"):
        rle.encode(np.zeros((2, 2, 1), np.uint8))
