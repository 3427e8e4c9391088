"""Measure the speed of `python -m shards build`, the cost of PNG settings, and of masks, memory and reads.

    python -m benchmarks.shards --work /tmp/shards-benchmark
    python -m benchmarks.shards --films 64 --size 1024 --workers 2 --profile

Run it from the root of the repository. Films are phantoms in the SIIM layout, made once in the --work folder. All
figures are medians of repetitions. What is compared alternates within one run, so other load on the machine affects
everything alike: compare the ratios, not the milliseconds. Builds read each film several times under different names,
so the fixed cost of a build hardly counts. The workers are warm: start-up and imports are not included.

The reference is what public solutions do: pydicom's pixel_array, skimage's resize, cv2.imwrite, a loop over the runs.
It needs scikit-image, which is not a dependency of the project; without it, the rows that compare with it are skipped:
    pip install --target /tmp/reference scikit-image && PYTHONPATH=/tmp/reference python -m benchmarks.shards
Real films are measured too if PNEUMO_REAL_DATA (default: ../shared/data) has a folder siim_sample.
"""

import argparse
import cProfile
import csv
import importlib.util
import multiprocessing
import os
import pstats
import shutil
import statistics
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import get_frame

from benchmarks import ROOT
from benchmarks.common import (
    SALT,
    FilmSet,
    Report,
    label_file,
    labelled_sources,
    link_films,
    machine,
    median_seconds,
    memory_mib,
    parser_of,
    rebuild,
)
from benchmarks.shards_coding import mask_by_runs, measure_png, measure_rle
from shards.build import sample
from shards.build.assemble import finalize
from shards.build.build import build
from shards.build.options import BuildOptions, Execution, Task
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.parent import die_with_parent

HAS_REFERENCE = importlib.util.find_spec("skimage") is not None


def main() -> int:
    parser = parser_of(__doc__, "shards")
    parser.add_argument("--films", type=int, default=48, help="number of phantom films to build (default 48)")
    parser.add_argument("--copies", type=int, default=8, help="number of links to each film in a build (default 8)")
    parser.add_argument("--size", type=int, default=1024, help="side of films and stored images (default 1024)")
    workers = min(2, os.cpu_count() or 1)
    parser.add_argument("--workers", type=int, default=workers, help=f"number of processes (default {workers})")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of each way to build (default 5)")
    parser.add_argument("--profile", action="store_true", help="show where one worker spends its time, per codec")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    films = FilmSet(arguments.films, arguments.size).folder(arguments.work)
    print(
        f"{machine(np, cv2)}, {arguments.workers} workers, {arguments.films} films of {arguments.size} px, "
        f"{arguments.copies} times each"
    )
    report = Report()
    many = link_films(films, arguments.work / "many", arguments.films * arguments.copies)
    real = _real_films()
    measure_builds(report, many, real, arguments)
    measure_png(report, films, real)
    measure_rle(report, real or films, "synthetic" if real is None else "real")
    measure_reads(report, arguments.work)
    measure_memory(report, films, arguments.work)
    if arguments.profile:
        for codec in ("png", "jpeg"):
            _profile(films, arguments.work, codec, arguments.size)
    report.finish()
    return 0


def _real_films() -> Path | None:
    folder = Path(os.environ.get("PNEUMO_REAL_DATA", ROOT / "../shared/data")).resolve() / "siim_sample"
    return folder if folder.is_dir() else None


# --- building


