"""New films go through the ordinary build: it refuses the same films, and every row maps to its file."""

import os
from pathlib import Path

import cv2
import numpy as np
import pytest
from film_files import PATIENT_ID, noise, write_film
from images import decode

from pneumo_dist.predict.new_films import NewFilmOptions, check_distinct, film_name, film_paths, film_shards, row_paths
from shards.dataset.grid import to_square
from shards.dicom.film import FilmRules, read_film
from shards.errors import InputError, RejectedFilm


def test_films_become_test_films_and_rows_map_to_their_files(tmp_path: Path) -> None:
    # Their key order differs from the given order, and dots in a name are not a suffix.
    names = ["z.dcm", "1.2.840.77", "a b.DCM", "m.dicom"]
    paths = [
        write_film(tmp_path / str(number) / name, noise(70 + number, 64, seed=number))
        for number, name in enumerate(names)
    ]
    shards, refused = film_shards(paths, tmp_path / "scratch", NewFilmOptions(64))
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
    shards, refused = film_shards([lateral, good, flat, burned, broken], tmp_path / "scratch", NewFilmOptions(32))
    assert shards is not None and row_paths(shards, [good]) == [good]
    assert sorted(film.path for film in refused) == sorted(bad)
    for film in refused:
        with pytest.raises(RejectedFilm) as reason:
            read_film(film.path)
        assert film.reason == str(reason.value)


def test_rules_accept_the_films_that_they_name(tmp_path: Path) -> None:
    lateral = write_film(tmp_path / "lateral.dcm", noise(64, 64), ViewPosition="LL")
    burned = write_film(tmp_path / "burned.dcm", noise(64, 64, seed=1), BurnedInAnnotation="YES")
    shards, refused = film_shards([lateral, burned], tmp_path / "any", NewFilmOptions(32, FilmRules(any_film=True)))
    assert shards is not None and row_paths(shards, [lateral, burned]) == [lateral]
    assert [film.path for film in refused] == [burned]
    shards, refused = film_shards(
        [lateral, burned], tmp_path / "burned", NewFilmOptions(32, FilmRules(allow_burned_in=True))
    )
    assert shards is not None and row_paths(shards, [lateral, burned]) == [burned]


def test_there_is_no_dataset_if_all_films_are_refused(tmp_path: Path) -> None:
    lateral = write_film(tmp_path / "lateral.dcm", noise(64, 64), ViewPosition="LL")
    shards, refused = film_shards([lateral], tmp_path / "scratch", NewFilmOptions(32))
    assert shards is None and [film.path for film in refused] == [lateral]


def test_picture_is_not_a_dicom_film(tmp_path: Path) -> None:
    picture = tmp_path / "film.png"
    assert cv2.imwrite(str(picture), noise(64, 64))
    shards, refused = film_shards([picture], tmp_path / "scratch", NewFilmOptions(32))
    assert shards is None
    assert [(film.path, film.reason.split(":")[0]) for film in refused] == [(picture, "not a DICOM file")]


def test_near_duplicates_are_kept_as_separate_films(tmp_path: Path) -> None:
    first = write_film(tmp_path / "first.dcm", noise(64, 64))
    second = write_film(tmp_path / "second.dcm", noise(64, 64), PatientID="another patient")
    shards, refused = film_shards([first, second], tmp_path / "scratch", NewFilmOptions(32))
    assert shards is not None and sorted(row_paths(shards, [first, second])) == [first, second]
    assert refused == [] and len(set(shards.column("group"))) == 2


def test_the_second_of_two_equal_names_is_refused(tmp_path: Path) -> None:
    first = write_film(tmp_path / "one/film.dcm", noise(64, 64, seed=1))
    second = write_film(tmp_path / "two/film.dcm", noise(64, 64, seed=2))
    for paths in ([first, second], [second, first]):
        scratch = tmp_path / f"scratch {paths[0].parent.name}"
        shards, refused = film_shards(paths, scratch, NewFilmOptions(64))
        assert shards is not None and row_paths(shards, paths) == paths[:1]
        np.testing.assert_array_equal(decode(shards.read(0, "image")), read_film(paths[0]).image)
        assert [film.path for film in refused] == paths[1:]
        assert str(paths[0]) in refused[0].reason


def test_equal_names_are_one_error_that_names_both(tmp_path: Path) -> None:
    first, second = tmp_path / "one/film.dcm", tmp_path / "two/film.dicom"
    check_distinct([first, tmp_path / "film.2", tmp_path / "film.3"])
    with pytest.raises(InputError, match=r"one/film\.dcm and .*two/film\.dicom: .*both be called film;"):
        check_distinct([first, second])
    with pytest.raises(InputError):
        check_distinct([first, first])


