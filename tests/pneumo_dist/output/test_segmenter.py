"""The Segmenter: one film of any kind in memory, from any thread, and many files."""

import copy
import dataclasses
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from film_files import film_dataset, noise, write_film
from tiny_runs import MIXED, Trained, direct

import pneumo_dist
from pneumo_dist import Found, Segmenter
from pneumo_dist.data.normalise import single_batch
from pneumo_dist.output.segmenter import SegmentedFile
from pneumo_dist.predict.bundle import write_bundle
from pneumo_dist.predict.ensemble import Ensemble, shares
from pneumo_dist.predict.new_films import NewFilm, RefusedFilm, find_films
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.scoring.triplet import Triplet
from shards.build.images import read_image_film
from shards.dataset.grid import to_square
from shards.dicom.film import FilmRules, read_film
from shards.errors import InputError, RejectedFilm
from shards.phantom.dataset import synthesize

RULE = Rule(Triplet(0.5, 9, 0.45))


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    made = synthesize(tmp_path_factory.mktemp("films"), images=6, size=96, positive_rate=0.5, seed=8)
    return sorted(made.dicom_dir.rglob("*.dcm"))


@pytest.fixture(scope="module")
def mixed(trained: Trained) -> Ensemble:
    """Networks of three inputs, some with a classification head."""
    return trained.ensemble(members=MIXED, image_size=64)


@pytest.fixture(scope="module")
def segmenter(mixed: Ensemble, films: Sequence[Path], tmp_path_factory: pytest.TempPathFactory) -> Segmenter:
    path = tmp_path_factory.mktemp("bundle") / "mixed.bundle"
    unsure = Segmenter(mixed, RULE, Ranks.alone())
    # The values of a tiny network are close together. At their median, a mask has edges.
    middle = float(np.median(unsure._predicted(unsure._read(films[0])).p8)) / 255
    write_bundle(path, mixed, Rule(Triplet(middle, 9, middle)), None)
    return Segmenter.load(str(path), cpu=True)


def same(one: Found, other: Found) -> bool:
    names = [field.name for field in dataclasses.fields(Found) if field.name not in ("mask", "area", "warnings")]
    return np.array_equal(one.mask, other.mask) and all(getattr(one, name) == getattr(other, name) for name in names)


