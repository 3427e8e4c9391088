"""With --pseudonymise, nothing in OUT names a film, its folder or its patient, however damaged the films are."""

import struct
import tarfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from film_files import coarse_noise

from shards.build.progress import read_list
from shards.dataset.table import Shards

WriteFilm = Callable[..., Path]
NAME = "Zqxmueller"
# Paths in texts of the system and of libraries: of this machine, or of the machine that built a library.
FORBIDDEN = (NAME.encode(), NAME.lower().encode(), b"Errno", b".cpp", b"OpenCV", b"/tmp", b"Permission denied: ")


def png(image: npt.NDArray[np.uint8]) -> bytes:
    return cv2.imencode(".png", image)[1].tobytes()


def vast_png() -> bytes:
    """A PNG whose header declares more pixels than OpenCV accepts."""
    chunk = b"IHDR" + struct.pack(">IIBBBBB", 1 << 20, 1 << 20, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))


def put(path: Path, content: bytes) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(content)


def bytes_of(out: Path) -> dict[str, bytes]:
    """Every file of a dataset, including hidden ones, and the decompressed contents of table and tars."""
    found = {str(path.relative_to(out)): path.read_bytes() for path in out.rglob("*") if path.is_file()}
    if (out / "samples.parquet").exists():
        found["the table's rows"] = str(Shards(out).table.to_pylist()).encode()
        found["the table's metadata"] = str(Shards(out).table.schema.metadata).encode()
    for path in out.glob("*.tar"):
        with tarfile.open(path) as archive:
            found[f"{path.name}'s names"] = " ".join(f"{m.name} {m.uname} {m.gname}" for m in archive).encode()
    return found


def check(out: Path, folder: Path) -> None:
    for name, content in bytes_of(out).items():
        assert not any(text in name.encode() for text in FORBIDDEN), name
        for text in (*FORBIDDEN, str(folder).encode()):
            assert text not in content, (name, text, content[max(0, content.find(text) - 80) :][:200])


def lock(monkeypatch: pytest.MonkeyPatch, what: str) -> None:
    """Make files with this word in their names unreadable, even for root."""
    read, dcmread = Path.read_bytes, pydicom.dcmread

    def read_bytes(path: Path) -> bytes:
        if what in path.name:
            raise PermissionError(13, "Permission denied", str(path))
        return read(path)

    def read_dicom(path: Path, **options: Any) -> Any:
        if what in path.name:
            raise PermissionError(13, "Permission denied", str(path))
        return dcmread(path, **options)

    monkeypatch.setattr(Path, "read_bytes", read_bytes)
    monkeypatch.setattr(pydicom, "dcmread", read_dicom)