@pytest.mark.parametrize(
    ("name", "expected"), [("a.dcm", "a"), ("a.DICOM", "a"), ("1.2.3", "1.2.3"), ("a.b.dcm", "a.b")]
)
def test_a_films_name_is_its_image_id(name: str, expected: str) -> None:
    assert film_name(Path("folder") / name) == expected


def test_folder_means_the_dicom_files_below_it(tmp_path: Path) -> None:
    inside = [write_film(tmp_path / "in" / name, noise(64, 64)) for name in ("b/film.dcm", "a/film.dcm", "a/1.2.3")]
    (tmp_path / "in/notes.txt").write_text("no film")
    alone = write_film(tmp_path / "alone.dcm", noise(64, 64))
    assert film_paths([alone, tmp_path / "in"]) == [alone, *sorted(inside)]
    with pytest.raises(InputError, match=r"missing\.dcm: no such file"):
        film_paths([tmp_path / "missing.dcm"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="empty: holds no films"):
        film_paths([tmp_path / "empty"])
    with pytest.raises(InputError, match="no films to segment"):
        film_shards([], tmp_path / "scratch", NewFilmOptions(32))


def test_broken_link_and_invalid_id_are_refused_by_name(tmp_path: Path) -> None:
    good = write_film(tmp_path / "in/film.dcm", noise(64, 64))
    (tmp_path / "in/gone.dcm").symlink_to("nowhere.dcm")
    (tmp_path / "in/notes").symlink_to("nowhere")
    write_film(tmp_path / "elsewhere/=1+1.dcm", noise(64, 64, seed=1))
    write_film(tmp_path / "elsewhere" / os.fsdecode(b"f\xfclm.dcm"), noise(64, 64, seed=2))
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    shards, refused = film_shards(film_paths([tmp_path / "in"]), tmp_path / "scratch", NewFilmOptions(32))
    assert shards is not None and shards.column("image_id").tolist() == [good.stem]
    reasons = {film.path.name: film.reason for film in refused}
    assert reasons.keys() == {"gone.dcm", "=1+1.dcm", os.fsdecode(b"f\xfclm.dcm")}
    assert "formula" in reasons["=1+1.dcm"] and "not UTF-8" in reasons[os.fsdecode(b"f\xfclm.dcm")]
    (tmp_path / "pictures").mkdir()
    (tmp_path / "pictures/a.tif").write_bytes(b"II*")
    with pytest.raises(InputError, match=r"pictures: holds no films but 1 \.tif files; give a folder with DICOM files"):
        film_paths([tmp_path / "pictures"])


def test_a_scratch_folder_in_use_is_left_alone(tmp_path: Path) -> None:
    film = write_film(tmp_path / "in/film.dcm", noise(64, 64))
    with pytest.raises(InputError, match="not empty"):
        film_shards([film], tmp_path / "in", NewFilmOptions(32))


def test_the_scratch_folder_does_not_name_the_patient(tmp_path: Path) -> None:
    film = write_film(tmp_path / "film.dcm", noise(64, 64))
    film_shards([film], tmp_path / "scratch", NewFilmOptions(32))
    files = [path for path in (tmp_path / "scratch").rglob("*") if path.is_file()]
    assert files and not any(PATIENT_ID.encode() in path.read_bytes() for path in files)


def test_folder_that_holds_these_films_is_reused_with_its_salt(tmp_path: Path) -> None:
    good = write_film(tmp_path / "good.dcm", noise(64, 64))
    lateral = write_film(tmp_path / "lateral.dcm", noise(64, 64, seed=1), ViewPosition="LL")
    salt, scratch = b"0123456789abcdef", tmp_path / "scratch"
    for paths in ([good, lateral], [lateral]):
        folder = scratch / str(len(paths))
        shards, refused = film_shards(paths, folder, NewFilmOptions(32), salt=salt)
        again, refused_again = film_shards(paths, folder, NewFilmOptions(32), salt=salt)
        assert refused == refused_again and [film.path for film in refused] == [lateral]
        assert (shards is None) == (again is None) == (len(paths) == 1)
    with pytest.raises(InputError, match="other films or arguments"):
        film_shards([good, lateral], scratch / "2", NewFilmOptions(32), salt=b"another salt of 16 bytes")
    with pytest.raises(InputError, match="other films or arguments"):
        film_shards([good], scratch / "2", NewFilmOptions(32), salt=salt)
