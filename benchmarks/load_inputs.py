"""Inputs of `benchmarks.load`: films, stored predictions, a bundle and run folders in the thousands.

A few hundred phantom films are rendered and then repeated under other names. The maps of repeated films differ.
"""

import json
import shutil
import time
from collections.abc import Callable, Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
from pydicom.encaps import encapsulate
from pydicom.uid import UID

from benchmarks.common import SALT, FilmSet, label_file, link_films, write_config
from pneumo_dist.config.ensemble import TtaConfig
from pneumo_dist.config.experiment import DataConfig
from pneumo_dist.config.model import ModelConfig
from pneumo_dist.maps.store import MANIFEST, encode_map, film_facts, write_block, write_table
from pneumo_dist.runs.heartbeat import DONE, HEARTBEAT
from pneumo_dist.runs.logs import METRICS
from pneumo_dist.scoring.arrays import Map
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.labels import load_labels
from shards.build.options import BuildOptions, Execution
from shards.build.sources import find_sources
from shards.dataset import manifest, rle
from shards.dataset.table import Shards
from shards.drawing import encode_image
from shards.phantom.dataset import JPEG_QUALITY
from shards.phantom.film import render_film

# Films of SIIM-ACR's second stage with rows, and the share of them with a pneumothorax.
FILMS, POSITIVE = 12_047, 2 / 9
GRID, MAP, FOLDS = 1024, 512, 5
DISTINCT, BLOCK = 360, 512
EXPERIMENT = {
    "name": "load",
    "model": {"arch": "fcn", "in_channels": 1, "fcn": {"widths": [4, 4, 8]}},
    "stages": [{"name": "main", "image_size": MAP, "epochs": 30}],
}


def once(folder: Path, last: str, make: Callable[[], object]) -> Path:
    """Return a folder, which `make` fills unless it holds `last`, the file that is written last."""
    if not (folder / last).exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making {folder}, once", flush=True)
        make()
    return folder


def small_films(work: Path, films: int, side: int = 64) -> Path:
    """Return a folder of DICOM films and labels.csv. Each film is a phantom at another place, so no two are alike."""
    folder = work / f"dicom-{films}-{side}"

    def make() -> None:
        phantoms = FilmSet(min(DISTINCT, films), side, POSITIVE).folder(work)
        labels = load_labels(label_file(phantoms))
        read = [(path, pydicom.dcmread(path)) for path in sorted(phantoms.rglob("*.dcm"))]
        bases = [(path, film, film.pixel_array) for path, film in read]
        rows = ["ImageId,EncodedPixels"]
        for number in range(films):
            path, film, original = bases[number % len(bases)]
            chance = np.random.default_rng([9, number])
            shift = tuple(chance.integers(0, side, 2).tolist())
            truth = rle.decode_union([row.rle for row in labels[path.stem]], side, side)
            pixels = np.roll(original, shift, (0, 1))
            film.PixelData = encapsulate([encode_image(pixels, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))])
            film.SOPInstanceUID = film.file_meta.MediaStorageSOPInstanceUID = UID(f"{film.StudyInstanceUID}.{number}")
            film.PatientName = film.PatientID = f"patient-{number}"
            place = folder / "films" / f"{number // 1000}"
            place.mkdir(parents=True, exist_ok=True)
            film.save_as(place / f"film{number}.dcm")
            rows.append(f"film{number},{rle.encode(np.roll(truth, shift, (0, 1)))}")
        (folder / "labels.csv").write_text("\n".join(rows) + "\n")

    return once(folder, "labels.csv", make)


def labelled_shards(work: Path, films: int) -> Path:
    """Return shards of films with labels on a grid of GRID px, each film of its own patient."""
    out = work / f"shards-{films}"

    def make() -> None:
        folder = work / f"images-{films}"
        shutil.rmtree(folder, ignore_errors=True)
        (folder / "films").mkdir(parents=True)
        rows = ["ImageId,EncodedPixels"]
        distinct = min(DISTINCT, films)
        for number in range(distinct):
            film = render_film(np.random.default_rng([7, number]), GRID, number * 2 % 9 < 2)
            label = np.any([np.zeros((GRID, GRID), np.bool_), *film.label_rows], axis=0)
            (folder / f"{number}.png").write_bytes(encode_image(film.image))
            for copy in range(number, films, distinct):
                (folder / "films" / f"film{copy}.png").symlink_to(folder / f"{number}.png")
                rows.append(f"film{copy},{rle.encode(label)}")
        labels = folder / "labels.csv"
        labels.write_text("\n".join(rows) + "\n")
        sources = find_sources(FilmFolders(images=[folder / "films"]), LabelFiles(labels))
        # The label grid does not depend on the size of the stored films, which the report draws.
        options = BuildOptions(image_size=128, folds=FOLDS, duplicate_distance=None)
        build(sources, out, options, SALT, Execution(workers=2))

    return once(out, manifest.MANIFEST, make)


def runs_with_predictions(work: Path, films: int) -> Path:
    """Return a folder of runs: one with logs, out-of-fold predictions of all films, and test predictions of as many."""
    shards, runs = Shards(labelled_shards(work, films)), work / f"runs-{films}"
    run = runs / str(EXPERIMENT["name"])
    write_config(work / "load.yaml", EXPERIMENT)
    for fold in range(FOLDS):
        log_epochs(run / f"fold{fold}/main", 30)
    unlabelled = {"split": "test", "rle": None, "fold": None}
    for split, changes in (("oof", {}), ("test", unlabelled)):
        folder = run / split / "predictions"
        once(folder, MANIFEST, partial(_store, shards, folder, split, changes))
    return runs