def measure_builds(report: Report, films: Path, real: Path | None, arguments: argparse.Namespace) -> None:
    """Time whole builds, the reference and the floor in turn, with the same number of warm workers."""
    out, workers = arguments.work / "built", arguments.workers
    ways: dict[str, Callable[[ProcessPoolExecutor], float]] = {
        "png": lambda pool: _build_with(pool, films, out / "png", "png", arguments),
        "jpeg": lambda pool: _build_with(pool, films, out / "jpeg", "jpeg", arguments),
        "floor": lambda pool: _spread(pool, workers, floor_share, films),
    }
    if HAS_REFERENCE:
        ways["reference"] = lambda pool: _spread(pool, workers, reference_share, films, out / "ref", arguments.size)
    turns: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, _begin) as pool:
        for round_ in range(arguments.repeats + 1):  # the first one warms up
            for way, run in ways.items():
                shutil.rmtree(out / way, ignore_errors=True)
                start = time.perf_counter()
                cpu_seconds = run(pool)
                if round_:
                    turns[way].append((time.perf_counter() - start, cpu_seconds))
    films_built = arguments.films * arguments.copies
    wall, processor = (
        {way: statistics.median(turn[column] for turn in each) / films_built * 1e3 for way, each in turns.items()}
        for column in (0, 1)
    )
    report.title(f"Build, {workers} workers, median of {arguments.repeats} turns: wall time per film, and CPU time")
    for way in ways:
        report.row(way, f"{wall[way]:.1f} ms, CPU {processor[way]:.1f} ms")

    def ratio(name: str, upper: str, lower: str, target: str, holds: Callable[[float], bool]) -> None:
        value = wall[upper] / wall[lower]
        report.row(name, f"{value:.2f} x, CPU {processor[upper] / processor[lower]:.2f} x", target, holds(value))

    if HAS_REFERENCE:
        for way, least in (("png", 1.8), ("jpeg", 8.0)):
            ratio(f"reference / {way}", "reference", way, f">= {least} x", least.__le__)
    else:
        report.row("reference", "not measured", "pip install --target DIR scikit-image, then PYTHONPATH=DIR")
    ratio("png / floor", "png", "floor", "<= 1.3 x", (1.3).__ge__)
    for codec in ("png", "jpeg"):
        _report_bytes(report, out / codec, f"synthetic films, {codec}", 420e3 if codec == "png" else None)
    if real is None:
        report.row("real films", "not found", "set PNEUMO_REAL_DATA")
        return
    for codec in ("png", "jpeg"):
        folder = arguments.work / "built" / f"real-{codec}"
        rebuild(real, folder, BuildOptions(image_size=arguments.size, codec=codec))
        _report_bytes(report, folder, f"real films, {codec}", 420e3 if codec == "png" else None)


def _report_bytes(report: Report, folder: Path, name: str, most: float | None) -> None:
    shards = Shards(folder)
    images = shards.column("image_size").astype(float)
    members = sum(np.maximum(shards.column(f"{m}_size"), 0).astype(float) for m in ("image", "mask", "json"))
    value = f"{images.mean() / 1e3:.0f} + {np.mean(members - images) / 1e3:.1f} kB"
    met = None if most is None else bool(np.mean(members) <= most)
    report.row(f"image + mask and json, mean: {name}", value, "" if most is None else f"<= {most / 1e3:.0f} kB", met)


def _spread(pool: ProcessPoolExecutor, workers: int, share: Callable[..., None], *arguments: object) -> float:
    """Let each worker process its share; return the CPU seconds of all workers."""
    jobs = [pool.submit(_processor_time, share, *arguments, number, workers) for number in range(workers)]
    return sum(job.result() for job in jobs)


def _processor_time(call: Callable[..., object], *arguments: object) -> float:
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


