"""How fast `python -m shards build` is, what its PNG settings cost, and what masks, memory and reads cost.

    python -m benchmarks.shards --work /tmp/shards-benchmark
    python -m benchmarks.shards --films 64 --size 1024 --workers 2 --profile

Run it from the root of the repository. Films are synthetic ones in the SIIM layout, made once in the --work folder. All
figures are medians of repetitions that take turns in one run, so that a noisy neighbour hits all of them; compare the
ratios, not the milliseconds. Builds take each film several times under other names, so that what a build does once
counts for little; start-up and imports are left out of their speeds: workers are warm.

The reference is what public solutions do: pydicom's pixel_array, skimage's resize, cv2.imwrite, a loop over the runs.
It wants scikit-image, which is not one of the project's packages; without it, rows that compare with it are left out:
    pip install --target /tmp/reference scikit-image && PYTHONPATH=/tmp/reference python -m benchmarks.shards
Real films are measured too where PNEUMO_REAL_DATA (default: ../shared/data) has a folder siim_sample.
"""

import argparse
import cProfile
import csv
import gc
import importlib.util
import multiprocessing
import os
import platform
import pstats
import shutil
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from pathlib import Path

# Before this file's folder, where `shards` would be this file.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.encaps import get_frame

from shards.build import sample
from shards.build.assemble import finalize
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles, Sources
from shards.build.labels import Labels, load_labels
from shards.build.options import BuildOptions, Execution, Task
from shards.build.sources import find_sources
from shards.dataset import rle
from shards.dataset.table import Shards
from shards.dicom.film import read_film
from shards.phantom.dataset import synthesize

ROOT = Path(__file__).resolve().parents[1]
SALT = b"a salt for benchmarks only"
HAS_REFERENCE = importlib.util.find_spec("skimage") is not None
Image = npt.NDArray[np.uint8]
Parameters = tuple[int, ...]

_LEVEL, _STRATEGY, _FILTER = cv2.IMWRITE_PNG_COMPRESSION, cv2.IMWRITE_PNG_STRATEGY, cv2.IMWRITE_PNG_FILTER
_RLE, _HUFFMAN = cv2.IMWRITE_PNG_STRATEGY_RLE, cv2.IMWRITE_PNG_STRATEGY_HUFFMAN_ONLY
_FILTERS = {
    "none": cv2.IMWRITE_PNG_FILTER_NONE,
    "sub": cv2.IMWRITE_PNG_FILTER_SUB,
    "up": cv2.IMWRITE_PNG_FILTER_UP,
    "avg": cv2.IMWRITE_PNG_FILTER_AVG,
    "paeth": cv2.IMWRITE_PNG_FILTER_PAETH,
    "fast": cv2.IMWRITE_PNG_FAST_FILTERS,
    "all": cv2.IMWRITE_PNG_ALL_FILTERS,
}
SETTINGS: dict[str, Parameters] = {
    "chosen for films": tuple(sample._FILM_PNG),
    "chosen for masks": tuple(sample._MASK_PNG),
    "OpenCV default": (),
    **{f"level {level}, all filters": (_LEVEL, level) for level in (1, 3, 6)},
    **{
        f"level {level}, filter {name}": (_LEVEL, level, _FILTER, _FILTERS[name])
        for level in (1, 2)
        for name in ("none", "up", "avg", "fast")
    },
    **{f"RLE, filter {name}": (_STRATEGY, _RLE, _FILTER, value) for name, value in _FILTERS.items()},
    **{f"Huffman, filter {name}": (_STRATEGY, _HUFFMAN, _FILTER, _FILTERS[name]) for name in ("up", "avg", "paeth")},
}


