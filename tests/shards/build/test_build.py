"""Builds from films and labels: exact masks, and the same bytes after rejects and interruptions."""

import csv
import json
import multiprocessing
import subprocess
import sys
import tarfile
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
import webdataset
from images import decode

from shards.build.options import BuildOptions
from shards.dataset.table import Shards
from shards.dataset.verify import verify
from shards.errors import InputError

Mask = npt.NDArray[np.uint8]
Decode = Callable[[list[str], int, int], Mask]
Encode = Callable[[Mask], str]
TreeOf = Callable[[Path], dict[str, str]]

SMALL = BuildOptions(image_size=32, folds=2, samples_per_shard=4)


def listed(path: Path) -> list[list[str]]:
    with path.open(newline="") as stream:
        header, *rows = csv.reader(stream)
    assert header == ["image_id", "file", "reason"]
    return rows


@pytest.fixture(scope="session")
def pngs(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Mask, Mask]]:
    """Eight synthetic films with their masks by name. Two are not square; every second one is positive."""
    rng = np.random.default_rng(5)
    shapes = [(48, 48)] * 6 + [(30, 60), (60, 20)]
    films = {}
    for number, shape in enumerate(shapes):
        mask = np.zeros(shape, np.uint8)
        if number % 2 == 0:
            mask[5 : 9 + number, 3:17] = 1
            mask[-1, -1] = 1
        films[f"film.{number}"] = (rng.integers(0, 256, shape, np.uint8), mask)
    return films


@pytest.fixture
def png_dir(pngs: dict[str, tuple[Mask, Mask]], tmp_path: Path) -> Path:
    for name, (image, mask) in pngs.items():
        for folder, content in (("images/deep", image), ("masks", mask * 255)):
            path = tmp_path / folder / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            assert cv2.imwrite(str(path), content)
    return tmp_path


def write_rle(path: Path, pngs: dict[str, tuple[Mask, Mask]], encode: Encode) -> Path:
    path.write_text("".join(f"{name},{encode(mask)}\n" for name, (_, mask) in pngs.items()))
    return path


def few_films(film_set: Any, folder: Path, count: int = 6) -> Any:
    """Inputs of `count` copied films, which a test may damage."""
    paths = sorted(path for path in film_set.dicom.rglob("*.dcm") if path.stem in film_set.rles)[:count]
    (folder / "few").mkdir()
    lines = []
    for path in paths:
        (folder / "few" / path.name).write_bytes(path.read_bytes())
        lines += [f"{path.stem}, {rle}\n" for rle in film_set.rles[path.stem]]
    (folder / "few.csv").write_text("".join(lines))
    return replace(
        film_set.inputs(replace(SMALL, samples_per_shard=2)),
        dicom=(folder / "few",),
        rle=folder / "few.csv",
        test_dicom=(),
    )


# -- contents


def test_every_table_mask_is_the_or_of_its_csv_rows(dataset: Path, film_set: Any, naive_decode: Decode) -> None:
    shards = Shards(dataset)
    labelled = shards.indices("train", "holdout")
    assert len(labelled) == len(film_set.rles)
    assert set(shards.column("image_id")[labelled]) == set(film_set.rles)
    for index in labelled:
        rows = film_set.rles[shards.column("image_id")[index]]
        expected = naive_decode(rows, 64, 64)
        np.testing.assert_array_equal(naive_decode([shards.column("rle")[index]], 64, 64), expected)
        assert shards.column("mask_area")[index] == expected.sum()
        assert shards.column("has_mask")[index] == expected.any()
        np.testing.assert_array_equal(decode(shards.read(index, "mask"), cv2.IMREAD_UNCHANGED), expected * 255)