def test_the_package_is_light_until_the_segmenter_is_used() -> None:
    code = (
        "import sys, pneumo_dist; heavy = {'torch', 'numpy', 'cv2', 'pydicom', 'highdicom'}; "
        "assert not heavy & sys.modules.keys(); from pneumo_dist import Segmenter; assert heavy - {'highdicom'} <= "
        "sys.modules.keys(); print(Segmenter.__name__)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("Segmenter\n", "")
    assert pneumo_dist.__version__
    with pytest.raises(AttributeError, match="no attribute 'Segmentor'"):
        getattr(pneumo_dist, "Segmentor")  # noqa: B009  # mypy would refuse the attribute


def test_path_data_set_and_array_of_one_film_find_the_same(segmenter: Segmenter, films: Sequence[Path]) -> None:
    areas = []
    for path in films[:3]:
        found, dataset = segmenter(path), pydicom.dcmread(path)
        assert found.mask.shape == (96, 96) and found.mask.dtype == np.uint8
        assert 0 <= found.score <= 1 and found.class_probability is not None
        assert found.called == bool(found.mask.any()) == (found.area_px > 0)
        assert same(segmenter(str(path)), found) and same(segmenter(dataset), found)
        array = segmenter(read_film(path).image)
        assert same(array, found) and array.area_mm2 is None and array.area.spacing_mm is None
        areas.append(found.area_px)
    assert any(0 < area < 96 * 96 for area in areas), "a mask without edges tests little"


@pytest.mark.parametrize("shape", [(96, 96), (130, 71)])
def test_the_map_is_that_of_plain_forward_passes(
    trained: Trained, films: Sequence[Path], shape: tuple[int, int]
) -> None:
    ensemble = trained.ensemble(tta={"hflip": False})
    segmenter = Segmenter(ensemble, RULE, Ranks.alone())
    image = np.asarray(cv2.resize(read_film(films[0]).image, shape[::-1]), np.uint8)
    found = segmenter(image)
    batch = single_batch(to_square(image, 64), ensemble.input_spec(ensemble.inputs[0], Ranks.alone()))
    maps = [direct(network, batch.images)[0] for network in ensemble.networks]
    mean = sum(share * each for share, each in zip(shares(ensemble.networks), maps, strict=True))
    predicted = segmenter._predicted(segmenter._read(image))
    assert (predicted.grid.height, predicted.grid.width) == shape
    assert np.abs(predicted.p8 - np.asarray(mean) * 255).max() <= 0.501
    np.testing.assert_array_equal(found.mask, apply_rule(label_map(predicted.p8, predicted.grid), RULE))


def test_files_find_what_single_calls_find(segmenter: Segmenter, films: Sequence[Path], tmp_path: Path) -> None:
    picture, bad = tmp_path / "picture.png", tmp_path / "bad.png"
    assert cv2.imwrite(str(picture), noise(90, 70))
    bad.write_bytes(b"")
    sources = [*find_films(films), *find_films([picture, bad])]
    read, predicted = list[int](), list[int]()
    results = list(segmenter.files(sources, tmp_path / "scratch", on_read=read.append, on_predicted=predicted.append))
    assert results[0] == RefusedFilm(bad, "the image file is empty; export it again")
    assert sum(read) == len(sources) and sum(predicted) == len(sources) - 1
    found = {each.source.path: each for each in results if isinstance(each, SegmentedFile)}
    assert found.keys() == {*films, picture}
    for path, each in found.items():
        single = segmenter(path)
        np.testing.assert_array_equal(each.film.image, segmenter._read(path).image)
        assert abs(single.score - each.found.score) <= 1.01 / 255
        # A level more or less moves an edge by a pixel at most.
        edge = cv2.morphologyEx(each.found.mask, cv2.MORPH_GRADIENT, np.ones((3, 3), np.uint8))
        assert not ((single.mask != each.found.mask) & (edge == 0)).any()
        assert (single.area.missing_because, single.warnings) == (each.found.area.missing_because, each.found.warnings)


def test_a_film_that_vanishes_meanwhile_is_refused(segmenter: Segmenter, tmp_path: Path) -> None:
    kept, gone = (write_film(tmp_path / name, noise(64, 64, seed=number)) for number, name in enumerate(("a", "b")))
    results = segmenter.files(
        find_films([kept, gone]), tmp_path / "scratch", on_predicted=lambda count: gone.unlink(missing_ok=True)
    )
    kinds = {each.source.path if isinstance(each, SegmentedFile) else each.path: type(each) for each in results}
    assert kinds == {kept: SegmentedFile, gone: RefusedFilm}


def test_there_is_nothing_to_find_if_all_films_are_refused(segmenter: Segmenter, tmp_path: Path) -> None:
    lateral = write_film(tmp_path / "lateral.dcm", noise(64, 64), ViewPosition="LL")
    (refused,) = segmenter.files([NewFilm(lateral, "lateral")], tmp_path / "scratch")
    assert isinstance(refused, RefusedFilm) and refused.path == lateral


def test_threads_find_what_one_thread_finds(segmenter: Segmenter, films: Sequence[Path], tmp_path: Path) -> None:
    odd = [write_film(tmp_path / f"{n}.dcm", noise(70, 64, seed=n), NumberOfFrames="0") for n in range(3)]
    plain = [write_film(tmp_path / f"plain{n}.dcm", noise(64, 70, seed=n)) for n in range(3)]
    inputs: list[Any] = [*films, *(pydicom.dcmread(path) for path in films), *(noise(80, 70, seed=n) for n in range(3))]
    inputs += [path for pair in zip(odd, plain, strict=True) for path in pair]
    loaded = Segmenter(segmenter.ensemble, segmenter.rule, Ranks.alone())
    barrier = threading.Barrier(4)

    def work(number: int) -> list[Any]:
        barrier.wait()
        return [(index, _outcome(loaded, inputs[index])) for index in range(number % 2, len(inputs), 2)]

    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(work, range(4)))
    expected = [_outcome(segmenter, film) for film in inputs]
    warned = [bool(each.warnings) for each in expected[-6:] if isinstance(each, Found)]
    assert warned == [True, False] * 3
    for part in together:
        for index, found in part:
            other = expected[index]
            if isinstance(found, Found):
                assert isinstance(other, Found) and same(found, other) and found.warnings == other.warnings
            else:
                assert found == other


