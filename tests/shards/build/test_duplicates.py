"""Near-duplicates: the hash against its definition and real changes, pairs and groups against naive loops."""

from collections.abc import Callable
from itertools import combinations, pairwise
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from images import decode

from shards.build.duplicates import BITS, FEWEST_BITS, NEAR, join_groups, near_duplicates, perceptual_hash
from shards.drawing import encode_image
from shards.phantom.dataset import render_film

Image = npt.NDArray[np.uint8]


def between(first: bytes, second: bytes) -> int:
    return (int.from_bytes(first) ^ int.from_bytes(second)).bit_count()


def naive_pairs(hashes: list[bytes], distance: int) -> list[tuple[int, int]]:
    ones = [int.from_bytes(content).bit_count() for content in hashes]
    shown = [FEWEST_BITS <= count <= BITS - FEWEST_BITS for count in ones]
    everything = combinations(range(len(hashes)), 2)
    return [(i, j) for i, j in everything if shown[i] and shown[j] and between(hashes[i], hashes[j]) <= distance]


def naive_groups(groups: list[str], pairs: list[tuple[int, int]]) -> list[str]:
    """Pass the smaller name on until nothing changes."""
    name = {group: group for group in groups}
    changed = True
    while changed:
        changed = False
        for i, j in pairs:
            smaller = min(name[groups[i]], name[groups[j]])
            for group in (groups[i], groups[j]):
                changed |= name[group] != smaller
                name[group] = smaller
    return [name[group] for group in groups]


def flipped(content: bytes, bits: set[int]) -> bytes:
    return (int.from_bytes(content) ^ sum(1 << bit for bit in bits)).to_bytes(BITS // 8)


def jpeg(image: Image, quality: int) -> Image:
    return decode(encode_image(image, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, quality)))


def scaled(image: Image, factor: float) -> Image:
    return np.asarray(cv2.resize(image, None, fx=factor, fy=factor, interpolation=cv2.INTER_AREA), np.uint8)


def regrey(image: Image, contrast: float, brightness: float) -> Image:
    return np.rint(np.clip(image.astype(float) * contrast + brightness, 0, 255)).astype(np.uint8)


CHANGES: dict[str, Callable[[Image], Image]] = {
    "JPEG 95": lambda image: jpeg(image, 95),
    "JPEG 50": lambda image: jpeg(image, 50),
    "half the size": lambda image: scaled(image, 0.5),
    "twice the size": lambda image: scaled(image, 2.0),
    "brighter": lambda image: regrey(image, 1.0, 8.0),
    "darker, flatter": lambda image: regrey(image, 0.8, 5.0),
}


@pytest.fixture(scope="module")
def films() -> list[Image]:
    return [render_film(np.random.default_rng([7, number]), 256, number % 2 == 0).image for number in range(16)]


@pytest.mark.parametrize("block", [8, 32])
def test_a_bit_is_set_where_a_cell_is_clearly_brighter_than_its_left_neighbour(block: int) -> None:
    rng = np.random.default_rng(block)
    cells = rng.integers(0, 256, (16, 17), np.uint8)
    cells[3, 1:] = cells[3, 0] // 2 + np.arange(1, 17)  # a step of one grey level is not an edge at such contrast
    threshold = max(0.5, 0.05 * float(cells.astype(np.float64).std()))
    expected = 0
    for row in cells.tolist():
        for left, right in pairwise(row):
            expected = expected << 1 | (right - left > threshold)
    image = np.kron(cells, np.ones((block, block), np.uint8))
    assert perceptual_hash(image) == expected.to_bytes(32)


@pytest.mark.parametrize("change", CHANGES)
def test_a_changed_copy_stays_within_the_default_distance(films: list[Image], change: str) -> None:
    copies = [CHANGES[change](film) for film in films]
    assert all(
        (copy.shape, copy.tobytes()) != (film.shape, film.tobytes()) for copy, film in zip(copies, films, strict=True)
    )
    far = [between(perceptual_hash(film), perceptual_hash(copy)) for film, copy in zip(films, copies, strict=True)]
    assert max(far) <= NEAR, far


def test_distinct_films_are_not_near(films: list[Image]) -> None:
    hashes = [perceptual_hash(film) for film in films]
    assert near_duplicates(hashes, NEAR + 5) == []
    assert near_duplicates([*hashes, hashes[4]]) == [(4, 16)]


