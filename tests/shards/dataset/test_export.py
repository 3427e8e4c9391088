"""Exports for other tools: exact masks, films of the masks' size, the same folds, and no partial output."""

import csv
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pyarrow.parquet as pq
import pytest
from edited_dataset import resign, write_rows
from images import decode

from shards.dataset import export
from shards.dataset.export import export_nnunet, export_png, fold_lists
from shards.dataset.table import TABLE, Shards
from shards.errors import InputError

Image = npt.NDArray[np.uint8]
Decode = Callable[[list[str], int, int], Image]


def read(path: Path) -> Image:
    image = cv2.imread(str(path), cv2.IMREAD_UNCHANGED)
    assert image is not None, path
    return np.asarray(image, np.uint8)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def edit(folder: Path, change: Callable[[int, dict[str, Any]], dict[str, Any]]) -> Shards:
    """Rewrite the table of a dataset row by row."""
    rows = pq.read_table(folder / TABLE).to_pylist()
    write_rows(folder / TABLE, [{**row, **change(number, row)} for number, row in enumerate(rows)])
    resign(folder)
    return Shards(folder)


@pytest.fixture
def tall(Inputs: Any, tmp_path: Path) -> tuple[Shards, dict[str, Image], dict[str, Image]]:
    """Films of 90 x 60 pixels, stored in squares of 64, with masks on their own grids; and both."""
    rng = np.random.default_rng(0)
    films, masks = {}, {}
    for number in range(14):
        film = np.asarray(cv2.resize(rng.integers(40, 200, (6, 4), np.uint8), (60, 90)), np.uint8)
        mask = np.zeros((90, 60), np.uint8)
        mask[10 + number : 40, 30 : 50 + number] = number % 2
        for kind, image in (("films", film), ("masks", mask * np.uint8(255))):
            (tmp_path / kind).mkdir(exist_ok=True)
            cv2.imwrite(str(tmp_path / kind / f"tall.{number}.png"), image)
        films[f"tall.{number}"], masks[f"tall.{number}"] = film, mask
    Inputs(images=(tmp_path / "films",), masks=tmp_path / "masks").build(tmp_path / "shards")
    return Shards(tmp_path / "shards"), films, masks


def test_png_masks_are_the_labels_to_the_pixel(
    dataset: Path, film_set: Any, tmp_path: Path, naive_decode: Decode
) -> None:
    shards = Shards(dataset)
    export_png(shards, tmp_path / "out")
    tests = {f"{shards.column('image_id')[index]}.png" for index in shards.indices("test")}
    everything = {f"{image_id}.png" for image_id in shards.column("image_id")}
    assert names(tmp_path / "out") == {"images", "masks", "films.csv"}
    assert names(tmp_path / "out/images") == everything
    assert names(tmp_path / "out/masks") == everything - tests == {f"{image_id}.png" for image_id in film_set.rles}
    for image_id, rles in film_set.rles.items():
        mask = read(tmp_path / "out/masks" / f"{image_id}.png")
        np.testing.assert_array_equal(mask, 255 * naive_decode(rles, 64, 64))
    stored = decode(shards.read(0, "image"), cv2.IMREAD_UNCHANGED)
    np.testing.assert_array_equal(read(tmp_path / "out/images" / f"{shards.column('image_id')[0]}.png"), stored)


def test_films_of_any_shape_get_their_masks_size(tall: Any, tmp_path: Path) -> None:
    shards, films, masks = tall
    export_png(shards, tmp_path / "png")
    folder = export_nnunet(shards, tmp_path / "nnunet")
    keys = dict(zip(shards.column("image_id"), shards.column("key"), strict=True))
    for image_id, mask in masks.items():
        np.testing.assert_array_equal(read(tmp_path / "png/masks" / f"{image_id}.png"), 255 * mask)
        label = next(folder.glob(f"labelsT?/{keys[image_id]}.png"))
        np.testing.assert_array_equal(read(label), mask)
        for path in (
            tmp_path / "png/images" / f"{image_id}.png",
            next(folder.glob(f"imagesT?/{keys[image_id]}_0000.png")),
        ):
            image = read(path)
            assert image.shape == (90, 60)
            # Smooth films survive a size of 64 pixels; a shifted or still padded film would differ.
            assert np.abs(image.astype(int) - films[image_id]).mean() < 2


def test_the_list_of_films_leaves_blank_what_is_unknown(dataset: Path, tmp_path: Path) -> None:
    shards = Shards(dataset)
    export_png(shards, tmp_path)
    with (tmp_path / "films.csv").open(newline="") as stream:
        rows = list(csv.DictReader(stream))
    assert list(rows[0]) == ["image_id", "group", "split", "fold", "has_mask", "mask_area", "view", "sex", "age"]
    assert len(rows) == len(shards)
    for index, row in enumerate(rows):
        split = row["split"]
        assert (row["image_id"], split) == (shards.column("image_id")[index], shards.column("split")[index])
        assert row["group"] == shards.column("group")[index]
        assert row["fold"] == (str(shards.column("fold")[index]) if split == "train" else "")
        area = shards.column("mask_area")[index]
        wanted = ("", "") if split == "test" else (str(int(area > 0)), str(area))
        assert (row["has_mask"], row["mask_area"]) == wanted
        assert (row["view"], row["sex"]) == (shards.column("view")[index], shards.column("sex")[index])
        age = shards.column("age")[index]
        assert row["age"] == ("" if age < 0 else str(age))