def test_overlapping_rows_are_or_ed_and_never_summed(
    png_dir: Path, pngs: dict[str, tuple[Mask, Mask]], Inputs: Any, tmp_path: Path, naive_decode: Decode
) -> None:
    path = tmp_path / "l.csv"
    rows = ["10 20", "15 20", "40 4"]
    others = "".join(f"{name},-1\n" for name in pngs if name != "film.0")
    path.write_text("".join(f"film.0, {row}\n" for row in rows) + others)
    Inputs(images=(png_dir / "images",), rle=path, options=SMALL).build(tmp_path / "out")
    shards = Shards(tmp_path / "out")
    index = shards.column("image_id").tolist().index("film.0")
    assert shards.column("rle")[index] == "10 25 5 4"
    np.testing.assert_array_equal(
        decode(shards.read(index, "mask"), cv2.IMREAD_UNCHANGED) > 0, cv2_area(naive_decode(rows, 48, 48))
    )


def cv2_area(mask: Mask) -> npt.NDArray[np.bool_]:
    """Shrink a mask from 48 to 32 pixels by exact areas: a new pixel covers 1.5 x 1.5 old ones."""
    fine = np.kron(mask, np.ones((2, 2), int))
    return np.asarray(fine.reshape(32, 3, 32, 3).sum(axis=(1, 3)) * 2 >= 9)


def test_the_unlabelled_film_is_listed_and_not_a_sample(dataset: Path, film_set: Any) -> None:
    rows = listed(dataset / "unlabelled.csv")
    assert [row[0] for row in rows] == [film_set.unlabelled]
    assert rows[0][1].endswith(f"{film_set.unlabelled}.dcm")
    assert not rows[0][1].startswith("/")
    assert film_set.unlabelled not in Shards(dataset).column("image_id")
    assert Shards(dataset).manifest["counts"]["unlabelled"] == 1


def test_test_films_have_no_label_no_mask_and_no_fold(dataset: Path, film_set: Any) -> None:
    shards = Shards(dataset)
    test = shards.indices("test")
    assert {path.stem for path in film_set.test_dicom.rglob("*.dcm")} == set(shards.column("image_id")[test])
    assert all(row[name] is None for row in shards.table.take(test).to_pylist() for name in ("fold", "has_mask", "rle"))
    assert {str(name) for name in shards.column("shard")[test]} == {"test-00000.tar"}
    with tarfile.open(dataset / "test-00000.tar") as archive:
        assert not [name for name in archive.getnames() if "mask" in name]


def test_folds_and_holdout_share_no_patient_and_the_holdout_has_no_fold(dataset: Path) -> None:
    rows = Shards(dataset).table.to_pylist()
    homes: dict[str, set[Any]] = {}
    for row in rows:
        if row["split"] != "test":
            homes.setdefault(row["group"], set()).add((row["split"], row["fold"]))
    assert {len(home) for home in homes.values()} == {1}
    assert len(homes) < sum(row["split"] != "test" for row in rows)
    assert {row["fold"] for row in rows if row["split"] == "train"} == {0, 1, 2}
    held = [row for row in rows if row["split"] == "holdout"]
    assert {row["fold"] for row in held} == {None}
    assert 3 <= len(held) <= 9
    assert {row["has_mask"] for row in held} == {True, False}


def test_the_manifest_counts_what_the_table_holds(dataset: Path) -> None:
    shards = Shards(dataset)
    splits = Counter(shards.column("split").tolist())
    counts = shards.manifest["counts"]
    assert {name: counts[name] for name in ("train", "holdout", "test")} == dict(splits)
    assert counts["train"] + counts["holdout"] == 29
    assert counts["positives"] == int(shards.column("has_mask").sum())
    assert sorted(entry["name"] for entry in shards.manifest["shards"]) == sorted(p.name for p in dataset.glob("*.tar"))
    assert [entry["samples"] for entry in shards.manifest["shards"]] == [8, 8, 8, 5, 4]
    assert shards.manifest["image_size"] == 64