def _outcome(segmenter: Segmenter, film: Any) -> Found | str:
    try:
        return segmenter(film)
    except RejectedFilm as reason:
        return str(reason)


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_an_array_is_taken_as_a_png_of_its_pixels(
    segmenter: Segmenter, tmp_path: Path, channels: int, depth: type[np.unsignedinteger]
) -> None:
    scale = depth(np.iinfo(depth).max // 255)
    colours = [noise(80, 70, seed=seed).astype(depth) * scale for seed in range(3)]
    opaque = np.full((80, 70), np.iinfo(depth).max, depth)
    array = {
        0: colours[0],
        1: colours[0][..., None],
        3: cv2.merge(colours),
        4: cv2.merge([*colours, opaque]),
    }[channels]
    in_file = (
        array if channels < 3 else cv2.cvtColor(array, cv2.COLOR_RGB2BGR if channels == 3 else cv2.COLOR_RGBA2BGRA)
    )
    assert cv2.imwrite(str(tmp_path / "film.png"), in_file)
    before = array.copy()
    found, expected = segmenter(array), segmenter(tmp_path / "film.png")
    assert same(found, expected) and found.warnings == expected.warnings
    assert (len(found.warnings) == 1) == (channels >= 3)
    np.testing.assert_array_equal(array, before)
    np.testing.assert_array_equal(
        segmenter._read(array).image, read_image_film(tmp_path / "film.png", 10**6)[0], strict=True
    )


@pytest.mark.parametrize(
    ("film", "message"),
    [
        (Path("nowhere.dcm"), "nowhere.dcm: refused, unreadable: No such file"),
        ("nowhere.png", "nowhere.png: refused, its image file cannot be read"),
        (np.zeros((64, 64)), "the array: refused, its values are float64; give grey values as uint8 or uint16"),
        (np.zeros((64, 64), bool), "the array: refused, its values are bool"),
        (np.zeros((64,), np.uint8), r"the array: refused, its shape is \(64,\); give"),
        (np.zeros((2, 64, 64), np.uint8), r"its shape is \(2, 64, 64\)"),
        (np.zeros((0, 64), np.uint8), r"its shape is \(0, 64\)"),
        (np.full((64, 64), 7, np.uint8), "the array: refused, all its pixels have one value"),
        (noise(200, 200), "the array: refused, its 40000 values are more than 30000"),
        (film_dataset(noise(64, 64), SOPInstanceUID="1.2.3", PixelData=None), "1.2.3: refused, it has no pixel data"),
        (film_dataset(noise(64, 64), SOPInstanceUID=None, ViewPosition="LL"), "the data set: refused, its view is LL"),
    ],
)
def test_a_film_that_cannot_be_used_is_named(segmenter: Segmenter, film: Any, message: str) -> None:
    strict = Segmenter(segmenter.ensemble, segmenter.rule, Ranks.alone(), FilmRules(max_pixels=30_000))
    with pytest.raises(RejectedFilm, match=message):
        strict(film)


def test_another_type_is_an_input_error(segmenter: Segmenter) -> None:
    with pytest.raises(InputError, match="a film of type list; give a path, a pydicom data set or a numpy array"):
        segmenter([[1, 2]])  # type: ignore[arg-type]


def test_the_film_rules_admit_more_films(segmenter: Segmenter) -> None:
    lateral = film_dataset(noise(64, 64), ViewPosition="LL")
    rules = FilmRules(any_film=True)
    assert Segmenter(segmenter.ensemble, RULE, Ranks.alone(), rules)(lateral).mask.shape == (64, 64)


def test_a_data_set_made_in_python_needs_no_transfer_syntax_and_is_not_changed(segmenter: Segmenter) -> None:
    film = film_dataset(noise(70, 64), PixelSpacing=[5, 5])
    whole = segmenter(film)
    assert whole.area_mm2 == whole.area_px * 25
    del film.file_meta
    before = copy.deepcopy(film)
    assert same(segmenter(film), whole)
    assert film == before and not hasattr(film, "file_meta")


def test_a_bundle_that_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"none\.bundle: no such bundle"):
        Segmenter.load(tmp_path / "none.bundle")