class Report:
    """Prints figures, each beside its target."""

    def __init__(self) -> None:
        self.missed: list[str] = []

    def title(self, text: str) -> None:
        print(f"\n{text}")

    def row(self, what: str, value: str, target: str = "", met: bool | None = None) -> None:
        verdict = "" if met is None else "met" if met else "MISSED"
        if met is False:
            self.missed.append(what)
        print(f"  {what:<52}{value:>28}  {target:<12}{verdict}".rstrip(), flush=True)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--films", type=int, default=48, help="synthetic films to build (default 48)")
    parser.add_argument("--copies", type=int, default=8, help="links to each film that a build takes (default 8)")
    parser.add_argument("--size", type=int, default=1024, help="side of films and stored images (default 1024)")
    parser.add_argument("--workers", type=int, default=min(2, os.cpu_count() or 1), help="default 2")
    parser.add_argument("--repeats", type=int, default=5, help="repetitions of each way to build (default 5)")
    parser.add_argument("--work", type=Path, default=Path("/tmp/shards-benchmark"), help="folder for films and shards")
    parser.add_argument("--profile", action="store_true", help="show where one worker's time goes, per codec")
    arguments = parser.parse_args()
    cv2.setNumThreads(1)
    films = _films(arguments.work, arguments.films, arguments.size)
    print(
        f"Python {platform.python_version()}, OpenCV {cv2.__version__}, {platform.machine()}, {os.cpu_count()} cores, "
        f"{arguments.workers} workers, {arguments.films} films of {arguments.size} px, {arguments.copies} times each"
    )
    report = Report()
    many = _links(films, arguments.work / "many", arguments.films * arguments.copies)
    measure_builds(report, many, arguments)
    measure_png(report, films, _real_films())
    measure_rle(report, films)
    measure_reads(report, arguments.work)
    measure_memory(report, films, arguments.work)
    if arguments.profile:
        for codec in ("png", "jpeg"):
            _profile(films, arguments.work, codec, arguments.size)
    print(f"\n{len(report.missed)} targets missed{': ' if report.missed else ''}{'; '.join(report.missed)}")
    return 0


def _films(work: Path, count: int, size: int, positive_rate: float = 0.25, seed: int = 5) -> Path:
    folder = work / f"films-{count}-{size}-{positive_rate}-{seed}"
    if not (folder / "train-rle.csv").exists():
        shutil.rmtree(folder, ignore_errors=True)
        print(f"making {count} films in {folder}, once", flush=True)
        synthesize(folder, images=count, size=size, positive_rate=positive_rate, seed=seed)
    return folder