def test_nothing_names_a_patient_the_salt_or_a_folder(dataset: Path, film_set: Any) -> None:
    import pydicom

    patients = {str(pydicom.dcmread(p, stop_before_pixels=True).PatientID) for p in film_set.dicom.rglob("*.dcm")}
    table = json.dumps(Shards(dataset).table.to_pylist())
    for path in dataset.rglob("*"):
        content = path.read_bytes().decode("latin-1") + (table if path.suffix == ".parquet" else "")
        for secret in [*patients, str(film_set.dicom), "a salt for the tests only"]:
            assert secret not in content, (path.name, secret)


# -- other readers


def test_plain_webdataset_reads_the_same_samples_and_bytes(dataset: Path) -> None:
    shards = Shards(dataset)
    urls = [f"file:{dataset / entry['name']}" for entry in shards.manifest["shards"]]
    samples = list(webdataset.WebDataset(urls, shardshuffle=False))
    assert [sample["__key__"] for sample in samples] == shards.column("key").tolist()
    for index, sample in enumerate(samples):
        wanted = {"image.png": "image", "json": "json"}
        if shards.column("split")[index] != "test":
            wanted["mask.png"] = "mask"
        assert {name for name in sample if not name.startswith("__")} == set(wanted)
        assert all(sample[name] == shards.read(index, member) for name, member in wanted.items())


@pytest.mark.parametrize("kind", ["train", "test"])
def test_dali_reads_the_same_samples_and_bytes_by_the_index(dataset: Path, kind: str) -> None:
    dali = pytest.importorskip("nvidia.dali", reason="DALI is not installed here")
    import nvidia.dali.fn as fn

    shards = Shards(dataset)
    names = [entry["name"] for entry in shards.manifest["shards"] if entry["name"].startswith(kind)]
    members = ("image", "mask") if kind == "train" else ("image",)
    pipeline = dali.Pipeline(batch_size=1, num_threads=1, device_id=None)
    with pipeline:
        outputs: Any = fn.readers.webdataset(
            paths=[str(dataset / name) for name in names],
            index_paths=[str((dataset / name).with_suffix(".idx")) for name in names],
            ext=[f"{member}.png" for member in members],
            missing_component_behavior="error",
            name="films",
        )
        pipeline.set_outputs(*(outputs if kind == "train" else [outputs]))
    pipeline.build()
    rows = shards.indices("test") if kind == "test" else shards.indices("train", "holdout")
    assert pipeline.epoch_size("films") == len(rows)
    for index in rows:
        for member, batch in zip(members, pipeline.run(), strict=True):
            assert batch.at(0).tobytes() == shards.read(int(index), member)


# -- PNG films


@pytest.mark.parametrize("kind", ["rle", "masks"])
def test_png_films_keep_their_masks_on_their_own_grid(
    png_dir: Path,
    pngs: dict[str, tuple[Mask, Mask]],
    Inputs: Any,
    naive_encode: Encode,
    kind: str,
) -> None:
    label = {"rle": write_rle(png_dir / "l.csv", pngs, naive_encode)} if kind == "rle" else {"masks": png_dir / "masks"}
    summary = Inputs(images=(png_dir / "images",), options=SMALL, **label).build(png_dir / "out")
    assert (summary.train, summary.positives, summary.unlabelled, summary.rejected) == (8, 4, 0, 0)
    rows = {row["image_id"]: row for row in Shards(png_dir / "out").table.to_pylist()}
    assert set(rows) == set(pngs)
    for name, (_, mask) in pngs.items():
        assert rows[name]["rle"] == naive_encode(mask)
        assert (rows[name]["label_height"], rows[name]["label_width"]) == mask.shape
        assert rows[name]["key"].count(".") == 0


def test_films_that_are_not_square_are_padded_and_the_padding_recorded(png_dir: Path, Inputs: Any) -> None:
    Inputs(images=(png_dir / "images",), masks=png_dir / "masks", options=SMALL).build(png_dir / "out")
    shards = Shards(png_dir / "out")
    ids = shards.column("image_id").tolist()
    for name, expected in (("film.6", (8, 8, 0, 0)), ("film.7", (0, 0, 10, 11))):
        index = ids.index(name)
        padding = shards.grid(index).padding
        assert (padding.top, padding.bottom, padding.left, padding.right) == expected
        for member in ("image", "mask"):
            square = decode(shards.read(index, member), cv2.IMREAD_UNCHANGED)
            assert square.shape == (32, 32)
            outside = np.ones((32, 32), bool)
            outside[padding.top : 32 - padding.bottom, padding.left : 32 - padding.right] = False
            assert not square[outside].any()
        assert decode(shards.read(index, "image"), cv2.IMREAD_UNCHANGED)[~outside].mean() > 60


