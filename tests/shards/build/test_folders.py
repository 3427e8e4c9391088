"""Listings of folders: every file once, links followed, everything else counted with a reason."""

import os
import socket
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shards.build import folders
from shards.build.folders import DANGLING, DICOM, FILMS, HIDDEN, IMAGES, LOOP, MACOS, SPECIAL, SYSTEM, list_folders
from shards.errors import InputError

PREFIX = bytes(128) + b"DICM"


def put(path: Path, content: bytes = b"x") -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)
    return path


def names(root: Path, paths: tuple[Path, ...]) -> list[str]:
    return [str(path.relative_to(root)) for path in paths]


def reasons(listing: folders.Listing) -> dict[str, int]:
    return dict(Counter(item.reason for item in listing.skipped))


def test_a_linked_folder_is_followed_once_and_loops_end(tmp_path: Path) -> None:
    put(tmp_path / "in/a/1.png")
    put(tmp_path / "elsewhere/2.png")
    (tmp_path / "in/more").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "in/again").symlink_to("../elsewhere")
    (tmp_path / "in/a/up").symlink_to("..")
    (tmp_path / "in/above").symlink_to("../..")
    (tmp_path / "elsewhere/back").symlink_to(tmp_path / "in")
    (tmp_path / "in/0 first").symlink_to("a")
    (listing,) = list_folders([tmp_path / "in"], IMAGES)
    assert names(tmp_path / "in", listing.files) == ["a/1.png", "again/2.png"]
    assert reasons(listing) == {LOOP: 3}


def test_a_linked_file_is_a_file_and_a_link_to_nothing_is_named(tmp_path: Path) -> None:
    put(tmp_path / "store/x")
    (tmp_path / "in").mkdir()
    (tmp_path / "in/film.png").symlink_to(tmp_path / "store/x")
    (tmp_path / "in/gone.png").symlink_to(tmp_path / "nowhere")
    (tmp_path / "in/self.png").symlink_to("self.png")
    (listing,) = list_folders([tmp_path / "in"], IMAGES)
    assert names(tmp_path / "in", listing.files) == ["film.png"]
    assert [(item.path.name, item.reason) for item in listing.skipped] == [
        ("gone.png", DANGLING),
        ("self.png", DANGLING),
    ]


def test_a_folder_that_is_given_twice_or_lies_in_another_is_read_once(tmp_path: Path) -> None:
    put(tmp_path / "in/a.png")
    put(tmp_path / "in/below/b.png")
    (tmp_path / "link").symlink_to("in")
    given = [tmp_path / "in", tmp_path / "in/below", tmp_path / "link", tmp_path / "in"]
    listings = list_folders(given, IMAGES)
    assert [(listing.folder, names(tmp_path, listing.files)) for listing in listings] == [
        (tmp_path / "in", ["in/a.png"]),
        (tmp_path / "in/below", ["in/below/b.png"]),
    ]


def test_files_of_the_system_and_hidden_ones_are_skipped_and_counted(tmp_path: Path) -> None:
    for name in ("a.png", "._a.png", "__MACOSX/a.png", "__MACOSX/below/b.png", ".hidden.png", ".cache/deep/c.png"):
        put(tmp_path / "in" / name)
    for name in ("Thumbs.db", "desktop.ini", "@eaDir/a.png", ".DS_Store"):
        put(tmp_path / "in" / name)
    (listing,) = list_folders([tmp_path / "in"], IMAGES)
    assert names(tmp_path / "in", listing.files) == ["a.png"]
    assert reasons(listing) == {MACOS: 3, HIDDEN: 3, SYSTEM: 3}


def test_a_hidden_folder_that_is_given_itself_is_read(tmp_path: Path) -> None:
    put(tmp_path / ".films/a.png")
    (listing,) = list_folders([tmp_path / ".films"], IMAGES)
    assert len(listing.files) == 1


def test_what_is_left_out_is_not_read_unless_it_is_given(tmp_path: Path) -> None:
    put(tmp_path / "in/a.png")
    put(tmp_path / "in/out/b.png")
    (listing,) = list_folders([tmp_path / "in"], IMAGES, [tmp_path / "in/out"])
    assert names(tmp_path / "in", listing.files) == ["a.png"]
    (listing,) = list_folders([tmp_path / "in"], IMAGES, [tmp_path / "in"])
    assert len(listing.files) == 2


def test_pipes_and_sockets_are_never_opened(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    put(tmp_path / "a.dcm")
    os.mkfifo(tmp_path / "pipe.dcm")
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to("pipe")
    monkeypatch.chdir(tmp_path)  # the path of a socket must be short
    with socket.socket(socket.AF_UNIX) as stream:
        stream.bind("socket")
        (listing,) = list_folders([tmp_path], DICOM)
    assert names(tmp_path, listing.files) == ["a.dcm"]
    assert reasons(listing) == {SPECIAL: 4}


def test_a_folder_that_is_closed_to_us_is_an_error_and_not_a_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "in/a.png")
    put(tmp_path / "in/closed/b.png")
    scandir = os.scandir

    def refuse(path: Path) -> object:
        if Path(path).name == "closed":
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(InputError, match=r"in/closed: this folder cannot be read \(Permission denied\)"):
        list_folders([tmp_path / "in"], IMAGES)


