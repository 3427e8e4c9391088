"""Measure the cost of the threshold search, of stored predictions and of distributed prediction.

    python -m benchmarks.inference --work /tmp/inference-benchmark
    python -m benchmarks.inference --work /tmp/inference-benchmark --only search,histograms

Run it from the root of the repository. Everything runs on the CPU, with one thread per process. Films are phantoms in
the SIIM layout, made once in the --work folder. Run nothing else at the same time: the ranks need both cores.

    search      the exact search over every top, area and bottom for 2,000 films, compared with a NumPy loop over masks
    histograms  the rate from stored predictions to histograms on a label grid of 1024 px, and the size of the stored
                predictions, for a network trained at 512 px until it is certain about most pixels
    memory      peak memory of `predict` for 500 and for 5,000 films
    ranks       films/s of two ranks on two cores, compared with one rank on one core
"""

import json
import os
import shutil
import statistics
import sys
import time
from pathlib import Path
from typing import Any

import cv2
import numpy as np

from benchmarks import ROOT
from benchmarks.common import (
    SALT,
    FilmSet,
    Report,
    in_fresh_process,
    link_films,
    machine,
    median_seconds,
    memory_mib,
    parser_of,
    rebuild,
    run_on_cpu,
    single_threaded,
    torchrun,
    write_config,
)
from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.histograms import Histograms, counts_above, film_histograms
from pneumo_dist.scoring.masks import apply_triplet, label_map
from pneumo_dist.scoring.triplet import Triplet, best_triplet
from shards.build.build import build
from shards.build.films import FilmFolders
from shards.build.options import BuildOptions
from shards.build.sources import find_sources

PARTS = ("search", "histograms", "memory", "ranks")
SEARCHED, SIDE = 2000, 1024
MOST_SECONDS, MOST_MIB, LEAST_RATIO = 5.0, 1024.0, 1000.0
LEAST_FILMS, MOST_KB = 40.0, 60.0
FEW, MANY, MOST_GROWTH = 500, 5000, 0.05
LEAST_SPEEDUP = 1.7
LOOPED = 20  # films of the naive loop
# The demo's network, trained first on smaller films, which take a quarter of the time.
_SCHEDULE = {"name": "cosine", "min_lr": 1e-5}
TRAINED = {
    "global_batch": 4,
    "micro_batch": 2,
    "top_k": 1,
    "stages": [
        {"name": "small", "image_size": 256, "epochs": 24, "sample_rate": 0.5, "schedule": _SCHEDULE},
        {"name": "main", "image_size": 512, "epochs": 8, "sample_rate": 0.4, "schedule": _SCHEDULE},
    ],
}


def main() -> int:
    parser = parser_of(__doc__, "inference", PARTS)
    parser.add_argument("--repeats", type=int, default=5, help="turns of the ranks (default 5)")
    arguments = parser.parse_args()
    work = arguments.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    print(machine(np, cv2))
    report = Report()
    measures = {"search": measure_search, "histograms": measure_histograms, "memory": measure_memory}
    for part in arguments.only:
        if part == "ranks":
            measure_ranks(report, work, arguments.repeats)
        else:
            measures[part](report, work)
    report.finish()
    return 0


def use_one_core() -> None:
    single_threaded()
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})


# --- search


def measure_search(report: Report, _work: Path) -> None:
    histograms, loop = in_fresh_process(noise_histograms, setup=use_one_core)
    seconds, triplets, before, after = in_fresh_process(search_turn, histograms, setup=use_one_core)
    per_triplet = seconds / triplets * LOOPED / SEARCHED
    report.title(f"Exact search over {triplets:.3g} triplets of {SEARCHED} films, one core")
    report.row("seconds", f"{seconds:.2f} s", f"< {MOST_SECONDS:.0f} s", seconds < MOST_SECONDS)
    report.row("VmHWM, before and after", f"{before:.0f}, {after:.0f} MiB", f"< {MOST_MIB:.0f} MiB", after < MOST_MIB)
    report.row(f"a loop over {LOOPED} films' masks, one triplet", f"{loop * 1e3:.1f} ms")
    ratio = loop / per_triplet
    report.row("per triplet and film, loop / search", f"{ratio:.3g} x", f">= {LEAST_RATIO:.0f} x", ratio >= LEAST_RATIO)