def test_a_png_film_without_mask_file_is_unlabelled(png_dir: Path, Inputs: Any) -> None:
    (png_dir / "masks" / "film.3.png").unlink()
    summary = Inputs(images=(png_dir / "images",), masks=png_dir / "masks", options=SMALL).build(png_dir / "out")
    assert (summary.train, summary.unlabelled) == (7, 1)
    assert [row[0] for row in listed(png_dir / "out" / "unlabelled.csv")] == ["film.3"]


def test_a_mask_file_of_zeros_and_ones_is_never_silently_empty(
    png_dir: Path, pngs: dict[str, tuple[Mask, Mask]], Inputs: Any, naive_encode: Encode
) -> None:
    for name, (_, mask) in pngs.items():
        cv2.imwrite(str(png_dir / "masks" / f"{name}.png"), mask)
    inputs = Inputs(images=(png_dir / "images",), masks=png_dir / "masks", options=SMALL)
    try:
        inputs.build(png_dir / "out")
    except InputError:
        assert len(listed(png_dir / "out" / "rejected.csv")) == 4
        return
    rows = {row["image_id"]: row["rle"] for row in Shards(png_dir / "out").table.to_pylist()}
    assert rows == {name: naive_encode(mask) for name, (_, mask) in pngs.items()}


def test_a_mask_of_another_shape_rejects_its_film(png_dir: Path, Inputs: Any) -> None:
    cv2.imwrite(str(png_dir / "masks" / "film.0.png"), np.zeros((48, 20), np.uint8))
    inputs = Inputs(images=(png_dir / "images",), masks=png_dir / "masks", options=SMALL)
    assert inputs.build(png_dir / "out", max_rejects=1).rejected == 1
    assert [row[0] for row in listed(png_dir / "out" / "rejected.csv")] == ["film.0"]


def test_two_mask_files_for_one_film_are_refused(png_dir: Path, Inputs: Any) -> None:
    (png_dir / "masks" / "other").mkdir()
    (png_dir / "masks" / "other" / "film.0.png").write_bytes((png_dir / "masks" / "film.1.png").read_bytes())
    with pytest.raises(InputError, match=r"film\.0"):
        Inputs(images=(png_dir / "images",), masks=png_dir / "masks", options=SMALL).build(png_dir / "out")


def test_labels_on_another_grid_keep_it(png_dir: Path, pngs: dict[str, Any], Inputs: Any) -> None:
    path = png_dir / "l.csv"
    path.write_text("film.0,10000 50\nfilm.1,-1\nfilm.2,16383 1\nfilm.4,-1\n")
    options = replace(SMALL, label_size=128)
    Inputs(images=(png_dir / "images",), rle=path, options=options).build(png_dir / "out")
    rows = {row["image_id"]: row for row in Shards(png_dir / "out").table.to_pylist()}
    assert {(row["label_height"], row["label_width"]) for row in rows.values()} == {(128, 128)}
    assert (rows["film.0"]["rle"], rows["film.2"]["rle"]) == ("10000 50", "16383 1")


# -- reproducibility


def test_two_builds_of_the_same_films_are_byte_identical(
    film_set: Any, dataset: Path, tmp_path: Path, tree_of: TreeOf
) -> None:
    film_set.inputs().build(tmp_path / "elsewhere")
    assert tree_of(tmp_path / "elsewhere") == tree_of(dataset)


