"""Tasks, appending, re-splitting, codecs and privacy: the whole build under its options."""

import csv
import errno
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pyarrow.parquet as pq
import pydicom
import pytest
from pydicom.pixels import pixel_array
from sample_rows import write_rows

from shards import files
from shards.build import assemble as finish_module
from shards.build import build as build_module
from shards.dataset import rle
from shards.dataset.table import TABLE, Shards
from shards.dataset.verify import verify
from shards.errors import InputError
from shards.phantom.dataset import synthesize

Cli = Callable[..., Any]


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Thirty labelled films of 96 px in `dicom-images`, half positive, and their CSV."""
    folder = tmp_path_factory.mktemp("films") / "set"
    synthesize(folder, images=30, size=96, positive_rate=0.5, seed=4)
    return folder


def build_line(films: Path, out: Path, *more: object) -> list[object]:
    common = ("--image-size", 64, "--folds", 2, "--samples-per-shard", 8, "--workers", 1)
    return ["build", "--dicom", films / "dicom-images", "--rle", films / "train-rle.csv", "--out", out, *common, *more]


def good(outcome: Any) -> str:
    assert outcome.code == 0, outcome.err
    return str(outcome.out)


def tars(out: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(out.glob("*.tar"))}


def part_of(films: Path, to: Path, keep: slice) -> Path:
    """Copy some of the films, with all of the labels that belong to them."""
    rows = list(csv.reader((films / "train-rle.csv").open()))
    chosen = sorted({row[0] for row in rows[1:]})[keep]
    for path in films.rglob("*.dcm"):
        if path.stem in chosen:
            (to / "dicom-images").mkdir(parents=True, exist_ok=True)
            shutil.copy2(path, to / "dicom-images")
    with (to / "train-rle.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([rows[0], *(row for row in rows[1:] if row[0] in chosen)])
    return to


def test_three_tasks_and_finalize_give_the_bytes_of_one_build(
    cli: Cli, films: Path, tmp_path: Path, tree_of: Any
) -> None:
    good(cli(*build_line(films, tmp_path / "one/out")))
    salt = tmp_path / "one/out.salt"
    share = ("--patient-salt-file", salt)
    for task in ("2/3", "1/3"):
        good(cli(*build_line(films, tmp_path / "many/out", "--task", task, *share)))
    line = cli("finalize", tmp_path / "many/out").only_line()
    assert "train-00002" in line, "the shard of the task that has not run is named"
    assert not (tmp_path / "many/out/manifest.json").exists()
    good(cli(*build_line(films, tmp_path / "many/out", "--task", "3/3", *share)))
    good(cli("finalize", tmp_path / "many/out"))
    assert tree_of(tmp_path / "many/out") == tree_of(tmp_path / "one/out")


def test_tasks_of_another_build_and_bad_tasks_are_refused(cli: Cli, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good(cli(*build_line(films, out, "--task", "1/2")))
    assert "other tasks" in cli(*build_line(films, out, "--task", "2/2", "--image-size", 96)).only_line()
    for task in ("0/2", "3/2", "x/2", "2"):
        assert task in cli(*build_line(films, out, "--task", task)).only_line()


def test_a_second_build_into_one_folder_is_refused_while_the_first_runs(cli: Cli, films: Path, tmp_path: Path) -> None:
    from shards.build.progress import locked

    with locked(tmp_path / "out"):
        assert "another build is writing" in cli(*build_line(films, tmp_path / "out")).only_line()


def test_appended_films_get_shards_of_their_own_and_old_ones_keep_bytes_and_folds(
    cli: Cli, films: Path, tmp_path: Path
) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    out = tmp_path / "out"
    good(cli(*build_line(first, out, "--holdout", 0.25)))
    old, before = tars(out), Shards(out)
    folds = dict(
        zip(before.column("key"), zip(before.column("fold"), before.column("split"), strict=True), strict=True)
    )
    assert "--append" in cli(*build_line(films, out)).only_line()
    text = good(cli(*build_line(films, out, "--append")))
    assert "groups" in text
    assert {name: content for name, content in tars(out).items() if name in old} == old
    after = Shards(out)
    assert len(after) == 30
    assert verify(out) == []
    now = dict(zip(after.column("key"), zip(after.column("fold"), after.column("split"), strict=True), strict=True))
    assert {key: now[key] for key in folds} == folds
    assert set(after.column("fold")[20:]) <= {-1, 0, 1}
    unchanged = tars(out)
    good(cli(*build_line(films, out, "--append")))
    assert tars(out) == unchanged, "appending what is there already adds nothing"
    other = ["--image-size", 96]
    assert "--image-size" in cli(*build_line(films, out, "--append", *other)).only_line()


@pytest.mark.parametrize("moment", ["before the table", "before the manifest beside it", "before the manifest"])
def test_a_killed_append_is_finished_by_the_same_command(
    cli: Cli, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree_of: Any, moment: str
) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    for name in ("whole", "killed"):
        good(cli(*build_line(first, tmp_path / name / "out", "--patient-salt-file", write_salt(tmp_path))))
    line = ["--append", "--patient-salt-file", tmp_path / "salt"]
    good(cli(*build_line(films, tmp_path / "whole/out", *line)))

    write = finish_module.write_manifest

    def killed(folder: object, *arguments: Any, **more: Any) -> Any:
        if moment == "before the manifest" and folder != tmp_path / "killed/out":
            return write(folder, *arguments, **more)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish_module, "split_table" if moment == "before the table" else "write_manifest", killed)
        assert cli(*build_line(films, tmp_path / "killed/out", *line)).code == 130
    if moment == "before the manifest":
        with pytest.raises(InputError, match="digest; run the interrupted build or finalize again"):
            Shards(tmp_path / "killed/out")
    else:
        assert len(Shards(tmp_path / "killed/out")) == 20
    good(cli(*build_line(films, tmp_path / "killed/out", *line)))
    assert tree_of(tmp_path / "killed/out") == tree_of(tmp_path / "whole/out")


def test_an_append_that_failed_on_its_rejects_lists_each_once(cli: Cli, films: Path, tmp_path: Path) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    good(cli(*build_line(first, tmp_path / "out")))
    (first / "dicom-images/broken.dcm").write_bytes(b"no film")
    with (first / "train-rle.csv").open("a") as stream:
        stream.write("broken, -1\n")
    for _ in range(2):
        assert "1 film rejected" in cli(*build_line(first, tmp_path / "out", "--append")).only_line()
    good(cli(*build_line(first, tmp_path / "out", "--append", "--max-rejects", 1)))
    assert [row[0] for row in csv.reader((tmp_path / "out/rejected.csv").open())] == ["image_id", "broken"]


def test_appending_with_another_label_or_role_for_a_known_film_is_refused(
    cli: Cli, films: Path, tmp_path: Path, tree_of: Any
) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    good(cli(*build_line(first, tmp_path / "out")))
    before = tree_of(tmp_path / "out")
    text = (first / "train-rle.csv").read_text().splitlines()
    number = next(n for n, row in enumerate(text) if row.endswith("-1"))
    (first / "train-rle.csv").write_text(
        "\n".join([*text[:number], text[number].replace("-1", "5 7"), *text[number + 1 :]])
    )
    assert "label differs" in cli(*build_line(first, tmp_path / "out", "--append")).only_line()
    line = ["build", "--test-dicom", first / "dicom-images", "--out", tmp_path / "out", "--image-size", 64, "--append"]
    assert "not to be added as test" in cli(*line).only_line()
    assert tree_of(tmp_path / "out") == before


def test_a_new_split_touches_no_tar(cli: Cli, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good(cli(*build_line(films, out)))
    before, folds = tars(out), Shards(out).column("fold").copy()
    stamps = {path: path.stat().st_mtime_ns for path in out.glob("*.tar")}
    good(cli("finalize", out, "--folds", 3, "--seed", 5, "--holdout", 0.2))
    after = Shards(out)
    assert set(after.column("fold")) == {-1, 0, 1, 2}
    assert not (after.column("fold") == folds).all()
    assert tars(out) == before
    assert {path: path.stat().st_mtime_ns for path in out.glob("*.tar")} == stamps
    assert verify(out) == []


def test_published_folds_and_groups_are_taken_over(cli: Cli, films: Path, tmp_path: Path) -> None:
    out = tmp_path / "out"
    good(cli(*build_line(films, out)))
    shards = Shards(out)
    ids = shards.column("image_id").tolist()
    group_number = {group: number for number, group in enumerate(sorted(set(shards.column("group"))))}
    wanted = {i: group_number[g] % 4 - 1 for i, g in zip(ids, shards.column("group"), strict=True)}
    path = tmp_path / "folds.csv"
    path.write_text("image_id,fold\n" + "".join(f"{i},{fold}\n" for i, fold in wanted.items()))
    good(cli("finalize", out, "--folds-csv", path))
    assert dict(zip(ids, Shards(out).column("fold").tolist(), strict=True)) == wanted
    assert "--folds-csv" in cli("finalize", out, "--seed", 3).only_line()
    groups = tmp_path / "groups.csv"
    groups.write_text("".join(f"{i},ward {number % 10}\n" for number, i in enumerate(ids)))
    good(cli("finalize", out, "--folds", 2, "--groups", groups))
    fold_of: dict[int, set[int]] = {}
    for number, fold in enumerate(Shards(out).column("fold").tolist()):
        fold_of.setdefault(number % 10, set()).add(fold)
    assert all(len(folds) == 1 for folds in fold_of.values())
    assert b"ward" not in b"".join(p.read_bytes() for p in out.iterdir())
    path.write_text("\n".join(f"{i},0" for i in ids[1:]))
    assert ids[0] in cli("finalize", out, "--folds-csv", path).only_line()


def test_published_folds_say_which_films_train_in_every_fold(cli: Cli, films: Path, tmp_path: Path) -> None:
    ids = sorted({path.stem for path in films.rglob("*.dcm")})
    fold_of = {i: "stage_2" if number < 4 else str(number % 3) for number, i in enumerate(ids)}
    published = tmp_path / "folds.csv"
    published.write_text("fname,fold,exist_labels\n" + "".join(f"{i}.png,{f},0\n" for i, f in fold_of.items()))
    groups = tmp_path / "groups.csv"
    groups.write_text("\n".join(["fname,patient_id", *(f"{i}.dcm,{i}" for i in ids)]))
    given = ("--folds-csv", published, "--groups", groups, "--duplicate-distance", -1)
    made = good(cli(*build_line(films, tmp_path / "out"), *given))
    assert "4 always trained" in made
    shards = Shards(tmp_path / "out")
    found = dict(zip(shards.column("image_id"), shards.column("fold"), strict=True))
    assert found == {i: -1 if f == "stage_2" else int(f) for i, f in fold_of.items()}
    for fold in range(3):
        train, validation = shards.fold_rows(fold, always_train=True)
        assert set(shards.indices("always_train")) <= set(train) and not set(train) & set(validation)
    # A film that trains in every fold has no fold, whoever says so.
    published.write_text("".join(f"{i},{number % 3}\n" for number, i in enumerate(ids)))
    line = cli("finalize", tmp_path / "out", "--folds-csv", published).only_line()
    assert "is a film that trains in every fold" in line and str(published) in line


def test_groups_of_tasks_are_hashed_with_the_salt_of_the_build(cli: Cli, films: Path, tmp_path: Path) -> None:
    ids = sorted({path.stem for path in films.rglob("*.dcm")})
    groups = tmp_path / "groups.csv"
    groups.write_text("".join(f"{i},ward {number}\n" for number, i in enumerate(ids)))
    whole, tasks, salt = tmp_path / "whole", tmp_path / "tasks", tmp_path / "secret"
    salt.write_text("for the tests only, and long enough")
    salt.chmod(0o600)
    given = ("--groups", groups, "--duplicate-distance", -1, "--patient-salt-file", salt)
    good(cli(*build_line(films, whole), *given))
    good(cli(*build_line(films, tasks), *given, "--task", "1/1"))
    assert "give --patient-salt-file" in cli("finalize", tasks).only_line()
    good(cli("finalize", tasks, "--patient-salt-file", salt))
    assert Shards(tasks).column("group").tolist() == Shards(whole).column("group").tolist()


def test_published_folds_find_films_by_their_pseudonyms(cli: Cli, films: Path, tmp_path: Path) -> None:
    ids = sorted({path.stem for path in films.rglob("*.dcm")})
    published = tmp_path / "folds.csv"
    published.write_text("".join(f"{i},{number % 2}\n" for number, i in enumerate(ids)))
    groups = tmp_path / "groups.csv"
    groups.write_text("".join(f"{i},{number}\n" for number, i in enumerate(ids)))
    given = ("--pseudonymise", "--groups", groups, "--folds-csv", published, "--duplicate-distance", -1)
    good(cli(*build_line(films, tmp_path / "out"), *given))
    assert sorted(Shards(tmp_path / "out").column("fold")) == sorted(number % 2 for number in range(len(ids)))


def test_near_duplicates_share_a_group_unless_told_otherwise(cli: Cli, films: Path, tmp_path: Path) -> None:
    copy = tmp_path / "films"
    shutil.copytree(films, copy)
    source = pydicom.dcmread(sorted(copy.rglob("*.dcm"))[0])
    image_id = source.SOPInstanceUID
    twin = f"{image_id[:-1]}{(int(image_id[-1]) + 1) % 10}"
    source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = twin
    source.PatientID = source.PatientName = "somebody else"
    source.save_as(copy / "dicom-images" / f"{twin}.dcm")
    with (copy / "train-rle.csv").open("a") as stream:
        stream.write(f"{twin}, -1\n")
    out = tmp_path / "out"
    good(cli(*build_line(copy, out)))
    shards = Shards(out)
    group_of = dict(zip(shards.column("image_id"), shards.column("group"), strict=True))
    assert group_of[twin] == group_of[image_id]
    good(cli("finalize", out, "--duplicate-distance", -1))
    shards = Shards(out)
    group_of = dict(zip(shards.column("image_id"), shards.column("group"), strict=True))
    assert group_of[twin] != group_of[image_id]


def test_always_train_films_have_no_fold_and_are_labelled(cli: Cli, films: Path, tmp_path: Path) -> None:
    first, second = part_of(films, tmp_path / "a", slice(0, 22)), part_of(films, tmp_path / "b", slice(22, 30))
    line = build_line(first, tmp_path / "out", "--always-train", second / "dicom-images")
    line[line.index("--rle") + 1] = films / "train-rle.csv"
    good(cli(*line))
    shards = Shards(tmp_path / "out")
    always = shards.indices("always_train")
    assert len(always) == 8
    assert set(shards.column("fold")[always]) == {-1}
    assert verify(tmp_path / "out") == []


@pytest.mark.parametrize("square", [True, False])
def test_jpeg_shards_hold_the_films_own_streams_and_size(cli: Cli, films: Path, tmp_path: Path, square: bool) -> None:
    source = films
    if not square:
        source = tmp_path / "films"
        (source / "dicom-images").mkdir(parents=True)
        (source / "train-rle.csv").write_text("".join(f"film{n},{'-1' if n % 2 else '100 30'}\n" for n in range(6)))
        for number in range(6):
            picture = np.random.default_rng(number).integers(0, 255, (90, 64), np.uint8)
            cv2.imwrite(str(source / "dicom-images" / f"film{number}.png"), cv2.GaussianBlur(picture, (9, 9), 0))
    line = build_line(source, tmp_path / "out", "--codec", "jpeg", "--duplicate-distance", -1)
    if not square:
        line[1] = "--images"
    text = good(cli(*line))
    shards = Shards(tmp_path / "out")
    assert verify(tmp_path / "out") == []
    assert ("were encoded again" in text) is not square
    for index in range(len(shards)):
        image = cv2.imdecode(np.frombuffer(shards.read(index, "image"), np.uint8), cv2.IMREAD_GRAYSCALE)
        mask = cv2.imdecode(np.frombuffer(shards.read(index, "mask"), np.uint8), cv2.IMREAD_GRAYSCALE)
        grid = shards.grid(index)
        assert image.shape == mask.shape == (grid.height, grid.width)
        assert ((mask > 0) == rle.decode(shards.column("rle")[index], grid.height, grid.width)).all()
        if square:
            path = next(source.rglob(f"{shards.column('image_id')[index]}.dcm"))
            assert (image == pixel_array(path, decoding_plugin="pillow")).all()
        else:
            assert grid.origin == (13, 0)


def identifiers(films: Path) -> set[bytes]:
    """Return every text by which a film or a patient could be found again, of four characters or more."""
    found = set()
    for path in films.rglob("*.dcm"):
        dataset = pydicom.dcmread(path)
        for keyword in ("PatientID", "PatientName", "StudyInstanceUID", "SeriesInstanceUID", "StudyDate", "StudyTime"):
            found.add(str(dataset.get(keyword, "")).encode())
    return {text for text in found if len(text) >= 4} | {str(films).encode(), b".dcm"}


def table_text(out: Path) -> bytes:
    return json.dumps(Shards(out).table.to_pylist()).encode()


@pytest.mark.parametrize("codec", ["png", "jpeg"])
def test_no_identifier_is_in_any_byte_written(cli: Cli, films: Path, tmp_path: Path, codec: str) -> None:
    out = tmp_path / "out"
    good(cli(*build_line(films, out, "--codec", codec, "--pseudonymise")))
    written = b"".join(path.read_bytes() for path in out.rglob("*") if path.is_file()) + table_text(out)
    image_ids = {path.stem.encode() for path in films.rglob("*.dcm")}
    secrets = {(tmp_path / "out.salt").read_bytes().strip()}
    for text in identifiers(films) | image_ids | secrets | {i.replace(b".", b"-") for i in image_ids}:
        assert text not in written
    names = tmp_path / "out.ids.csv"
    assert names.stat().st_mode & 0o077 == 0
    known = dict(csv.reader(names.open()))
    assert {name.encode() for name in known} == image_ids
    assert set(known.values()) == set(Shards(out).column("image_id"))
    for index in range(len(Shards(out))):
        assert Shards(out).read(index, "image")


def test_pseudonymous_films_can_be_appended(cli: Cli, films: Path, tmp_path: Path) -> None:
    first = part_of(films, tmp_path / "first", slice(0, 20))
    good(cli(*build_line(first, tmp_path / "out", "--pseudonymise")))
    rest = part_of(films, tmp_path / "rest", slice(20, 30))
    line = build_line(rest, tmp_path / "out", "--pseudonymise", "--append")
    line[line.index("--rle") + 1] = films / "train-rle.csv"
    good(cli(*line))
    assert len(Shards(tmp_path / "out")) == 30
    assert len(list(csv.reader((tmp_path / "out.ids.csv").open()))) == 30


def test_a_full_disk_is_one_line_and_the_next_run_finishes(
    cli: Cli, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree_of: Any
) -> None:
    good(cli(*build_line(films, tmp_path / "whole/out")))
    salt = ("--patient-salt-file", tmp_path / "whole/out.salt")
    made = 0
    build_sample = build_module.build_sample

    def full_disk(*arguments: Any) -> Any:
        nonlocal made
        made += 1
        if made > 12:
            raise OSError(errno.ENOSPC, "No space left on device")
        return build_sample(*arguments)

    monkeypatch.setattr(build_module, "build_sample", full_disk)
    line = cli(*build_line(films, tmp_path / "out", *salt)).only_line()
    assert "train-00001.tar: No space left on device" in line
    assert not list((tmp_path / "out").glob("*.tmp")) + list((tmp_path / "out").glob(".*.tmp"))
    kept = (tmp_path / "out/train-00000.tar").stat().st_mtime_ns
    monkeypatch.setattr(build_module, "build_sample", build_sample)
    good(cli(*build_line(films, tmp_path / "out", *salt)))
    assert (tmp_path / "out/train-00000.tar").stat().st_mtime_ns == kept
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "whole/out")


def test_an_output_that_cannot_be_written_is_one_line(
    cli: Cli, films: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def read_only(*arguments: Any, **more: Any) -> Any:
        raise OSError(errno.EROFS, "Read-only file system", str(tmp_path / "out/train-00000.tar"))

    monkeypatch.setattr(files.tempfile, "mkstemp", read_only)
    line = cli(*build_line(films, tmp_path / "out", "--patient-salt-file", write_salt(tmp_path))).only_line()
    assert "Read-only file system" in line
    assert "it is mounted read-only: give another folder" in line


def test_a_salt_inside_the_dataset_and_one_that_others_may_read_are_refused(
    cli: Cli, films: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    salt = out / "salt"
    assert (
        f"{salt}: the patient salt must not be in the dataset"
        in cli(*build_line(films, out, "--patient-salt-file", salt)).only_line()
    )
    salt = write_salt(tmp_path)
    salt.chmod(0o644)
    assert f"chmod 600 {salt}" in cli(*build_line(films, out, "--patient-salt-file", salt)).only_line()
    assert not out.exists()


def write_salt(folder: Path) -> Path:
    path = folder / "salt"
    path.write_text("a salt of enough characters\n")
    path.chmod(0o600)
    return path


def test_finalize_signs_no_table_whose_digest_does_not_hold(cli: Cli, own_dataset: Path, tree_of: Any) -> None:
    rows = pq.read_table(own_dataset / TABLE).to_pylist()
    rows[0]["sex"] = "O"
    write_rows(own_dataset / TABLE, rows)
    before = tree_of(own_dataset)
    line = cli("finalize", own_dataset, "--folds", 2).only_line()
    assert "samples.parquet: differs from the manifest's digest" in line
    assert {name: content for name, content in tree_of(own_dataset).items() if ".build" not in str(name)} == before


@pytest.mark.parametrize("moment", ["before the manifest beside it", "before the manifest"])
def test_a_killed_finalize_is_finished_by_the_same_command(
    cli: Cli, own_dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tree_of: Any, moment: str
) -> None:
    whole = Path(shutil.copytree(own_dataset, tmp_path / "whole"))
    good(cli("finalize", whole, "--folds", 2))
    write = finish_module.write_manifest

    def killed(folder: object, *arguments: Any) -> Any:
        if moment == "before the manifest" and folder != own_dataset:
            return write(folder, *arguments)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(finish_module, "write_manifest", killed)
        assert cli("finalize", own_dataset, "--folds", 2).code == 130
    good(cli("finalize", own_dataset, "--folds", 2))
    assert tree_of(own_dataset) == tree_of(whole)


@pytest.mark.parametrize(
    "content", [b"image_id,file,reason\nf\xff,a,b\n", b"image_id,file,reason\na,b\n", b"a\nb,c,\x00\xff"]
)
@pytest.mark.parametrize("name", ["rejected.csv", "unlabelled.csv"])
def test_a_damaged_list_is_refused_in_one_line(cli: Cli, own_dataset: Path, name: str, content: bytes) -> None:
    (own_dataset / name).write_bytes(content)
    assert f"{name}: not a list that a build wrote" in cli("finalize", own_dataset, "--folds", 2).only_line()


def test_a_lock_that_is_a_link_is_not_written_through(cli: Cli, own_dataset: Path, tmp_path: Path) -> None:
    (tmp_path / "precious").write_text("kept")
    (own_dataset / ".build").mkdir()
    (own_dataset / ".build/lock").symlink_to(tmp_path / "precious")
    assert "lock: is a symbolic link" in cli("finalize", own_dataset, "--folds", 2).only_line()
    assert (tmp_path / "precious").read_text() == "kept"


@pytest.mark.parametrize("record", ["train-00000.json", "plan.json"])
def test_a_record_that_was_changed_is_not_built_into_a_table(
    cli: Cli, films: Path, tmp_path: Path, record: str, tree_of: Any
) -> None:
    salt = write_salt(tmp_path)
    lines = {
        name: build_line(films, tmp_path / name / "out", "--patient-salt-file", salt) for name in ("whole", "task")
    }
    good(cli(*lines["whole"]))
    good(cli(*lines["task"], "--task", "1/1"))
    path = tmp_path / "task/out/.build" / record
    content = json.loads(path.read_text())
    if record == "plan.json":
        content["arguments"] = []
    else:
        content["rows"][0]["fold"] = "x"
    path.write_text(json.dumps(content))
    message = "no manifest.json" if record == "plan.json" else "1 shards are not built yet, first train-00000"
    assert message in cli("finalize", tmp_path / "task/out", "--patient-salt-file", salt).only_line()
    good(cli(*lines["task"], "--task", "1/1"))
    good(cli("finalize", tmp_path / "task/out", "--patient-salt-file", salt))
    assert tree_of(tmp_path / "task/out") == tree_of(tmp_path / "whole/out")