def _links(films: Path, folder: Path, count: int) -> Path:
    """Fill a folder with `count` links to the films, each under a name of its own, and their labels."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    labels = _labels_of(films)[1]
    rows = []
    paths = sorted(films.rglob("*.dcm"))
    for number in range(count):
        path = paths[number % len(paths)]
        (folder / f"film{number}.dcm").symlink_to(path.resolve())
        rows += [f"film{number},{row.rle}" for row in labels[path.stem]]
    (folder / "labels.csv").write_text("\n".join(["ImageId,EncodedPixels", *rows]) + "\n")
    return folder


def _real_films() -> Path | None:
    folder = Path(os.environ.get("PNEUMO_REAL_DATA", ROOT / "../shared/data")).resolve() / "siim_sample"
    return folder if folder.is_dir() else None


def _labels_of(films: Path) -> tuple[Path, Labels]:
    path = next(films.glob("*.csv"))
    return path, load_labels(path)


def _sources(films: Path) -> Sources:
    return find_sources(FilmFolders(dicom=(films,)), LabelFiles(_labels_of(films)[0]))


# --- building


def measure_builds(report: Report, films: Path, arguments: argparse.Namespace) -> None:
    """Time whole builds, the reference and the floor in turns, on equal numbers of warm workers."""
    out, workers = arguments.work / "built", arguments.workers
    ways: dict[str, Callable[[ProcessPoolExecutor], float]] = {
        "png": lambda pool: _build_with(pool, films, out / "png", "png", arguments),
        "jpeg": lambda pool: _build_with(pool, films, out / "jpeg", "jpeg", arguments),
        "floor": lambda pool: _spread(pool, workers, floor_share, films),
    }
    if HAS_REFERENCE:
        ways["reference"] = lambda pool: _spread(pool, workers, reference_share, films, out / "ref", arguments.size)
    taken: dict[str, list[tuple[float, float]]] = {way: [] for way in ways}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, context, cv2.setNumThreads, (1,)) as pool:
        for round_ in range(arguments.repeats + 1):  # the first one warms up
            for way, run in ways.items():
                shutil.rmtree(out / way, ignore_errors=True)
                start = time.perf_counter()
                worked = run(pool)
                if round_:
                    taken[way].append((time.perf_counter() - start, worked))
    films_built = arguments.films * arguments.copies
    wall, processor = (
        {way: statistics.median(turn[which] for turn in turns) / films_built * 1e3 for way, turns in taken.items()}
        for which in (0, 1)
    )
    report.title(f"Build, {workers} workers, median of {arguments.repeats} turns: wall time a film, and CPU time")
    for way in ways:
        report.row(way, f"{wall[way]:.1f} ms, CPU {processor[way]:.1f} ms")

    def ratio(what: str, upper: str, lower: str, target: str, holds: Callable[[float], bool]) -> None:
        value = wall[upper] / wall[lower]
        report.row(what, f"{value:.2f} x, CPU {processor[upper] / processor[lower]:.2f} x", target, holds(value))

    if HAS_REFERENCE:
        for way, least in (("png", 1.8), ("jpeg", 8.0)):
            ratio(f"reference / {way}", "reference", way, f">= {least} x", least.__le__)
    else:
        report.row("reference", "not measured", "pip install --target DIR scikit-image, then PYTHONPATH=DIR")
    ratio("png / floor", "png", "floor", "<= 1.3 x", (1.3).__ge__)
    for codec in ("png", "jpeg"):
        _report_bytes(report, out / codec, f"synthetic films, {codec}", 420e3 if codec == "png" else None)
    real = _real_films()
    if real is None:
        report.row("real films", "not found", "set PNEUMO_REAL_DATA")
        return
    for codec in ("png", "jpeg"):
        folder = arguments.work / "built" / f"real-{codec}"
        shutil.rmtree(folder, ignore_errors=True)
        build(_sources(real), folder, BuildOptions(image_size=arguments.size, codec=codec), SALT)
        _report_bytes(report, folder, f"real films, {codec}", 420e3 if codec == "png" else None)


def _report_bytes(report: Report, folder: Path, what: str, most: float | None) -> None:
    shards = Shards(folder)
    images = shards.column("image_size").astype(float)
    members = sum(np.maximum(shards.column(f"{m}_size"), 0).astype(float) for m in ("image", "mask", "json"))
    value = f"{images.mean() / 1e3:.0f} + {np.mean(members - images) / 1e3:.1f} kB"
    met = None if most is None else bool(np.mean(members) <= most)
    report.row(f"image + mask and json, mean: {what}", value, "" if most is None else f"<= {most / 1e3:.0f} kB", met)


def _spread(pool: ProcessPoolExecutor, workers: int, share: Callable[..., None], *arguments: object) -> float:
    """Have each worker do its share; return the CPU seconds of all."""
    jobs = [pool.submit(_processor_time, share, *arguments, number, workers) for number in range(workers)]
    return sum(job.result() for job in jobs)


def _processor_time(call: Callable[..., object], *arguments: object) -> float:
    start = time.process_time()
    call(*arguments)
    return time.process_time() - start


def _build_with(pool: ProcessPoolExecutor, films: Path, out: Path, codec: str, arguments: argparse.Namespace) -> float:
    per_shard = max(1, -(-arguments.films * arguments.copies // (2 * arguments.workers)))
    options = BuildOptions(image_size=arguments.size, codec=codec, samples_per_shard=per_shard)
    worked = _spread(pool, arguments.workers, build_share, films, out, options)
    return worked + _processor_time(finalize, out, {}, SALT)


def build_share(films: Path, out: Path, options: BuildOptions, number: int, workers: int) -> None:
    """Build one worker's shards, as a task of an array does."""
    build(_sources(films), out, options, SALT, Execution(task=Task(number + 1, workers)))