@pytest.mark.slow
def test_two_workers_write_the_bytes_of_one(film_set: Any, dataset: Path, tmp_path: Path, tree_of: TreeOf) -> None:
    film_set.inputs().build(tmp_path / "out", workers=2)
    assert tree_of(tmp_path / "out") == tree_of(dataset)


def test_another_salt_changes_the_groups_but_no_tar_and_no_fold(film_set: Any, dataset: Path, tmp_path: Path) -> None:
    film_set.inputs().build(tmp_path / "out", salt=b"quite another salt")
    ours, theirs = Shards(dataset), Shards(tmp_path / "out")
    assert ours.manifest["shards"] == theirs.manifest["shards"]
    assert ours.column("fold").tolist() == theirs.column("fold").tolist()
    assert set(ours.column("group")).isdisjoint(theirs.column("group"))


def test_other_folds_touch_no_tar(film_set: Any, dataset: Path, tmp_path: Path) -> None:
    film_set.inputs(BuildOptions(image_size=64, folds=2, samples_per_shard=8)).build(tmp_path / "out")
    assert Shards(dataset).manifest["shards"] == Shards(tmp_path / "out").manifest["shards"]


def test_a_rerun_of_a_finished_build_changes_no_byte(film_set: Any, own_dataset: Path, tree_of: TreeOf) -> None:
    before = {path: path.stat().st_mtime_ns for path in own_dataset.rglob("*")}
    tree = tree_of(own_dataset)
    summary = film_set.inputs().build(own_dataset)
    assert summary.reused_shards == summary.shards == 5
    assert tree_of(own_dataset) == tree
    assert {path: path.stat().st_mtime_ns for path in own_dataset.rglob("*")} == before


def test_a_rerun_reports_a_new_film_without_a_label(film_set: Any, tmp_path: Path) -> None:
    inputs = few_films(film_set, tmp_path)
    inputs.build(tmp_path / "out")
    extra = next(path for path in film_set.dicom.rglob("*.dcm") if path.stem == film_set.unlabelled)
    (tmp_path / "few" / extra.name).write_bytes(extra.read_bytes())
    try:
        summary = inputs.build(tmp_path / "out")
    except InputError as error:
        assert "other films" in str(error)
    else:
        assert summary.unlabelled == len(listed(tmp_path / "out" / "unlabelled.csv")) == 1


# -- interrupted builds


def test_an_interrupted_build_resumes_and_ends_with_the_same_bytes(
    film_set: Any, dataset: Path, tmp_path: Path, tree_of: TreeOf
) -> None:
    out, heard = tmp_path / "out", []

    def stop_after_two(films: int) -> None:
        heard.append(films)
        if len(heard) == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        film_set.inputs().build(out, on_film=stop_after_two)
    assert not (out / "manifest.json").exists()
    written = {name: (out / name).stat().st_mtime_ns for name in ("train-00000.tar", "train-00001.tar")}
    counted: list[int] = []
    summary = film_set.inputs().build(out, on_film=counted.append)
    assert summary.reused_shards == 2
    assert sum(counted) == 33
    assert {name: (out / name).stat().st_mtime_ns for name in written} == written
    assert tree_of(out) == tree_of(dataset)


def test_a_killed_worker_is_one_line_and_the_build_resumes(
    film_set: Any, dataset: Path, tmp_path: Path, tree_of: TreeOf
) -> None:
    inputs, out = film_set.inputs(), tmp_path / "out"

    def kill_the_workers(films: int) -> None:
        for worker in multiprocessing.active_children():
            worker.kill()

    with pytest.raises(InputError, match=r"a worker of the build was killed; out of memory.*fewer --workers"):
        inputs.build(out, workers=2, on_film=kill_the_workers)
    inputs.build(out)
    assert tree_of(out) == tree_of(dataset)


