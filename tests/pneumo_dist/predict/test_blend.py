"""A blend of networks whose inputs differ in side, channels and normalisation, from runs and from a bundle."""

import json
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from film_files import noise, write_film
from images import decode
from tiny_runs import MIXED, Trained, direct, row_of, stored

from pneumo_dist.cli.app import app
from pneumo_dist.data.films import Batch, FilmReader
from pneumo_dist.data.loader import eval_batches
from pneumo_dist.data.plan import Indices
from pneumo_dist.maps.store import Predictions
from pneumo_dist.predict import predict as predict_module
from pneumo_dist.predict.bundle import read_bundle, write_bundle
from pneumo_dist.scoring.masks import Rule, apply_rule, label_map
from pneumo_dist.scoring.triplet import Triplet
from shards.console import EXIT_DONE, run
from shards.dataset.table import Shards

TO_SOURCE = cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP


def film_for(experiment: str, grey: np.ndarray[Any, Any]) -> torch.Tensor:
    """Return a stored film of 64 px as input of an experiment of MIXED, (1, channels, side, side)."""
    if experiment == "other":
        blocks = grey.astype(int).reshape(32, 2, 32, 2).sum((1, 3))
        pixels = torch.from_numpy(((blocks + 2) // 4).astype(np.float32) / 255)  # to whole grey levels, as films are
        return torch.stack([pixels, pixels, pixels / 0.5])[None]
    if experiment == "head":
        grey = cv2.warpAffine(grey, np.array([[2 / 3, 0, -1 / 6], [0, 2 / 3, -1 / 6]]), (96, 96), flags=TO_SOURCE)
    return torch.from_numpy((grey.astype(np.float32) / 255 - 0.485) / 0.229)[None, None]


@pytest.mark.parametrize("image_size", [64, pytest.param(96, marks=pytest.mark.slow)])
def test_mixed_blend_is_the_mean_of_maps_at_the_stored_size_rounded_once(
    trained: Trained, tmp_path: Path, image_size: int
) -> None:
    tta = {"scales": [1, 2], "scale_weights": [3, 1]}
    ensemble = trained.ensemble(members=MIXED, tta=tta, image_size=image_size)
    assert [each.image_size for each in ensemble.inputs] == [64, 32, 96]
    for row, p8 in stored(trained, ensemble, tmp_path):
        grey = decode(trained.shards.read(row_of(trained.shards, row["key"]), "image"))
        mean, classes = np.zeros((image_size, image_size)), 0.0
        for network in ensemble.networks:
            name = network.name.split("/")[0]
            film = film_for(name, grey)
            share = {"plain": 3 / 6, "other": 2 / 6, "head": 1 / 6}[name] / 2  # of two folds
            for scale, weight in ((1, 3 / 4), (2, 1 / 4)):
                side = film.shape[-1] * scale
                view = film if scale == 1 else F.interpolate(film, (side, side), mode="bilinear")
                for flip in (False, True):
                    seen, probability = direct(network, view.flip(-1) if flip else view)
                    seen = np.ascontiguousarray(seen[:, ::-1] if flip else seen)
                    if side != image_size:
                        shape = (image_size, image_size)
                        maps = torch.from_numpy(seen)[None, None]
                        seen = F.interpolate(maps, shape, mode="bilinear", antialias=side > image_size)[0, 0].numpy()
                    mean += share * weight / 2 * seen
                    classes += weight / 2 / 2 * (probability or 0.0)
        # Half a level is the one rounding, the rest that of float32.
        assert np.abs(p8 - 255 * mean).max() <= 0.5 + 1e-3
        assert row["class_probability"] == pytest.approx(classes, abs=1e-5)


@pytest.mark.parametrize(("names", "reads"), [(["plain", "head"], 1), (["plain", "other", "head"], 2)])
def test_films_are_read_once_for_each_distinct_input(
    trained: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, names: list[str], reads: int
) -> None:
    members = [{"experiment": name} for name in names]
    ensemble = trained.ensemble(members=members, loader="dali", eval_batch=5)
    counts = Counter[int]()

    def counted(reader: FilmReader, batches: Iterable[Indices], batch: int) -> Iterator[Batch]:
        # The films are read in another process.
        listed = list(batches)
        counts.update(int(row) for rows in listed for row in rows)
        return eval_batches(reader, listed, batch)

    monkeypatch.setattr(predict_module, "eval_batches", counted)
    assert len(stored(trained, ensemble, tmp_path)) == 5
    assert counts == dict.fromkeys(trained.shards.indices("test").tolist(), reads)


def test_bundle_of_a_mixed_blend_predicts_what_its_runs_predict(trained: Trained, tmp_path: Path) -> None:
    tta = {"scales": [1, 2], "scale_weights": [3, 1]}
    ensemble = trained.ensemble(members=MIXED, tta=tta, image_size=128)
    write_bundle(tmp_path / "bundle", ensemble, Rule(Triplet(0.7, 8, 0.3)), None)
    again, _ = read_bundle(tmp_path / "bundle")
    assert (again.inputs, again.image_size, again.tta) == (ensemble.inputs, 128, ensemble.tta)
    assert [network.input for network in again.networks] == [network.input for network in ensemble.networks]
    # The last bits of DALI's normalised pixels, the default of bundles, are not those of the torch loader.
    again = replace(again, data=again.data.model_copy(update={"loader": "torch"}))
    one, other = stored(trained, ensemble, tmp_path / "runs"), stored(trained, again, tmp_path / "again")
    assert one.digest == other.digest and one.manifest == other.manifest
    with zipfile.ZipFile(tmp_path / "bundle") as archive:
        card = archive.read("MODEL_CARD.md").decode()
    for number, row in enumerate(("64 px | 1 | 0.485 | 0.229", "32 px | 3 | 0, 0, 0 | 1, 1, 0.5", "96 px | 1 | 0.485")):
        assert f"| {number} | {row}" in card
    for network, number in zip(ensemble.networks, (0, 0, 1, 1, 2, 2), strict=True):
        assert any(f"| {network.name} |" in line and f" | {number} | " in line for line in card.splitlines())
    assert "views 1x (0.75), 2x (0.25) and flipped, is computed at 128 px" in card


# The same checkpoints twice, with views of their own; the third member has those of the ensemble.
VIEWS: list[dict[str, Any]] = [
    {"experiment": "plain", "weight": 3, "top_k": 1, "tta": {"hflip": False}},
    {"experiment": "plain", "weight": 2, "top_k": 1, "tta": {"hflip": False, "scales": [1.5]}},
    {"experiment": "other", "weight": 1, "top_k": 1},
]


def test_members_with_views_of_their_own_add_up_to_their_mean(trained: Trained, tmp_path: Path) -> None:
    whole = stored(trained, trained.ensemble(members=VIEWS, image_size=64), tmp_path / "whole")
    alone = []
    for number, member in enumerate(VIEWS):
        views = {"tta": member["tta"]} if "tta" in member else {}
        plain = {key: value for key, value in member.items() if key != "tta"}
        ensemble = trained.ensemble(members=[plain], image_size=64, **views)
        alone.append(stored(trained, ensemble, tmp_path / str(number)))
    for index in range(len(whole)):
        maps = [predictions.p8(index).astype(np.float64) for predictions in alone]
        mean = sum(weight * each for weight, each in zip((3, 2, 1), maps, strict=True)) / 6
        # Each stored map was rounded, and so was the mean.
        assert np.abs(whole.p8(index) - mean).max() <= 1.0
        assert np.abs(maps[0] - maps[1]).max() > 1, "the views differ"


def test_a_member_with_the_views_of_the_ensemble_changes_no_bit(trained: Trained, tmp_path: Path) -> None:
    tta = {"hflip": False, "scales": [1.0, 1.5]}
    one = stored(trained, trained.ensemble(tta=tta), tmp_path / "one")
    other = stored(trained, trained.ensemble(members=[{"experiment": "plain", "tta": tta}]), tmp_path / "other")
    assert one.digest == other.digest


def test_bundle_keeps_the_views_of_members_and_each_checkpoint_once(trained: Trained, tmp_path: Path) -> None:
    ensemble = trained.ensemble(members=VIEWS, image_size=64)
    write_bundle(tmp_path / "bundle", ensemble, Rule(Triplet(0.7, 8, 0.3)), None)
    again, _ = read_bundle(tmp_path / "bundle")
    assert [network.tta for network in again.networks] == [network.tta for network in ensemble.networks]
    again = replace(again, data=again.data.model_copy(update={"loader": "torch"}))
    one, other = stored(trained, ensemble, tmp_path / "runs"), stored(trained, again, tmp_path / "again")
    assert one.digest == other.digest
    with zipfile.ZipFile(tmp_path / "bundle") as archive:
        card = archive.read("MODEL_CARD.md").decode()
        assert sum(name.endswith(".safetensors") for name in archive.namelist()) == 4
    assert f"| {ensemble.networks[2].name} (views 1.5x) | 0.1667 |" in card


def test_new_films_are_segmented_with_a_mixed_blend(trained: Trained, tmp_path: Path) -> None:
    config, bundle, films = tmp_path / "blend.json", tmp_path / "bundle", tmp_path / "films"
    films.mkdir()
    for seed, name in enumerate(("one", "two")):
        write_film(films / f"{name}.dcm", noise(120, 100, seed=seed))

    def command(*arguments: object) -> None:
        assert run(app, "pneumo_dist", [*map(str, arguments), "--cpu"]) == EXIT_DONE

    def maps(folder: Path) -> dict[str, bytes]:
        return {row["image_id"]: p8.tobytes() for row, p8 in Predictions(folder)}

    config.write_text(json.dumps({"name": "x", "members": MIXED}))
    command("predict", "--config", config, "--runs", trained.runs, "--dicom", films, "--out", tmp_path / "runs/maps")
    predictions = Predictions(tmp_path / "runs/maps")
    assert {Shards(tmp_path / "runs/films").grid(row).stored for row in (0, 1)} == {96}, "the side of the largest input"
    triplet = Triplet(0.1, 9, float(np.median(predictions.p8(0))) / 255)  # half of a film is in its mask
    config.write_text(json.dumps({"name": "x", "members": MIXED, "thresholds": asdict(triplet)}))
    command("average", "--config", config, "--runs", trained.runs, "--bundle", bundle)
    command("predict", "--bundle", bundle, "--dicom", films, "--out", tmp_path / "again/maps")
    assert maps(tmp_path / "again/maps") == maps(tmp_path / "runs/maps")
    command("segment", films, "--bundle", bundle, "--out", tmp_path / "out")
    for number, (row, p8) in enumerate(predictions):
        mask = decode((tmp_path / f"out/{row['image_id']}.mask.png").read_bytes())
        assert np.array_equal(mask, apply_rule(label_map(p8, predictions.grid(number)), Rule(triplet)) * 255)
        assert 0 < np.count_nonzero(mask) < mask.size