DICOM_FOLDER = {
    "a.dcm": b"",
    "b.DICOM": b"",
    "1.2.3": PREFIX,
    "IM000000": PREFIX,
    "c.odd": PREFIX,
    "1.2.4": b"no prefix",
    "README": b"text",
    "film.dcm.gz": b"\x1f\x8b",
    "films.zip": b"PK",
    "DICOMDIR": PREFIX,
    "dicomdir": PREFIX,
    "DICOMDIR;1": PREFIX,
    "view.png": b"png",
    "labels.csv": b"csv",
    "mueller.mueller": b"x",
}


def test_dicom_files_are_told_by_name_or_prefix_and_the_rest_by_reason(tmp_path: Path) -> None:
    for name, content in DICOM_FOLDER.items():
        put(tmp_path / name, content)
    (listing,) = list_folders([tmp_path], DICOM)
    assert names(tmp_path, listing.files) == ["1.2.3", "IM000000", "a.dcm", "b.DICOM", "c.odd"]
    assert reasons(listing) == {
        "neither a DICM prefix nor a suffix .dcm": 3,
        "compressed (.gz); unpack them": 1,
        "compressed (.zip); unpack them": 1,
        "the index of a DICOM medium (DICOMDIR)": 3,
        "PNG or JPEG among DICOM files; give them with --images or --test-images": 1,
        "files of another kind (.csv)": 1,
    }
    assert "mueller" not in str(reasons(listing))
    (either,) = list_folders([tmp_path], FILMS)
    assert set(either.files) - set(listing.files) == {tmp_path / "view.png"}


def test_images_are_told_by_name(tmp_path: Path) -> None:
    for name in ("a.png", "b.JPG", "c.jpeg", "d.tif", "e.bmp", "f.dcm", "g"):
        put(tmp_path / name)
    (listing,) = list_folders([tmp_path], IMAGES)
    assert names(tmp_path, listing.files) == ["a.png", "b.JPG", "c.jpeg"]
    assert reasons(listing) == {
        "images of another kind (.tif); convert them to PNG": 1,
        "images of another kind (.bmp); convert them to PNG": 1,
        "DICOM among images; give them with --dicom or --test-dicom": 1,
        "files of another kind (no known suffix)": 1,
    }
    assert folders.kinds(listing.skipped) == "1 .bmp files, 1 .dcm files, 1 .tif files, 1 others"
    assert folders.kinds(()) == "nothing"


@pytest.mark.parametrize("error", [PermissionError(13, "Permission denied"), OSError(5, "Input/output error")])
def test_a_file_that_cannot_be_opened_is_left_to_the_reader_of_films(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: OSError
) -> None:
    path = put(tmp_path / "IM1")

    def fail(*_: object) -> None:
        raise error

    monkeypatch.setattr(Path, "open", fail)
    assert DICOM.judge(path) == ""


def test_a_file_that_is_gone_is_counted(tmp_path: Path) -> None:
    assert DICOM.judge(tmp_path / "IM1") == folders.VANISHED


# Folders 0..3 inside the given one, 4 and 5 outside: each but the first has a parent, each has a file, and links.
@st.composite
def trees(draw: st.DrawFn) -> tuple[list[int], list[tuple[int, int]]]:
    parents = [draw(st.integers(0, number - 1)) for number in range(1, 4)]
    links = draw(st.lists(st.tuples(st.integers(0, 5), st.integers(0, 5)), max_size=8))
    return parents, links


@settings(deadline=None, max_examples=60)
@given(tree=trees())
def test_every_folder_that_can_be_reached_is_listed_once(
    tmp_path_factory: pytest.TempPathFactory, tree: tuple[list[int], list[tuple[int, int]]]
) -> None:
    parents, links = tree
    top = tmp_path_factory.mktemp("tree")
    places = [top / "root"]
    for number, parent in enumerate(parents, 1):
        places.append(places[parent] / f"folder{number}")
    places += [top / "outside4", top / "outside5"]
    for number, place in enumerate(places):
        put(place / f"{number}.png")
    for number, (start, end) in enumerate(links):
        (places[start] / f"link{number}").symlink_to(places[end])
    (listing,) = list_folders([places[0]], IMAGES)
    reachable: set[int] = set()
    steps: list[int] = [0]
    while steps:
        if (here := steps.pop()) not in reachable:
            reachable.add(here)
            steps += [end for start, end in links if start == here]
            steps += [number for number, parent in enumerate(parents, 1) if parent == here]
    assert sorted(path.name for path in listing.files) == sorted(f"{number}.png" for number in reachable)
    inside = [path for path in listing.files if int(path.stem) < 4]
    assert all(path == places[int(path.stem)] / path.name for path in inside)


def test_the_judge_is_asked_about_each_file_once(tmp_path: Path) -> None:
    for number in range(5):
        put(tmp_path / f"{number}.png")
    asked: list[Path] = []

    def judge(path: Path) -> str:
        asked.append(path)
        return ""

    list_folders([tmp_path, tmp_path], folders.FileKind("all", judge))
    assert len(asked) == 5