def test_nnunet_finds_its_raw_layout(dataset: Path, tmp_path: Path, naive_decode: Decode, film_set: Any) -> None:
    shards = Shards(dataset)
    folder = export_nnunet(shards, tmp_path / "raw", dataset_id=7, name="Chest-x")
    assert folder == tmp_path / "raw/Dataset007_Chest-x"
    keys, ids = shards.column("key"), shards.column("image_id")
    train, holdout, test = (set(keys[shards.indices(split)]) for split in ("train", "holdout", "test"))
    assert min(map(len, (train, holdout, test))) > 0
    assert names(folder / "imagesTr") == {f"{key}_0000.png" for key in train}
    assert names(folder / "labelsTr") == {f"{key}.png" for key in train}
    assert names(folder / "imagesTs") == {f"{key}_0000.png" for key in holdout | test}
    assert names(folder / "labelsTs") == {f"{key}.png" for key in holdout}
    for key, image_id in zip(keys, ids, strict=True):
        if key not in test:
            path = folder / f"labels{'Tr' if key in train else 'Ts'}" / f"{key}.png"
            np.testing.assert_array_equal(read(path), naive_decode(film_set.rles[image_id], 64, 64))
    description = json.loads((folder / "dataset.json").read_text())
    assert description["labels"] == {"background": 0, "pneumothorax": 1}
    assert (description["numTraining"], description["file_ending"]) == (len(train), ".png")
    assert list(description["channel_names"]) == ["0"]
    assert json.loads((folder / "splits_final.json").read_text()) == fold_lists(shards)
    with (folder / "films.csv").open(newline="") as stream:
        assert {row["key"]: row["image_id"] for row in csv.DictReader(stream)} == dict(zip(keys, ids, strict=True))


def test_folds_are_those_of_the_table(dataset: Path) -> None:
    shards = Shards(dataset)
    keys, folds = shards.column("key"), shards.column("fold")
    films = shards.indices("train")
    assert fold_lists(shards) == [
        {
            "train": [keys[index] for index in films if folds[index] != fold],
            "val": [keys[index] for index in films if folds[index] == fold],
        }
        for fold in range(3)
    ]


def test_always_train_films_are_kept_from_the_fold_of_their_group(own_dataset: Path, tmp_path: Path) -> None:
    before = Shards(own_dataset)
    first, second, other = before.indices("train")[:3].tolist()
    fold = int(before.column("fold")[other])

    def change(number: int, row: dict[str, Any]) -> dict[str, Any]:
        if number not in (first, second):
            return {}
        group = before.column("group")[other] if number == first else "stranger"
        return {"split": "always_train", "fold": None, "group": group}

    shards = edit(own_dataset, change)
    bound, free = shards.column("key")[first], shards.column("key")[second]
    lists = fold_lists(shards)
    for number, parts in enumerate(lists):
        assert (bound in parts["train"]) == (number != fold)
        assert free in parts["train"]
        assert not {bound, free} & set(parts["val"])
    folder = export_nnunet(shards, tmp_path / "raw")
    assert {f"{bound}.png", f"{free}.png"} <= names(folder / "labelsTr")
    described = json.loads((folder / "dataset.json").read_text())
    assert described["numTraining"] == len(names(folder / "imagesTr")) == len(before.indices("train"))


@pytest.mark.parametrize("run", [export_png, export_nnunet])
def test_a_used_folder_is_refused_and_kept(
    dataset: Path, tmp_path: Path, tree_of: Any, run: Callable[[Shards, Path], Any]
) -> None:
    (tmp_path / "mine").write_text("kept")
    for out in (tmp_path, tmp_path / "mine"):
        with pytest.raises(InputError, match=f"^{out}: exists and is not an empty folder"):
            run(Shards(dataset), out)
    assert set(tree_of(tmp_path)) == {"mine"}


@pytest.mark.parametrize("run", [export_png, export_nnunet])
def test_a_stopped_export_has_no_description_and_no_half_file(
    dataset: Path, tmp_path: Path, tree_of: Any, monkeypatch: pytest.MonkeyPatch, run: Callable[..., Any]
) -> None:
    heard = []
    run(Shards(dataset), tmp_path / "whole", on_film=lambda: heard.append(1))
    assert len(heard) == len(Shards(dataset))
    whole = tree_of(tmp_path / "whole")
    film, stopped = export.film_on_label_grid, OSError(28, "No space left on device")

    def fail_late(shards: Shards, index: int) -> Image:
        if index == 20:
            raise stopped
        return film(shards, index)

    monkeypatch.setattr(export, "film_on_label_grid", fail_late)
    with pytest.raises(OSError, match="No space"):
        run(Shards(dataset), tmp_path / "part")
    part = tree_of(tmp_path / "part")
    assert 20 <= len(part) < len(whole)
    assert all(path.endswith(".png") and whole[path] == digest for path, digest in part.items())