def test_images_and_masks_that_are_broken_in_every_way(
    tmp_path: Path, cli: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    films, masks = tmp_path / NAME / "films", tmp_path / NAME / "masks"
    mask = np.zeros((64, 64), np.uint8)
    mask[10:20, 10:20] = 255
    for number in range(12):
        put(films / f"{NAME} {number}.png", png(coarse_noise(number)))
        put(masks / f"{NAME} {number}.png", png(mask))
    put(films / f"{NAME} 0.png", b"no image")
    put(films / f"{NAME} 1.png", png(coarse_noise(1))[:300])
    put(films / f"{NAME} 2.png", vast_png())
    put(films / f"{NAME} 3.png", b"")
    put(films / NAME / f"{NAME} 4.jpg", png(coarse_noise(5)))  # a repeated id
    put(masks / f"{NAME} 5.png", png(mask[:32]))
    put(masks / f"{NAME} 6.png", png(mask // 50))
    put(masks / f"{NAME} 7.png", b"no image")
    put(masks / f"{NAME} 8.png", vast_png())
    put(films / f"{NAME} 12 locked.png", png(coarse_noise(12)))
    put(masks / f"{NAME} 12 locked.png", png(mask))
    put(films / f"{NAME} without mask.png", png(coarse_noise(13)))
    for name in (f"{NAME}.{NAME}", f"{NAME}.tif", f".{NAME}", f"._{NAME}.png"):
        put(films / name, b"x")
    (films / f"{NAME} gone.png").symlink_to(f"/nowhere/{NAME}")
    lock(monkeypatch, "locked")
    out = tmp_path / "out"
    given = ["build", "--images", films, "--masks", masks, "--out", out, "--image-size", 32, "--folds", 2]
    given += ["--workers", 1, "--pseudonymise"]
    failed = cli(*given)
    assert failed.code == 2 and "rejected.csv" in failed.err
    check(out, tmp_path)
    done = cli(*given, "--max-rejects", 20)
    assert done.code == 0, done.err
    assert f"{NAME} gone.png: a broken link" in done.err, "stderr may name files"
    check(out, tmp_path)
    assert len(read_list(out / "rejected.csv")) >= 9
    assert all(image_id.startswith("P") and not file for image_id, file, _ in read_list(out / "rejected.csv"))
    assert len(read_list(out / "unlabelled.csv")) == 1


def test_dicom_films_that_are_broken_in_every_way(
    tmp_path: Path, cli: Any, write_film: WriteFilm, monkeypatch: pytest.MonkeyPatch
) -> None:
    films = tmp_path / NAME / "films"
    person = {"PatientName": f"{NAME}^Anna", "InstitutionName": NAME, "StudyDescription": NAME}
    for number in range(8):
        write_film(films / f"{NAME} {number}.dcm", coarse_noise(number), PatientID=f"{NAME}{number}", **person)
    whole = (films / f"{NAME} 0.dcm").read_bytes()
    put(films / f"{NAME} 0.dcm", b"no film")
    put(films / f"{NAME} 1.dcm", whole[:400])
    put(films / f"{NAME} 2.dcm", whole[:-100])
    put(films / f"{NAME} 3.dcm", b"")
    put(films / NAME / f"{NAME} 4.dcm", whole)  # a repeated id
    put(films / f"{NAME} locked.dcm", whole)
    put(films / f"{NAME}.dcm.gz", b"\x1f\x8b")
    write_film(films / "lateral" / f"{NAME} lateral.dcm", coarse_noise(20), ViewPosition="LL", PatientID=NAME, **person)
    (films / f"{NAME} gone.dcm").symlink_to(f"/nowhere/{NAME}")
    lock(monkeypatch, "locked")
    labels = tmp_path / f"{NAME}.csv"
    labels.write_text("".join(f"{NAME} {which},-1\n" for which in (*range(7), "locked")))
    out = tmp_path / "out"
    given = ["build", "--dicom", films, "--rle", labels, "--test-dicom", films / "lateral", "--out", out]
    given += ["--image-size", 32, "--folds", 2, "--workers", 1, "--pseudonymise"]
    failed = cli(*given)
    assert failed.code == 2
    check(out, tmp_path)
    done = cli(*given, "--max-rejects", 20)
    assert done.code == 0, done.err
    check(out, tmp_path)
    assert len(read_list(out / "rejected.csv")) >= 6


def test_a_label_that_does_not_fit_is_named_on_the_screen_alone(
    tmp_path: Path, cli: Any, write_film: WriteFilm
) -> None:
    for number in range(4):
        write_film(tmp_path / f"{NAME}/{NAME} {number}.dcm", coarse_noise(number))
    labels = tmp_path / f"{NAME}.csv"
    labels.write_text("".join(f"{NAME} {number},4095 2\n" for number in range(4)))
    out = tmp_path / "out"
    given = ["build", "--dicom", tmp_path / NAME, "--rle", labels, "--out", out, "--folds", 2, "--workers", 1]
    line = cli(*given, "--image-size", 32, "--pseudonymise").only_line()
    assert f"{NAME}.csv line " in line
    check(out, tmp_path)


def test_films_of_one_name_under_pseudonyms(tmp_path: Path, cli: Any, write_film: WriteFilm) -> None:
    for number in range(3):
        write_film(tmp_path / f"{NAME}/{number}/{NAME}", coarse_noise(number), SOPInstanceUID=f"1.2.{number}")
    put(tmp_path / NAME / f"{NAME}.dcm", b"broken")
    put(tmp_path / NAME / f"{NAME} 2.dcm", b"broken")
    given = ["build", "--test-dicom", tmp_path / NAME, "--image-size", 32, "--workers", 1, "--pseudonymise"]
    for name, more, rejected in (("names", (), 5), ("uids", ("--id", "sop"), 2)):
        out = tmp_path / name
        assert cli(*given, "--out", out, *more).code == 2
        check(out, tmp_path)
        assert len(read_list(out / "rejected.csv")) == rejected - (name == "names")
        assert cli(*given, "--out", out, *more, "--max-rejects", 5).code == 0
        check(out, tmp_path)


def test_the_plan_of_tasks_keeps_no_path_and_finalize_asks_for_the_csv(
    tmp_path: Path, cli: Any, write_film: WriteFilm
) -> None:
    for number in range(4):
        write_film(tmp_path / f"{NAME}/{number}.dcm", coarse_noise(number), PatientID=str(number))
    labels, groups, out = tmp_path / "labels.csv", tmp_path / f"{NAME}.csv", tmp_path / "out"
    labels.write_text("".join(f"{number},-1\n" for number in range(4)))
    given = ["build", "--dicom", tmp_path / NAME, "--rle", labels, "--out", out, "--image-size", 32, "--workers", 1]
    given += ["--folds", 2, "--pseudonymise", "--groups", groups]
    groups.write_text("none,1\n")
    assert cli(*given, "--task", "1/1").code == 0
    check(out, tmp_path)
    assert "--groups" in cli("finalize", out).only_line()
    names = dict(line.split(",") for line in (tmp_path / "out.ids.csv").read_text().splitlines())
    groups.write_text("".join(f"{names[str(number)]},{number % 3}\n" for number in range(4)))
    assert cli("finalize", out, "--groups", groups).code == 0
    check(out, tmp_path)
    shards = Shards(out)
    group_of = dict(zip(shards.column("image_id"), shards.column("group"), strict=True))
    assert group_of[names["0"]] == group_of[names["3"]] != group_of[names["1"]]