def test_real_films_are_near_their_copies_only(real_data: Path) -> None:
    paths = sorted((real_data / "siim_sample").glob("*.dcm"))
    films = [np.asarray(pydicom.dcmread(path).pixel_array, np.uint8) for path in paths]
    copies = [jpeg(scaled(film, 0.5), 80) for film in films]
    hashes = [perceptual_hash(image) for image in (*films, *copies)]
    assert near_duplicates(hashes) == [(number, number + len(films)) for number in range(len(films))]
    assert near_duplicates(hashes[: len(films)], 30) == []


@pytest.mark.parametrize("shape", [(16, 17), (5, 3), (1, 1), (90, 1500), (1024, 1024)])
def test_images_that_show_no_film_are_left_alone(shape: tuple[int, int]) -> None:
    ramp = np.broadcast_to(np.linspace(0, 255, shape[1]).astype(np.uint8), shape)
    marked = np.zeros(shape, np.uint8)
    marked[: shape[0] // 8, -(shape[1] // 8) :] = 255
    noise = np.random.default_rng(0).integers(0, 2, shape, np.uint8)
    empty = [np.full(shape, grey, np.uint8) for grey in (0, 0, 128, 255)]
    large = [noise, noise] if min(shape) > 500 else []  # averages out only in cells of many pixels
    ramps = [ramp, ramp] if shape[1] > 16 else []
    assert near_duplicates([perceptual_hash(image) for image in (*empty, *ramps, marked, marked, *large)]) == []


@st.composite
def hash_families(draw: st.DrawFn) -> tuple[list[bytes], int]:
    """Hashes that differ in about `distance` bits from a few bases, some with hardly any bit set or unset."""
    distance = draw(st.sampled_from([0, 1, 2, 3, 5, 7, 12, 20]))
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    shares = draw(st.lists(st.sampled_from([0.0, 0.12, 0.4, 0.5, 0.88, 1.0]), min_size=1, max_size=4))
    bases = [np.packbits(rng.random(BITS) < share).tobytes() for share in shares]
    members = draw(st.lists(st.tuples(st.integers(0, len(bases) - 1), st.integers(0, distance + 1)), max_size=25))
    return [flipped(bases[base], set(rng.choice(BITS, count, False).tolist())) for base, count in members], distance


@settings(max_examples=150, deadline=None)
@given(hash_families())
@example(([], 7))
@example(([b"\x0f" * 32], 7))
def test_pairs_equal_those_of_all_comparisons(family: tuple[list[bytes], int]) -> None:
    hashes, distance = family
    assert near_duplicates(hashes, distance) == naive_pairs(hashes, distance)


@pytest.mark.parametrize("distance", [4, 7])
def test_no_pair_at_exactly_the_distance_is_missed_among_many(distance: int) -> None:
    rng = np.random.default_rng(distance)
    firsts = [rng.bytes(32) for _ in range(5000)]
    near = [flipped(content, set(rng.choice(BITS, distance, False).tolist())) for content in firsts]
    far = [flipped(content, set(rng.choice(BITS, 2 * distance + 1, False).tolist())) for content in firsts]
    assert near_duplicates([*firsts, *near], distance) == [(number, number + 5000) for number in range(5000)]
    assert near_duplicates([*firsts, *far], distance) == []


def test_the_fewest_bits_that_show_a_film() -> None:
    for ones, shown in ((31, False), (32, True), (224, True), (225, False)):
        content = ((1 << ones) - 1).to_bytes(32)
        assert near_duplicates([content] * 3) == ([(0, 1), (0, 2), (1, 2)] if shown else []), ones


@pytest.mark.parametrize(("hashes", "distance"), [([b"\x0f" * 32], -1), ([b"\x0f" * 32], 64), ([b"\x0f" * 31], 7)])
def test_what_is_no_hash_or_distance_is_refused(hashes: list[bytes], distance: int) -> None:
    with pytest.raises(ValueError, match=r"distance -?\d+: give 0 to 63|has 32 bytes"):
        near_duplicates(hashes, distance)


@settings(max_examples=150, deadline=None)
@given(data=st.data(), groups=st.lists(st.sampled_from("hgfedcba"), min_size=1, max_size=20))
def test_groups_are_joined_as_by_a_naive_loop(data: st.DataObject, groups: list[str]) -> None:
    films = st.integers(0, len(groups) - 1)
    pairs = data.draw(st.lists(st.tuples(films, films), max_size=8))
    assert join_groups(groups, pairs) == naive_groups(groups, pairs)


def test_patients_are_joined_over_others_and_take_the_smallest_name() -> None:
    assert join_groups(["z", "y", "m", "y", "k", "a"], [(0, 1), (3, 4)]) == ["k", "k", "m", "k", "k", "a"]
    assert join_groups(["b", "a"], []) == ["b", "a"]
    assert join_groups([], []) == []