def _build_with(pool: ProcessPoolExecutor, films: Path, out: Path, codec: str, arguments: argparse.Namespace) -> float:
    per_shard = max(1, -(-arguments.films * arguments.copies // (2 * arguments.workers)))
    options = BuildOptions(image_size=arguments.size, codec=codec, samples_per_shard=per_shard)
    cpu_seconds = _spread(pool, arguments.workers, build_share, films, out, options)
    return cpu_seconds + _processor_time(finalize, out, {}, SALT)


def build_share(films: Path, out: Path, options: BuildOptions, number: int, workers: int) -> None:
    """Build one worker's shards, like a task of a job array."""
    build(labelled_sources(films), out, options, SALT, Execution(task=Task(number + 1, workers)))


def reference_share(films: Path, out: Path, size: int, number: int, workers: int) -> None:
    """Write images and masks as public solutions do."""
    from skimage.transform import resize

    rows: dict[str, list[str]] = {}
    with label_file(films).open(newline="", encoding="utf-8-sig") as stream:
        for image_id, text in csv.reader(stream):
            rows.setdefault(image_id.strip(), []).append(text)
    out.mkdir(parents=True, exist_ok=True)
    for path in sorted(films.rglob("*.dcm"))[number::workers]:
        pixels = pydicom.dcmread(path).pixel_array
        image = resize(pixels, (size, size), preserve_range=True, anti_aliasing=True).astype(np.uint8)
        cv2.imwrite(str(out / f"{path.stem}.png"), image)
        mask = np.zeros(pixels.shape)
        for text in rows[path.stem]:
            if text.strip() != rle.EMPTY:
                mask = np.maximum(mask, mask_by_runs(text, *pixels.shape))
        if pixels.shape != (size, size):
            mask = resize(mask, (size, size), order=0, preserve_range=True, anti_aliasing=False)
        cv2.imwrite(str(out / f"{path.stem}_mask.png"), mask.astype(np.uint8))


def floor_share(films: Path, number: int, workers: int) -> None:
    """Decode each film's JPEG stream and encode it as PNG, without labels, checks or writing."""
    for path in sorted(films.rglob("*.dcm"))[number::workers]:
        if path not in _STREAMS:
            _STREAMS[path] = np.frombuffer(get_frame(pydicom.dcmread(path).PixelData, 0, number_of_frames=1), np.uint8)
        image = cv2.imdecode(_STREAMS[path], cv2.IMREAD_GRAYSCALE)
        assert image is not None
        cv2.imencode(".png", image, sample._FILM_PNG)


_STREAMS: dict[Path, npt.NDArray[np.uint8]] = {}


def _profile(films: Path, work: Path, codec: str, size: int) -> None:
    out = work / "built" / f"profile-{codec}"
    shutil.rmtree(out, ignore_errors=True)
    sources = labelled_sources(films)
    with cProfile.Profile() as profile:
        build(sources, out, BuildOptions(image_size=size, codec=codec), SALT)
    print(f"\nwhere one worker spends its time, {codec}:")
    pstats.Stats(profile).sort_stats("tottime").print_stats(15)


# --- reading and memory


def measure_reads(report: Report, work: Path) -> None:
    """Time random reads of encoded images and masks from page cache."""
    report.title("Random reads of image and mask, checked, one core, page cache")
    for codec in ("png", "jpeg"):
        shards = Shards(work / "built" / codec)
        order = np.random.default_rng(0).integers(0, len(shards), 500).tolist()

        def read(shards: Shards = shards, order: list[int] = order) -> None:
            for index in order:
                shards.read(index, "image")
                shards.read(index, "mask")

        rate = len(order) / median_seconds(read, 5)
        report.row(codec, f"{rate:,.0f} samples/s", ">= 2,000", rate >= 2000)


def _begin() -> None:
    die_with_parent()
    cv2.setNumThreads(1)


def measure_memory(report: Report, films: Path, work: Path) -> None:
    """Print the peak memory of a process that builds few films, and of one that builds many."""
    report.title("Peak memory (VmHWM) of one build worker, png")
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, die_with_parent, maxtasksperchild=1) as pool:
        for count in (50, 400):
            folder, out = link_films(films, work / f"links-{count}", count), work / "built" / f"memory-{count}"
            shutil.rmtree(out, ignore_errors=True)
            loaded, peak, has_torch = pool.apply(_peak, (folder, out))
            note = "with torch" if has_torch else "no torch"
            report.row(f"{count} films ({note}, {loaded:.0f} MB before)", f"{peak:.0f} MB", "< 400 MB", peak < 400)


def _peak(folder: Path, out: Path) -> tuple[float, float, bool]:
    cv2.setNumThreads(1)
    before = memory_mib("VmHWM")
    build(labelled_sources(folder), out, BuildOptions(image_size=1024, samples_per_shard=512), SALT)
    return before, memory_mib("VmHWM"), "torch" in sys.modules


if __name__ == "__main__":
    sys.exit(main())