def noise_histograms() -> tuple[Histograms, float]:
    """Return histograms of blurred noise films, a quarter of them positive, and the seconds of a naive loop."""
    histograms, maps = [], []
    for number in range(SEARCHED):
        film, truth = noise_film(number)
        histograms.append(film_histograms(film, truth))
        if number < LOOPED:
            maps.append((film, truth))
    durations = []
    for triplet in (Triplet(0.5, 1000, 0.3), Triplet(0.7, 600, 0.4), Triplet(0.2, 50, 0.1)):
        start = time.perf_counter()
        for film, truth in maps:
            mask = apply_triplet(film, triplet)
            total = int(mask.sum()) + int(truth.sum())
            _ = 2 * int((mask & truth).sum()) / total if total else 1.0
        durations.append(time.perf_counter() - start)
    return np.stack(histograms), statistics.median(durations)


def noise_film(number: int) -> tuple[Map, Map]:
    """Return a probability map and a label of SIDE x SIDE pixels: faint noise, with a bright blob in every fourth."""
    chance = np.random.default_rng(number)
    coarse = chance.gamma(1.0, 12.0, (64, 64)).astype(np.float32)
    truth = np.zeros((SIDE, SIDE), np.uint8)
    if number % 4 == 0:
        x, y = chance.integers(200, SIDE - 200, 2).tolist()
        axes = tuple(chance.integers(20, 140, 2).tolist())
        cv2.ellipse(truth, (x, y), axes, float(chance.integers(180)), 0, 360, 1, -1)
        cv2.circle(coarse, (x // 16, y // 16), int(min(axes) // 16) + 1, float(chance.uniform(60, 255)), -1)
    film = cv2.resize(np.minimum(coarse, 255).astype(np.uint8), (SIDE, SIDE), interpolation=cv2.INTER_LINEAR)
    return np.asarray(film, np.uint8), truth


def search_turn(histograms: Histograms) -> tuple[float, float, float, float]:
    """Return the seconds of a search, the number of distinct triplets, and peak memory before and after in MiB."""
    before = memory_mib("VmHWM")
    start = time.perf_counter()
    best_triplet(histograms)
    seconds = time.perf_counter() - start
    after = memory_mib("VmHWM")
    counts = counts_above(histograms)[:, 0]
    areas = sum(len(np.unique(counts[:, top])) + 1 for top in range(255))
    return seconds, areas * 256.0, before, after


# --- histograms


def measure_histograms(report: Report, work: Path) -> None:
    runs = trained_at_512(work)
    predictions = runs / "demo/oof/predictions"
    rate, kilobytes, films = in_fresh_process(histogram_turn, predictions, setup=use_one_core)
    report.title(f"Stored predictions of {films} films at 512 px, labels on a grid of {SIDE} px, one core")
    report.row("to histograms", f"{rate:.1f} films/s", f">= {LEAST_FILMS:.0f}", rate >= LEAST_FILMS)
    report.row("stored prediction, mean", f"{kilobytes:.1f} kB", f"<= {MOST_KB:.0f} kB", kilobytes <= MOST_KB)
    for name, (size, write, read) in in_fresh_process(png_turn, predictions, setup=use_one_core).items():
        report.row(f"PNG, {name}", f"{size:.1f} kB, written in {write:.2f} ms, read in {read:.2f} ms")


def trained_at_512(work: Path) -> Path:
    """Return the runs of a network trained at 512 px, with the out-of-fold predictions of its fold."""
    shards, runs = work / "shards-512", work / "runs-512"
    if not (runs / "demo/oof/predictions/manifest.json").exists():
        shutil.rmtree(runs, ignore_errors=True)
        rebuild(FilmSet(96, SIDE).folder(work), shards, BuildOptions(image_size=512, folds=3))
        config = write_config(work / "trained-512.yaml", {"base": str(ROOT / "configs/demo.yaml"), **TRAINED})
        common = ["--cpu", "--config", config, "--shards", shards, "--runs", runs]
        print("training a network at 512 px, once", flush=True)
        for arguments in (["train", "--fold", 0], ["predict", "--split", "oof", "--fold", 0]):
            run_on_cpu(torchrun(2, "pneumo_dist", *arguments, *common))
    return runs


def histogram_turn(folder: Path) -> tuple[float, float, int]:
    """Return films/s from stored predictions to histograms, and the predictions' mean size in kB and their number."""
    import torch

    from pneumo_dist.maps.store import Predictions
    from pneumo_dist.ranks.ranks import Ranks
    from pneumo_dist.thresholds.tune import prediction_histograms

    torch.set_num_threads(1)
    predictions = Predictions(folder)
    assert label_map(predictions.p8(0), predictions.grid(0)).shape == (SIDE, SIDE)
    alone = Ranks.alone()
    seconds = median_seconds(lambda: prediction_histograms(predictions, alone), 5)
    sizes = [row["size"] for row in predictions.rows]
    return len(predictions) / seconds, statistics.mean(sizes) / 1000, len(predictions)


def png_turn(folder: Path) -> dict[str, tuple[float, float, float]]:
    """Return mean kB, and median ms to encode and decode, of maps with the stored settings and OpenCV's defaults."""
    from pneumo_dist.maps.store import PNG, Predictions

    maps = [p8 for _, p8 in Predictions(folder)]
    figures = {}
    for name, settings in {"as stored": PNG, "OpenCV's defaults": ()}.items():
        durations: list[tuple[float, float]] = []
        sizes = []
        for p8 in maps * 5:
            start = time.perf_counter()
            content = cv2.imencode(".png", p8, settings)[1]
            middle = time.perf_counter()
            cv2.imdecode(content, cv2.IMREAD_GRAYSCALE)
            durations.append((middle - start, time.perf_counter() - middle))
            sizes.append(content.size)
        write, read = (statistics.median(values) * 1e3 for values in zip(*durations, strict=True))
        figures[name] = statistics.mean(sizes) / 1000, write, read
    return figures


# --- predict


def measure_memory(report: Report, work: Path) -> None:
    films = FilmSet(48, 64).folder(work)
    peaks = {}
    for count in (FEW, MANY):
        shards = work / f"shards-test-{count}"
        if not (shards / "manifest.json").exists():
            links = link_films(films, work / "links", count)
            shutil.rmtree(shards, ignore_errors=True)
            options = BuildOptions(image_size=64, duplicate_distance=None)
            build(find_sources(FilmFolders(test_dicom=[links])), shards, options, SALT)
        peaks[count] = [predict_turn(work, shards, 1, 64)["peak_mib"] for _ in range(3)]
    few, many = (statistics.median(peaks[count]) for count in (FEW, MANY))
    report.title("VmHWM of predict, U-Net resnet18 at 64 px, median of 3 fresh runs")
    report.row(f"{FEW} and {MANY} films", f"{few:.0f}, {many:.0f} MiB")
    report.row("growth", f"{many / few - 1:+.1%}", f"< {MOST_GROWTH:.0%}", many / few - 1 < MOST_GROWTH)


def measure_ranks(report: Report, work: Path, repeats: int) -> None:
    shards = FilmSet(films=128, size=256, seed=1).shards(work, folds=2)
    rates: dict[int, list[float]] = {1: [], 2: []}
    for turn in range(repeats):
        for ranks in (1, 2) if turn % 2 == 0 else (2, 1):
            figures = predict_turn(work, shards, ranks, 256, "oof")
            rates[ranks].append(figures["films"] / figures["seconds"])
    one, two = (statistics.median(rates[ranks]) for ranks in (1, 2))
    report.title(f"predict, U-Net resnet34 at 256 px with flip, 64 films, median of {repeats} turns")
    report.row("one rank on one core, two ranks on two", f"{one:.2f}, {two:.2f} films/s")
    met = two / one >= LEAST_SPEEDUP
    report.row("two / one", f"{two / one:.2f} x", f">= {LEAST_SPEEDUP} x", met)


def predict_turn(work: Path, shards: Path, ranks: int, size: int, split: str = "test") -> dict[str, Any]:
    """Run benchmarks.inference_worker, a single rank on one core; return its seconds, films and peak_mib."""
    out = work / "predictions"
    shutil.rmtree(out, ignore_errors=True)
    arguments = [shards, out, size, split]
    one_core = ["taskset", "-c", "0", sys.executable, "-m", "benchmarks.inference_worker", *map(str, arguments)]
    command = torchrun(ranks, "benchmarks.inference_worker", *arguments) if ranks > 1 else one_core
    figures: dict[str, Any] = json.loads(run_on_cpu(command).splitlines()[-1])
    return figures


if __name__ == "__main__":
    sys.exit(main())
