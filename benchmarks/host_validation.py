"""Costs of the host for the validation part of `benchmarks.host_costs`."""

import tempfile
import time
from pathlib import Path
from unittest import mock

import cv2
import numpy as np
import torch

from benchmarks.common import FilmSet
from benchmarks.host_cost import HostCost, least_ms
from benchmarks.inference import noise_film
from pneumo_dist.data.films import Batch
from pneumo_dist.scoring.dice import Score
from pneumo_dist.scoring.histograms import LEVELS, Histograms, film_histograms
from pneumo_dist.scoring.masks import label_map
from pneumo_dist.scoring.triplet import Triplet, _Search
from pneumo_dist.train.monitor import Monitor
from pneumo_dist.train.validation import Overlay, Validation, _FilmScores, _Predicted
from shards import console
from shards.dataset.table import Shards

FILMS, RANKS = 2400, 8
BATCH, SIZE, GRID = 16, 512, 1024
PICTURES = 8


def costs(work: Path) -> list[HostCost]:
    """Measure the part; `work` keeps films and shards."""
    cv2.setNumThreads(0)
    torch.set_num_threads(1)
    shards = Shards(FilmSet(films=BATCH, size=GRID).shards(work, image_size=SIZE))
    main, thread = _picture_ms()
    histograms = fold_histograms(FILMS)
    share = least_ms(lambda: _share(histograms))
    return [
        HostCost("validation", f"triplet search, one of {RANKS} ranks, {FILMS:,} films", "ms", "2300", share, 350),
        HostCost("validation", "scoring a film, OpenCV", "ms", "2.0 to 2.6", _scoring_ms(shards, False), 1.6),
        HostCost(
            "validation", "scoring a film, counted on the device", "ms", "2.0 to 2.6", _scoring_ms(shards, True), 1.6
        ),
        HostCost("validation", f"picture of {GRID} px, on the main thread", "ms", "211", main, 1),
        HostCost("validation", f"picture of {GRID} px, in the thread", "ms", "0", thread),
    ]


def fold_histograms(films: int) -> Histograms:
    """Return histograms of many films, from a hundred films of blurred noise with small differences between copies."""
    few = np.stack([film_histograms(*noise_film(number)) for number in range(100)])
    chance = np.random.default_rng(0)
    many = np.resize(few, (films, 2, LEVELS))
    many[:, 0] += chance.integers(0, 9, (films, LEVELS)) * (many[:, 0] > 0)
    return many


def _share(histograms: Histograms) -> None:
    """Do the share of the last rank."""
    search = _Search(histograms)
    for top in range(RANKS - 1, LEVELS - 1, RANKS):
        search.best_of_top(top)


def _scoring_ms(shards: Shards, on_device: bool) -> float:
    """Return the host's time for a film of a batch, the launches of a device not included."""
    rows = np.arange(len(shards), dtype=np.int64)
    maps = [np.asarray(cv2.resize(noise_film(int(row))[0], (SIZE, SIZE)), np.uint8) for row in rows]
    batch = Batch(torch.zeros(len(rows), 1, SIZE, SIZE), torch.zeros(len(rows), 1, SIZE, SIZE, dtype=torch.uint8), rows)
    counted = torch.from_numpy(
        np.stack([film_histograms(label_map(p8, shards.grid(row)), shards.label(row)) for row, p8 in enumerate(maps)])
    )
    p8 = torch.from_numpy(np.stack(maps))
    predicted = _Predicted(batch, torch.tensor(0.5), p8, counted if on_device else None, None)

    def score() -> None:
        if on_device:  # the labels of the films with a pneumothorax go to the device
            for row in rows[shards.column("has_mask")[rows].astype(bool)].tolist():
                shards.label(row)
        _FilmScores(shards, frozenset()).add(predicted)

    return least_ms(score) / len(rows)


def _picture_ms() -> tuple[float, float]:
    """Return how long the main thread works for a picture, and the thread that draws it, in milliseconds."""
    image, label = noise_film(4)
    score = Score(0.5, 0.4, 0.3, 4, 2)
    overlays = tuple(
        Overlay(f"worst/{number}", "film", image, label, image, 0.5, 0.5, True) for number in range(PICTURES)
    )
    record = {
        "stage": "main",
        "epoch": 0,
        "step": 1,
        "loss": 1.0,
        "score": 0.5,
        "positive_dice": 0.4,
        "images_per_s": 9.0,
    }
    pixels = np.ones((2, LEVELS), np.int64)
    with tempfile.TemporaryDirectory() as folder, mock.patch.object(console, "say"):
        monitor = Monitor(Path(folder), True, 0, 0, True)

        def epoch(shown: tuple[Overlay, ...]) -> tuple[float, float]:
            monitor.start_epoch("epoch", 1, 0)
            started = time.perf_counter()
            monitor.epoch(1, record, Validation(Triplet(0.5, 3, 0.25), score, score, 0.7, shown, pixels), 0.5)
            returned = time.perf_counter()
            monitor._finish_pictures()
            return returned - started, time.perf_counter() - started

        without = min(epoch(())[0] for _ in range(6))
        times = [epoch(overlays) for _ in range(6)]
        monitor.close()
    main, all_ = (min(values) for values in zip(*times, strict=True))
    return max(main - without, 0.0) * 1e3 / PICTURES, (all_ - without) * 1e3 / PICTURES
