"""New films go through the ordinary build: it refuses the same films, and every row maps to its file."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from film_files import PATIENT_ID, noise, write_film
from images import decode

from pneumo_dist.predict.new_films import (
    NewFilm,
    NewFilmOptions,
    RefusedFilm,
    check_distinct,
    film_shards,
    find_films,
    row_films,
)
from shards.build.folders import DICOM, IMAGES
from shards.build.images import read_image_film
from shards.build.names import name_id
from shards.dataset.grid import to_square
from shards.dataset.table import Shards
from shards.dicom.film import FilmRules, read_film
from shards.errors import InputError, RejectedFilm


def named(paths: Sequence[Path]) -> list[NewFilm]:
    return [NewFilm(path, name_id(path)) for path in paths]


def built(
    paths: Sequence[Path], folder: Path, options: NewFilmOptions, salt: bytes | None = None
) -> tuple[Shards | None, list[RefusedFilm]]:
    """Build films of these files."""
    return film_shards(named(paths), folder, options, salt=salt)


def row_paths(shards: Shards, paths: Sequence[Path]) -> list[Path]:
    return [film.path for film in row_films(shards, named(paths))]


def test_films_become_test_films_and_rows_map_to_their_files(tmp_path: Path) -> None:
    # Their key order differs from the given order, and dots in a name are not a suffix.
    names = ["z.dcm", "1.2.840.77", "a b.DCM", "m.dicom"]
    paths = [
        write_film(tmp_path / str(number) / name, noise(70 + number, 64, seed=number))
        for number, name in enumerate(names)
    ]
    shards, refused = built(paths, tmp_path / "scratch", NewFilmOptions(64))
    assert shards is not None and refused == []
    assert set(shards.column("split")) == {"test"} and len(shards) == 4
    row_files = row_paths(shards, paths)
    assert sorted(row_files) == sorted(paths)
    for row, path in enumerate(row_files):
        image = read_film(path).image
        np.testing.assert_array_equal(decode(shards.read(row, "image")), to_square(image, 64))
        assert (shards.grid(row).height, shards.grid(row).width) == image.shape


def test_films_that_the_build_refuses_are_refused_with_its_reason(tmp_path: Path) -> None:
    good = write_film(tmp_path / "good.dcm", noise(64, 64))
    lateral = write_film(tmp_path / "lateral.dcm", noise(64, 64, seed=1), ViewPosition="LL")
    flat = write_film(tmp_path / "flat.dcm", np.full((64, 64), 7, np.uint8))
    burned = write_film(tmp_path / "burned.dcm", noise(64, 64, seed=2), BurnedInAnnotation="YES")
    broken = tmp_path / "broken.dcm"
    broken.write_bytes(good.read_bytes()[:200])
    bad = [lateral, flat, burned, broken]
    shards, refused = built([lateral, good, flat, burned, broken], tmp_path / "scratch", NewFilmOptions(32))
    assert shards is not None and row_paths(shards, [good]) == [good]
    assert sorted(film.path for film in refused) == sorted(bad)
    for film in refused:
        with pytest.raises(RejectedFilm) as reason:
            read_film(film.path)
        assert film.reason == str(reason.value)


def test_rules_accept_the_films_that_they_name(tmp_path: Path) -> None:
    lateral = write_film(tmp_path / "lateral.dcm", noise(64, 64), ViewPosition="LL")
    burned = write_film(tmp_path / "burned.dcm", noise(64, 64, seed=1), BurnedInAnnotation="YES")
    shards, refused = built([lateral, burned], tmp_path / "any", NewFilmOptions(32, FilmRules(any_film=True)))
    assert shards is not None and row_paths(shards, [lateral, burned]) == [lateral]
    assert [film.path for film in refused] == [burned]
    shards, refused = built([lateral, burned], tmp_path / "burned", NewFilmOptions(32, FilmRules(allow_burned_in=True)))
    assert shards is not None and row_paths(shards, [lateral, burned]) == [burned]


def test_there_is_no_dataset_if_all_films_are_refused(tmp_path: Path) -> None:
    lateral = write_film(tmp_path / "lateral.dcm", noise(64, 64), ViewPosition="LL")
    shards, refused = built([lateral], tmp_path / "scratch", NewFilmOptions(32))
    assert shards is None and [film.path for film in refused] == [lateral]


@pytest.mark.parametrize("name", ["film.png", "film.PNG", "film.jpg", "film.jpeg"])
@pytest.mark.parametrize("shape", [(70, 64), (70, 64, 3)])
def test_pictures_are_read_as_the_build_reads_them(tmp_path: Path, name: str, shape: tuple[int, ...]) -> None:
    picture = tmp_path / name
    pixels = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    assert cv2.imwrite(str(picture), pixels)
    shards, refused = built([picture], tmp_path / "scratch", NewFilmOptions(64))
    assert shards is not None and refused == [] and row_paths(shards, [picture]) == [picture]
    image, warnings = read_image_film(picture, 100_000)
    np.testing.assert_array_equal(decode(shards.read(0, "image")), to_square(image, 64))
    assert (shards.grid(0).height, shards.grid(0).width) == (70, 64)
    assert tuple(shards.warnings(0)) == warnings and bool(warnings) == (len(shape) == 3)
    assert shards.column("image_id").tolist() == ["film"]


def test_near_duplicates_are_kept_as_separate_films(tmp_path: Path) -> None:
    first = write_film(tmp_path / "first.dcm", noise(64, 64))
    second = write_film(tmp_path / "second.dcm", noise(64, 64), PatientID="another patient")
    shards, refused = built([first, second], tmp_path / "scratch", NewFilmOptions(32))
    assert shards is not None and sorted(row_paths(shards, [first, second])) == [first, second]
    assert refused == [] and len(set(shards.column("group"))) == 2


def test_the_second_of_two_equal_names_is_refused(tmp_path: Path) -> None:
    first = write_film(tmp_path / "one/film.dcm", noise(64, 64, seed=1))
    second = write_film(tmp_path / "two/film.dcm", noise(64, 64, seed=2))
    for paths in ([first, second], [second, first]):
        scratch = tmp_path / f"scratch {paths[0].parent.name}"
        shards, refused = built(paths, scratch, NewFilmOptions(64))
        assert shards is not None and row_paths(shards, paths) == paths[:1]
        np.testing.assert_array_equal(decode(shards.read(0, "image")), read_film(paths[0]).image)
        assert [film.path for film in refused] == paths[1:]
        assert str(paths[0]) in refused[0].reason


def test_equal_names_are_one_error_that_names_both(tmp_path: Path) -> None:
    first, second, picture = tmp_path / "one/film.dcm", tmp_path / "two/film.dicom", tmp_path / "one/film.png"
    check_distinct(named([first, tmp_path / "film.2", tmp_path / "film.3"]))
    both = r"one/film\.dcm and .*two/film\.dicom: .*both be called film;"
    with pytest.raises(InputError, match=f"{both} pass --keep-folders, segment them into two folders"):
        check_distinct(named([first, second]))
    with pytest.raises(InputError, match=f"{both} segment them into two folders, or rename one"):
        check_distinct(named([first, second]), keep_folders=True)
    with pytest.raises(InputError, match=r"film\.dcm and .*film\.png: .* called film; segment them"):
        check_distinct(named([first, picture]))
    with pytest.raises(InputError):
        check_distinct(named([first, Path(str(first))]))


def test_folder_means_the_films_of_a_kind_below_it(tmp_path: Path) -> None:
    inside = [write_film(tmp_path / "in" / name, noise(64, 64)) for name in ("b/film.dcm", "a/film.dcm", "a/1.2.3")]
    pictures = [tmp_path / "in" / name for name in ("a/p.png", "q.JPG")]
    for picture in pictures:
        assert cv2.imwrite(str(picture), noise(64, 64))
    (tmp_path / "in/notes.txt").write_text("no film")
    alone = write_film(tmp_path / "alone.dcm", noise(64, 64))

    def found(*sources: Path, **options: Any) -> list[tuple[Path, str]]:
        return [(film.path, film.name) for film in find_films(sources, **options)]

    assert found(alone, tmp_path / "in", kind=DICOM) == [(alone, "alone"), *((p, name_id(p)) for p in sorted(inside))]
    assert found(tmp_path / "in", kind=IMAGES) == [(pictures[0], "p"), (pictures[1], "q")]
    assert [path for path, _ in found(tmp_path / "in")] == sorted([*inside, *pictures])
    kept = find_films([alone, tmp_path / "in"], keep_folders=True)
    names = {film.name: film.file for film in kept}
    assert names == {
        **{"alone": "alone.dcm", "a/1.2.3": "a/1.2.3", "a/film": "a/film.dcm", "b/film": "b/film.dcm"},
        **{"a/p": "a/p.png", "q": "q.JPG"},
    }
    check_distinct(kept, keep_folders=True)
    with pytest.raises(InputError, match=r"missing\.dcm: no such file"):
        find_films([tmp_path / "missing.dcm"])
    (tmp_path / "empty").mkdir()
    for kind, words in ((DICOM, "DICOM files"), (IMAGES, "PNG or JPEG files")):
        with pytest.raises(InputError, match=f"empty: holds no films; give a folder with {words}"):
            find_films([tmp_path / "empty"], kind)
    with pytest.raises(InputError, match="no films to segment"):
        film_shards([], tmp_path / "scratch", NewFilmOptions(32))


def test_results_of_an_earlier_run_are_no_films(tmp_path: Path) -> None:
    film, out = tmp_path / "in/film.png", tmp_path / "in/out"
    out.mkdir(parents=True)
    for path in (film, *(film.with_name(f"film{end}") for end in (".mask.png", ".overlay.PNG")), out / "copy.png"):
        assert cv2.imwrite(str(path), noise(64, 64))
    write_film(tmp_path / "in/film.seg.dcm", noise(64, 64))
    assert find_films([tmp_path / "in"], leave_out=[out]) == named([film])
    assert find_films([tmp_path / "in"]) == named([film, out / "copy.png"])
    assert find_films([out], leave_out=[out]) == named([out / "copy.png"])
    assert find_films([tmp_path / "in/film.mask.png"]) == named([tmp_path / "in/film.mask.png"])


def test_broken_link_and_invalid_id_are_refused_by_name(tmp_path: Path) -> None:
    good = write_film(tmp_path / "in/film.dcm", noise(64, 64))
    (tmp_path / "in/gone.dcm").symlink_to("nowhere.dcm")
    (tmp_path / "in/notes").symlink_to("nowhere")
    write_film(tmp_path / "elsewhere/=1+1.dcm", noise(64, 64, seed=1))
    write_film(tmp_path / "elsewhere" / os.fsdecode(b"f\xfclm.dcm"), noise(64, 64, seed=2))
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    shards, refused = film_shards(find_films([tmp_path / "in"]), tmp_path / "scratch", NewFilmOptions(32))
    assert shards is not None and shards.column("image_id").tolist() == [good.stem]
    reasons = {film.path.name: film.reason for film in refused}
    assert reasons.keys() == {"gone.dcm", "=1+1.dcm", os.fsdecode(b"f\xfclm.dcm")}
    assert "formula" in reasons["=1+1.dcm"] and "not UTF-8" in reasons[os.fsdecode(b"f\xfclm.dcm")]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.tif").write_bytes(b"II*")
    with pytest.raises(
        InputError, match=r"pictures: holds no films but 1 \.tif files; give a folder with DICOM, PNG or"
    ):
        find_films([tmp_path / "pictures"])


def test_a_scratch_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    film = write_film(tmp_path / "in/film.dcm", noise(64, 64))
    with pytest.raises(InputError, match="not empty"):
        built([film], tmp_path / "in", NewFilmOptions(32))


def test_the_scratch_folder_does_not_name_the_patient(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    built([film], tmp_path / "scratch", NewFilmOptions(32))
    files = [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert files and not any(PATIENT_ID.encode() in path.read_bytes() for path in files)


def test_folder_that_holds_these_films_is_reused_with_its_salt(tmp_path: Path) -> None:
    good = write_film(tmp_path / "good.dcm", noise(64, 64))
    lateral = write_film(tmp_path / "lateral.dcm", noise(64, 64, seed=1), ViewPosition="LL")
    salt, scratch = b"0123456789abcdef", tmp_path / "scratch"
    for paths in ([good, lateral], [lateral]):
        folder = scratch / str(len(paths))
        shards, refused = built(paths, folder, NewFilmOptions(32), salt=salt)
        again, refused_again = built(paths, folder, NewFilmOptions(32), salt=salt)
        assert refused == refused_again and [film.path for film in refused] == [lateral]
        assert (shards is None) == (again is None) == (len(paths) == 1)
    with pytest.raises(InputError, match="other films or arguments"):
        built([good, lateral], scratch / "2", NewFilmOptions(32), salt=b"another salt of 16 bytes")
    with pytest.raises(InputError, match="other films or arguments"):
        built([good], scratch / "2", NewFilmOptions(32), salt=salt)
