"""Groups and folds of whole builds: published folds, groups, near-duplicates, always-train films."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pydicom
from pydicom.uid import UID
from shard_builds import build_line, good, part_of

from shards.dataset.table import Shards
from shards.dataset.verify import verify

Cli = Callable[..., Any]


def test_published_folds_and_groups_are_used(cli: Cli, films: Path, tmp_path: Path) -> None:
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
    # Films that train in every fold have no fold, whether by CSV or by option.
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


def test_near_duplicates_share_a_group_unless_disabled(cli: Cli, films: Path, tmp_path: Path) -> None:
    copy = tmp_path / "films"
    shutil.copytree(films, copy)
    source = pydicom.dcmread(sorted(copy.rglob("*.dcm"))[0])
    image_id = source.SOPInstanceUID
    twin = f"{image_id[:-1]}{(int(image_id[-1]) + 1) % 10}"
    source.SOPInstanceUID = source.file_meta.MediaStorageSOPInstanceUID = UID(twin)
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