KILLED = """
import os, sys
from pathlib import Path
from shards.build import build as module
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions
from shards.build.sources import find_sources

dicom, rle, out, films = Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), int(sys.argv[4])
real, seen = module.build_sample, []

def build_sample(*arguments):
    seen.append(None)
    if len(seen) > films:
        os.kill(os.getpid(), 9)
    return real(*arguments)

module.build_sample = build_sample
sources = find_sources(FilmFolders(dicom=[dicom]), LabelFiles(rle))
options = BuildOptions(image_size=32, folds=2, samples_per_shard=2)
module.build(sources, out, options, b"a salt for the tests only")
"""


@pytest.mark.slow
@pytest.mark.parametrize("films", [1, 3], ids=["in the first shard", "in the second shard"])
def test_a_killed_build_resumes_and_ends_with_the_same_files(
    film_set: Any, tmp_path: Path, tree_of: TreeOf, films: int
) -> None:
    inputs = few_films(film_set, tmp_path)
    inputs.build(tmp_path / "whole")
    command = [sys.executable, "-c", KILLED, *map(str, (inputs.dicom[0], inputs.rle, tmp_path / "out", films))]
    killed = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert killed.returncode == -9, killed.stderr
    inputs.build(tmp_path / "out")
    assert tree_of(tmp_path / "out") == tree_of(tmp_path / "whole")


def test_an_unfinished_build_with_other_arguments_leaves_no_shard_behind(film_set: Any, tmp_path: Path) -> None:
    inputs, out = few_films(film_set, tmp_path), tmp_path / "out"

    def stop_after_three_shards(films: int) -> None:
        if len(list(out.glob("*.tar"))) == 3:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        inputs.build(out, on_film=stop_after_three_shards)
    try:
        replace(inputs, options=replace(inputs.options, samples_per_shard=512)).build(out)
    except InputError:
        return  # a refusal is also good
    named = {entry["name"] for entry in Shards(out).manifest["shards"]}
    assert {path.name for path in out.glob("*.tar")} == named
    assert {path.with_suffix(".tar").name for path in out.glob("*.idx")} == named


@pytest.mark.parametrize("change", [{"image_size": 96}, {"folds": 4}, {"seed": 2}, {"samples_per_shard": 9}])
def test_another_build_into_the_same_folder_is_refused(
    film_set: Any, own_dataset: Path, tree_of: TreeOf, change: dict[str, int]
) -> None:
    inputs, before = film_set.inputs(), tree_of(own_dataset)
    with pytest.raises(InputError, match="--out") as error:
        replace(inputs, options=replace(inputs.options, **change)).build(own_dataset)
    assert str(own_dataset) in str(error.value)
    assert tree_of(own_dataset) == before


def test_a_folder_of_something_else_is_refused(film_set: Any, tmp_path: Path, tree_of: TreeOf) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "thesis.tex").write_text("years of work")
    with pytest.raises(InputError, match="not empty"):
        film_set.inputs().build(tmp_path / "out")
    assert set(tree_of(tmp_path / "out")) == {"thesis.tex"}


# -- rejected films


def test_a_broken_film_is_listed_with_its_reason_and_fails_the_build(film_set: Any, tmp_path: Path) -> None:
    inputs = few_films(film_set, tmp_path)
    broken = sorted((tmp_path / "few").iterdir())[1]
    broken.write_bytes(broken.read_bytes()[:900])
    with pytest.raises(InputError, match=r"1 films? rejected.*rejected\.csv") as error:
        inputs.build(tmp_path / "out")
    assert broken.name in str(error.value)
    rows = listed(tmp_path / "out" / "rejected.csv")
    assert [row[:2] for row in rows] == [[broken.stem, broken.name]]
    assert rows[0][2]
    assert not (tmp_path / "out" / "manifest.json").exists()


def test_as_many_rejects_as_allowed_are_left_out(film_set: Any, tmp_path: Path) -> None:
    inputs = few_films(film_set, tmp_path)
    broken = sorted((tmp_path / "few").iterdir())[1]
    broken.write_bytes(b"no film")
    summary = inputs.build(tmp_path / "out", max_rejects=1)
    assert (summary.train, summary.rejected) == (5, 1)
    assert broken.stem not in Shards(tmp_path / "out").column("image_id")
    assert [row[0] for row in listed(tmp_path / "out" / "rejected.csv")] == [broken.stem]
    assert verify(tmp_path / "out") == []