def reference_share(films: Path, out: Path, size: int, number: int, workers: int) -> None:
    """Write images and masks as public solutions do."""
    from skimage.transform import resize

    rows: dict[str, list[str]] = {}
    with _labels_of(films)[0].open(newline="", encoding="utf-8-sig") as stream:
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
                mask = np.maximum(mask, _by_runs(text, *pixels.shape))
        if mask.shape != (size, size):
            mask = resize(mask, (size, size), order=0, preserve_range=True, anti_aliasing=False)
        cv2.imwrite(str(out / f"{path.stem}_mask.png"), mask.astype(np.uint8))


def floor_share(films: Path, number: int, workers: int) -> None:
    """Decode each film's JPEG stream and encode it as PNG; nothing is labelled, checked or written."""
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
    sources = _sources(films)
    with cProfile.Profile() as profile:
        build(sources, out, BuildOptions(image_size=size, codec=codec), SALT)
    print(f"\nwhere one worker's time goes, {codec}:")
    pstats.Stats(profile).sort_stats("tottime").print_stats(15)


# --- PNG settings


def measure_png(report: Report, films: Path, real: Path | None) -> None:
    """Print time against size of OpenCV's PNG settings, on films and on their masks."""
    sets = {"synthetic": _images(films, 12)}
    if real is not None:
        sets["real"] = _images(real, 12)
    sets["masks"] = [rle.decode_union(texts, *shape) * np.uint8(255) for texts, shape in _masks(real or films)[:12]]
    report.title("PNG settings: encode / decode, bytes (medians, mean size)")
    print(f"  {'':<24}" + "".join(f"{name:>30}" for name in sets))
    for name, parameters in SETTINGS.items():
        cells = []
        for images in sets.values():
            coded = [cv2.imencode(".png", image, parameters)[1] for image in images]
            spent = [_timed(partial(cv2.imencode, ".png", image, parameters), 3) for image in images]
            read = [_timed(partial(cv2.imdecode, content, cv2.IMREAD_GRAYSCALE), 3) for content in coded]
            size = statistics.mean(content.size for content in coded)
            cells.append(f"{_milli(spent):5.1f} /{_milli(read):4.1f} ms {size / 1e3:7.1f} kB")
        print(f"  {name:<24}" + "".join(f"{cell:>30}" for cell in cells), flush=True)


def _images(films: Path, most: int) -> list[Image]:
    return [read_film(path).image for path in sorted(films.rglob("*.dcm"))[:most]]


def _masks(films: Path) -> list[tuple[list[str], tuple[int, int]]]:
    """Return the run-length strings and the grid of each labelled film, those with a mask first."""
    path = next(films.rglob("*.dcm"))
    header = pydicom.dcmread(path, stop_before_pixels=True)
    shape = (int(header.Rows), int(header.Columns))
    found = [[row.rle for row in rows] for rows in _labels_of(films)[1].values()]
    return [(texts, shape) for texts in sorted(found, key=lambda texts: texts[0] == rle.EMPTY)]


# --- masks


def measure_rle(report: Report, films: Path) -> None:
    """Time run-length strings to masks and back against loops, on masks that are not empty."""
    folder = _real_films() or films
    masks = [(texts, shape) for texts, shape in _masks(folder) if texts[0] != rle.EMPTY][:12]
    ours, loops = _rle_times(masks, rle.decode_union, rle.encode), _rle_times(masks, _loop_union, loop_encode)
    side = "x".join(map(str, masks[0][1]))
    report.title(
        f"Run-length strings, one core, {len(masks)} {'real' if folder != films else 'synthetic'} {side} masks"
    )
    for what, mine, loop, most in zip(("decode", "encode"), ours, loops, (1.0, 3.0), strict=True):
        report.row(f"{what} a mask", f"{mine:.2f} ms", f"< {most:g} ms", mine < most)
        report.row(f"{what}, pure-Python loop", f"{loop:.1f} ms ({loop / mine:.0f} x)")
    empty = np.zeros(masks[0][1], np.uint8)
    spent = (_timed(lambda: rle.decode(rle.EMPTY, *empty.shape), 15), _timed(lambda: rle.encode(empty), 15))
    report.row("empty mask, decode and encode", f"{spent[0] * 1e3:.3f}, {spent[1] * 1e3:.3f} ms")