def _store(shards: Shards, folder: Path, split: str, changes: Mapping[str, Any]) -> None:
    folder.mkdir(parents=True)
    parts = [{"name": f"load/fold{fold}/step-00000010-abc.pt", "weight": 0.2, "fold": fold} for fold in range(FOLDS)]
    rows: list[dict[str, Any]] = []
    for number, start in enumerate(range(0, len(shards), BLOCK)):
        films = list(_predicted(shards, range(start, min(start + BLOCK, len(shards))), split))
        named = [({**facts, **changes}, content) for facts, content in films]
        rows += write_block(folder / f"pred-{number:05d}.tar", named)
    write_table(folder, rows, {"experiment": "load", "split": split, "image_size": MAP, "parts": parts})


def _predicted(shards: Shards, indices: range, split: str) -> Iterator[tuple[dict[str, Any], bytes]]:
    for index in indices:
        chance = np.random.default_rng([int(split == "test"), index])
        truth = shards.label(index)
        is_positive = bool(truth.any())
        likely = chance.beta(5, 2) if is_positive else chance.beta(1, 6)
        facts = {**film_facts(shards, index), "class_probability": float(np.float32(likely))}
        yield facts, encode_map(predicted_map(truth, chance))


def predicted_map(truth: Map, chance: np.random.Generator) -> Map:
    """Return a map like a trained network's, uint8 (MAP, MAP): 0 on most pixels, with soft edges.

    Some labels are missed, and some films have a region that is not on the label.
    """
    height = np.float32(chance.beta(4, 1) * 255)
    region = cv2.resize(truth * height, (MAP, MAP), interpolation=cv2.INTER_AREA)
    if chance.random() < 0.2:
        centre = tuple(chance.integers(MAP // 8, MAP - MAP // 8, 2).tolist())
        axes = tuple(chance.integers(4, 40, 2).tolist())
        cv2.ellipse(region, (centre, axes, float(chance.uniform(0, 180))), float(chance.beta(2, 2) * 255), -1)
    shift = np.array([[1, 0, chance.uniform(-6, 6)], [0, 1, chance.uniform(-6, 6)]], np.float32)
    region = cv2.warpAffine(region, shift, (MAP, MAP))
    region = cv2.GaussianBlur(region, (0, 0), 3.0)
    haze = cv2.resize(chance.gamma(0.5, 3.0, (48, 48)).astype(np.float32) - 1.0, (MAP, MAP))
    return np.asarray(np.clip(np.rint(region + haze), 0, 255), np.uint8)


def log_epochs(stage: Path, epochs: int) -> None:
    """Write the log of a stage, as training writes it."""
    stage.mkdir(parents=True, exist_ok=True)
    lines = [
        {
            **{"stage": stage.name, "epoch": epoch, "step": 500 * (epoch + 1), "lr": 1e-4, "loss": 1 / (epoch + 1)},
            **{"bce": 0.5 / (epoch + 1), "dice": 0.5 / (epoch + 1), "training_dice": 0.7, "grad_norm": 1.5},
            **{"overflowed_steps": 0.0, "bad_steps": 0.0, "validation_loss": 1.1 / (epoch + 1)},
            **{"score": 0.8 + epoch / 1e3, "positive_dice": 0.5, "images_per_s": 300.0 + epoch, "waited": 0.01},
            **{"peak_memory_mb": 2500.0},
        }
        for epoch in range(epochs)
    ]
    (stage / METRICS).write_text("".join(json.dumps(line) + "\n" for line in lines))


def run_folders(work: Path, folds: int, epochs: int = 50) -> Path:
    """Return a folder of runs with this number of finished folds."""
    runs = work / f"status-{folds}"
    for number in range(folds):
        fold = runs / f"experiment{number // FOLDS}" / f"fold{number % FOLDS}"
        if not (fold / HEARTBEAT).exists():
            log_epochs(fold / "main", epochs)
            beat = {"state": DONE, "host": "node1", "pid": 1, "job_id": "12", "time": time.time(), "stage": "main"}
            beat |= {"epoch": epochs - 1, "epochs": epochs, "step": 500 * epochs, "idle": 0.0, "world": 8}
            (fold / HEARTBEAT).write_text(json.dumps(beat) + "\n")
    return runs


def films_to_segment(work: Path, phantoms: Path, films: int) -> Path:
    """Return a folder of links to DICOM films."""
    folder = work / f"segment-{films}"
    return once(folder, "labels.csv", lambda: link_films(phantoms, folder, films))


def bundle(work: Path) -> Path:
    """Return a bundle of one small network with random weights."""
    from pneumo_dist.network.build import build_model
    from pneumo_dist.predict.bundle import write_bundle
    from pneumo_dist.predict.ensemble import Ensemble, EnsembleNetwork, NetworkInput, TrainedNetwork
    from pneumo_dist.runs.lineage import Ancestor, Lineage, keys_digest
    from pneumo_dist.scoring.masks import Rule
    from pneumo_dist.scoring.triplet import Triplet

    path = work / "load.bundle"
    if not path.exists():
        model = ModelConfig.model_validate(EXPERIMENT["model"])
        weights = build_model(model, pretrained=False).state_dict()
        given = NetworkInput(MAP, 1, (0.485,) * 3, (0.229,) * 3)
        lineage = Lineage((Ancestor("load", "main", 0, False, keys_digest([])),)).to_plain()
        trained = TrainedNetwork(model, weights, "float32", lineage)
        network = EnsembleNetwork("load", 0, 0, 1.0, given, model, lambda: trained)
        data = DataConfig(loader="torch", threads=1)
        ensemble = Ensemble("load", (network,), MAP, data, 4, TtaConfig(hflip=False))
        write_bundle(path, ensemble, Rule(Triplet(0.6, 1000, 0.4)), None)
    return path