def test_a_shard_of_rejected_films_only_is_not_written(film_set: Any, tmp_path: Path) -> None:
    inputs = few_films(film_set, tmp_path)
    for path in sorted((tmp_path / "few").iterdir())[2:4]:
        path.write_bytes(b"no film")
    inputs.build(tmp_path / "out", max_rejects=2)
    assert sorted(path.name for path in (tmp_path / "out").glob("*.tar")) == ["train-00000.tar", "train-00002.tar"]
    assert len(Shards(tmp_path / "out")) == 4
    assert verify(tmp_path / "out") == []


def test_films_that_are_all_rejected_leave_a_dataset_without_films(film_set: Any, tmp_path: Path) -> None:
    inputs = few_films(film_set, tmp_path)
    for path in (tmp_path / "few").iterdir():
        path.write_bytes(b"no film")
    assert inputs.build(tmp_path / "out", max_rejects=6).rejected == 6
    assert len(Shards(tmp_path / "out")) == 0 and len(listed(tmp_path / "out" / "rejected.csv")) == 6
    assert verify(tmp_path / "out") == []


def test_a_film_that_exists_twice_is_rejected_once(film_set: Any, tmp_path: Path) -> None:
    inputs = few_films(film_set, tmp_path)
    first = sorted((tmp_path / "few").iterdir())[0]
    (tmp_path / "few" / "again").mkdir()
    (tmp_path / "few" / "again" / first.name).write_bytes(first.read_bytes())
    summary = inputs.build(tmp_path / "out", max_rejects=1)
    assert (summary.train, summary.rejected) == (6, 1)


def test_a_failed_build_resumes_once_its_film_is_fixed(film_set: Any, tmp_path: Path, tree_of: TreeOf) -> None:
    inputs = few_films(film_set, tmp_path)
    inputs.build(tmp_path / "whole")
    victim = sorted((tmp_path / "few").iterdir())[1]
    good = victim.read_bytes()
    victim.write_bytes(b"no film")
    with pytest.raises(InputError):
        inputs.build(tmp_path / "out")
    victim.write_bytes(good)
    assert inputs.build(tmp_path / "out").reused_shards == 2
    ours, theirs = tree_of(tmp_path / "out"), tree_of(tmp_path / "whole")
    # The manifests differ in the digest of the inputs, which includes the films' modification times.
    del ours["manifest.json"], theirs["manifest.json"]
    assert ours == theirs


# -- real films


def test_the_siim_sample_gives_ten_samples_five_of_them_positive(
    real_data: Path, Inputs: Any, tmp_path: Path, naive_decode: Decode
) -> None:
    folder = real_data / "siim_sample"
    table = folder / "train-rle-sample.csv"
    inputs = Inputs(dicom=(folder,), rle=table, options=BuildOptions(image_size=128, folds=5))
    summary = inputs.build(tmp_path / "out")
    assert (summary.train, summary.positives, summary.rejected, summary.unlabelled) == (10, 5, 0, 0)
    wanted: dict[str, list[str]] = {}
    for line in table.read_text(encoding="utf-8-sig").splitlines():
        image_id, text = line.split(",")
        wanted.setdefault(image_id.strip(), []).append(text.strip())
    rows = {row["image_id"]: row for row in Shards(tmp_path / "out").table.to_pylist()}
    assert set(rows) == set(wanted)
    for image_id, texts in wanted.items():
        row = rows[image_id]
        assert (row["label_height"], row["label_width"]) == (1024, 1024)
        expected = naive_decode(texts, 1024, 1024)
        np.testing.assert_array_equal(naive_decode([row["rle"]], 1024, 1024), expected)
        assert row["mask_area"] == expected.sum()
    assert {row["view"] for row in rows.values()} <= {"PA", "AP"}
    assert verify(tmp_path / "out") == []