def _rle_times(
    masks: Iterable[tuple[list[str], tuple[int, int]]],
    decode: Callable[..., npt.NDArray[np.generic]],
    encode: Callable[[npt.NDArray[np.generic]], str],
) -> tuple[float, float]:
    there, back = [], []
    for texts, shape in masks:
        mask = decode(texts, *shape)
        assert encode(mask) == rle.encode(mask)
        there.append(_timed(partial(decode, texts, *shape), 5))
        back.append(_timed(partial(encode, mask), 3))
    return _milli(there), _milli(back)


def _by_runs(text: str, height: int, width: int) -> npt.NDArray[np.float64]:
    """Return the mask (0 and 255) of a string, run by run."""
    flat = np.zeros(height * width)
    for start, end in _bounds(text):
        flat[start:end] = 255
    return flat.reshape(width, height).T


def loop_decode(text: str, height: int, width: int) -> npt.NDArray[np.float64]:
    """Return the mask (0 and 255) of a string, pixel by pixel."""
    flat = [0] * (height * width)
    for start, end in _bounds(text):
        for pixel in range(start, end):
            flat[pixel] = 255
    return np.array(flat, np.float64).reshape(width, height).T


def _bounds(text: str) -> list[tuple[int, int]]:
    numbers = [int(number) for number in text.split()]
    bounds, position = [], 0
    for skip, length in zip(numbers[0::2], numbers[1::2], strict=True):
        bounds.append((position + skip, position + skip + length))
        position += skip + length
    return bounds


def _loop_union(texts: Sequence[str], height: int, width: int) -> npt.NDArray[np.float64]:
    mask = loop_decode(texts[0], height, width)
    for text in texts[1:]:
        mask = np.maximum(mask, loop_decode(text, height, width))
    return mask


def loop_encode(mask: npt.NDArray[np.generic]) -> str:
    """Return the string of a mask, pixel by pixel."""
    numbers: list[int] = []
    gap = run = 0
    for column in range(mask.shape[1]):
        for row in range(mask.shape[0]):
            if mask[row][column]:
                run += 1
            elif run:
                numbers += [gap, run]
                gap, run = 1, 0
            else:
                gap += 1
    if run:
        numbers += [gap, run]
    return " ".join(map(str, numbers)) or rle.EMPTY


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

        rate = len(order) / _timed(read, 5)
        report.row(codec, f"{rate:,.0f} samples/s", ">= 2,000", rate >= 2000)


def measure_memory(report: Report, films: Path, work: Path) -> None:
    """Print the peak memory of a process that builds few and many films."""
    report.title("Peak memory (VmHWM) of one build worker, png")
    context = multiprocessing.get_context("spawn")
    with context.Pool(1, maxtasksperchild=1) as pool:
        for count in (50, 400):
            folder, out = _links(films, work / f"links-{count}", count), work / "built" / f"memory-{count}"
            shutil.rmtree(out, ignore_errors=True)
            loaded, peak, has_torch = pool.apply(_peak, (folder, out))
            note = "with torch" if has_torch else "no torch"
            report.row(f"{count} films ({note}, {loaded:.0f} MB before)", f"{peak:.0f} MB", "< 400 MB", peak < 400)


def _peak(folder: Path, out: Path) -> tuple[float, float, bool]:
    cv2.setNumThreads(1)
    before = _status("VmHWM")
    build(_sources(folder), out, BuildOptions(image_size=1024, samples_per_shard=512), SALT)
    return before, _status("VmHWM"), "torch" in sys.modules


def _status(name: str) -> float:
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith(name))
    return int(line.split()[1]) / 1024


def _timed(call: Callable[[], object], times: int) -> float:
    """Return the median seconds of a call, after one that warms up."""
    call()
    spent = []
    gc.disable()
    for _ in range(times):
        start = time.perf_counter()
        call()
        spent.append(time.perf_counter() - start)
    gc.enable()
    return statistics.median(spent)


def _milli(seconds: Sequence[float]) -> float:
    return statistics.median(seconds) * 1e3


if __name__ == "__main__":
    sys.exit(main())