@pytest.mark.parametrize("image_id", ["../up", "a/b", "..", "", "x" * 250])
def test_an_image_id_that_is_no_file_name_is_refused(own_dataset: Path, tmp_path: Path, image_id: str) -> None:
    shards = edit(own_dataset, lambda number, row: {"image_id": image_id} if number == 4 else {})
    with pytest.raises(InputError, match="cannot name a file"):
        export_png(shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [({"dataset_id": 0}, "dataset id 0"), ({"dataset_id": 1000}, "dataset id 1000"), ({"name": "a/b"}, "'a/b'")],
)
def test_nnunet_names_that_cannot_be_are_refused(
    dataset: Path, tmp_path: Path, arguments: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        export_nnunet(Shards(dataset), tmp_path / "out", **arguments)
    assert not (tmp_path / "out").exists()


def test_a_dataset_without_training_films_has_no_folds(own_dataset: Path, tmp_path: Path) -> None:
    shards = edit(own_dataset, lambda number, row: {"split": "holdout", "fold": None} if row["split"] != "test" else {})
    with pytest.raises(InputError, match="no training films"):
        export_nnunet(shards, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_films_csv_brings_groups_and_folds_back(cli: Any, film_set: Any, tmp_path: Path) -> None:
    """From films to shards, to PNGs, and to shards again: the same labels, folds, holdout and patients."""
    first, again, png = tmp_path / "first", tmp_path / "again", tmp_path / "png"
    published = tmp_path / "folds.csv"
    made = ("--dicom", film_set.dicom, "--rle", film_set.labels, "--test-dicom", film_set.test_dicom)
    settings = ("--image-size", 64, "--workers", 1)
    assert cli("build", *made, "--out", first, "--folds", 3, "--holdout", 0.2, *settings).code == 0
    # Two films train in every fold, in the words of published files.
    before = Shards(first)
    chosen = before.column("image_id")[before.indices("train")][:2].tolist()
    folds = zip(before.column("image_id"), before.column("fold"), before.column("split"), strict=True)
    rows = [f"{i}.png,{'stage_2' if i in chosen else fold},0" for i, fold, split in folds if split != "test"]
    published.write_text("\n".join(["fname,fold,exist_labels", *rows]))
    assert cli("finalize", first, "--folds-csv", published).code == 0
    assert cli("export", first, "--png", png).code == 0

    films = ("--images", png / "images", "--masks", png / "masks", "--out", again, *settings)
    found = cli("build", *films, "--folds-csv", png / "films.csv", "--groups", png / "films.csv")
    assert (found.code, found.err) == (0, "")
    before, after = Shards(first), Shards(again)
    row_of = {image_id: row for row, image_id in enumerate(after.column("image_id"))}
    labelled = before.indices("train", "holdout", "always_train")
    assert len(after) == len(labelled) == len(before) - 4, "test films have no mask"
    assert sorted(before.column("image_id")[before.indices("always_train")]) == sorted(chosen)
    rows_after = np.array([row_of[before.column("image_id")[row]] for row in labelled])
    for column in ("split", "fold", "rle", "mask_area", "has_mask"):
        assert after.column(column)[rows_after].tolist() == before.column(column)[labelled].tolist(), column
    pairs = set(zip(before.column("group")[labelled], after.column("group")[rows_after], strict=True))
    assert len(pairs) == len({old for old, _ in pairs}) == len({new for _, new in pairs}) < len(labelled)


@pytest.mark.parametrize("to", ["png", "nnunet"])
def test_no_cell_of_the_list_of_films_is_a_formula(own_dataset: Path, tmp_path: Path, to: str) -> None:
    texts = {"view": "=1+1", "sex": "@x", "group": "+cmd"}
    shards = edit(own_dataset, lambda number, _: {**texts, **({"image_id": "=x;=y"} if number == 0 else {})})
    folder = tmp_path / "out"
    folder = export_nnunet(shards, folder) if to == "nnunet" else folder
    if to == "png":
        export_png(shards, folder)
    cells = [cell for row in csv.reader((folder / "films.csv").open(newline="")) for cell in row]
    assert "'=1+1" in cells and not any(cell.startswith(("=", "@", "+")) or ";=" in cell for cell in cells)


def test_two_films_of_one_name_are_not_written_over_each_other(own_dataset: Path, tmp_path: Path) -> None:
    shards = edit(own_dataset, lambda number, row: {"image_id": "same"} if number < 2 else {})
    with pytest.raises(InputError, match=r"same\.png: is the name of two films"):
        export_png(shards, tmp_path / "out")
