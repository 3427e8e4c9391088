"""Feed damaged films, labels and datasets to `shards` and see that each ends in the right result or a clear refusal.

    python -m tests.tools.fuzz_shards --seconds 300 --seed 7
    python -m tests.tools.fuzz_shards --seed 7 --case 1234          one case again, with its traceback

Every case is a function of the seed and its number: bytes of a good file are flipped, cut off, zeroed, moved, repeated
or overwritten with lengths, or a value of its JSON is replaced. It passes where the code under test returns what it
returned for the good file (or, for a film, whatever still is a whole film), or raises InputError. Another exception,
the end of the process and a case that takes longer than --limit seconds are failures: they are printed with the line
that repeats them, and the exit code is 1.

The films are those of PNEUMO_REAL_DATA (default: ../shared/data) where present, and synthetic ones.
"""

import argparse
import json
import multiprocessing
import os
import resource
import shutil
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

# Before this file's folder, where `shards` would be the benchmark.
sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

import cv2
import numpy as np
import pydicom
from pydicom.uid import DeflatedExplicitVRLittleEndian, ExplicitVRBigEndian, ImplicitVRLittleEndian, RLELossless

from shards.build.assemble import finalize
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles, SourceFilm
from shards.build.labels import load_labels
from shards.build.options import BuildOptions
from shards.build.sample import build_sample
from shards.build.sources import find_sources
from shards.dataset.manifest import MANIFEST
from shards.dataset.table import TABLE, Shards
from shards.dataset.verify import verify
from shards.dicom.film import FilmRules, read_film, strip_jpeg_metadata
from shards.errors import InputError, RejectedFilm
from shards.phantom.dataset import synthesize

ROOT = Path(__file__).resolve().parents[2]
SALT = b"a salt for fuzzing only"
# A damaged length must not take the machine's memory: what asks for more gets a MemoryError.
ADDRESS_SPACE = 6 << 30
LENGTHS = (0, 1, 2, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFE, 0xFFFFFFFF)
JSON_VALUES: tuple[Any, ...] = (None, True, -1, 0, 1, 2**70, 1e308, "", "x", "../x", "\0", [], [None], {}, {"x": 1})
# Group, element: what the decoding of pixels hangs on.
TAGS = [
    *((0x0028, e) for e in (0x2, 0x4, 0x6, 0x8, 0x10, 0x11, 0x34, 0x100, 0x101, 0x102, 0x103, 0x120, 0x121)),
    *((0x0028, e) for e in (0x1050, 0x1051, 0x1052, 0x1053, 0x1056, 0x3000, 0x3002, 0x3006, 0x3010)),
    *((0x0002, e) for e in (0x0, 0x2, 0x10)),
    *((0x0008, e) for e in (0x5, 0x16, 0x68)),
    *((0x0018, e) for e in (0x15, 0x1164, 0x5101)),
    *((0x7FE0, e) for e in (0x1, 0x10)),
    *((0xFFFE, e) for e in (0xE000, 0xE00D, 0xE0DD)),
]


class Wrong(AssertionError):
    """A result that is neither the right one nor a refusal."""


@dataclass(frozen=True)
class Corpus:
    """Good files: DICOM films, image files, label CSVs and two built datasets with their members' bytes."""

    films: tuple[Path, ...]
    images: tuple[Path, ...]
    labels: tuple[Path, ...]
    datasets: tuple[Path, ...]
    members: dict[Path, frozenset[bytes]]


def prepare(work: Path) -> None:
    """Make the good files."""
    made = synthesize(work / "films", images=10, size=96, positive_rate=0.5, seed=3)
    test = synthesize(work / "test", images=2, size=96, positive_rate=0.5, seed=4)
    first = sorted(made.dicom_dir.rglob("*.dcm"))[0]
    others = work / "others"
    others.mkdir()
    for syntax in (ImplicitVRLittleEndian, ExplicitVRBigEndian, DeflatedExplicitVRLittleEndian, RLELossless):
        film = pydicom.dcmread(first)
        film.decompress()
        film.WindowCenter, film.WindowWidth = "120", "200"
        film.PhotometricInterpretation = "MONOCHROME1"
        if syntax == RLELossless:
            film.compress(syntax)
        film.file_meta.TransferSyntaxUID = syntax
        little = syntax != ExplicitVRBigEndian
        pydicom.dcmwrite(
            others / f"{syntax.name}.dcm".replace(" ", ""),
            film,
            implicit_vr=syntax == ImplicitVRLittleEndian,
            little_endian=little,
            force_encoding=True,
        )
    image = read_film(first).image
    for name in ("a.png", "b.jpg"):
        cv2.imwrite(str(others / name), image)
    for codec in ("png", "jpeg"):
        sources = find_sources(
            FilmFolders(dicom=(made.dicom_dir,), test_dicom=(test.dicom_dir,)), LabelFiles(made.labels_csv)
        )
        options = BuildOptions(image_size=64, folds=3, samples_per_shard=5, codec=codec)
        build(sources, work / f"set-{codec}", options, SALT)


def corpus_of(work: Path) -> Corpus:
    """Return the good files of a prepared folder, and the real ones."""
    folders = [work / "films", work / "others"]
    real = Path(os.environ.get("PNEUMO_REAL_DATA", ROOT / "../shared/data")).resolve()
    # Synthetic films are small and quick to decode: they stand in thrice.
    found = [sorted(folder.rglob("*.dcm")) for folder in folders] * 3 + [sorted(real.rglob("*.dcm"))]
    datasets = tuple(sorted(work.glob("set-*")))
    return Corpus(
        films=tuple(path for paths in found for path in paths),
        images=tuple(path for folder in [*folders, real] for path in sorted(folder.rglob("*.[pj][np]g"))),
        labels=tuple(path for folder in (work / "films", real) for path in sorted(folder.rglob("*.csv"))),
        datasets=datasets,
        members={folder: _members(Shards(folder)) for folder in datasets},
    )


def _members(shards: Shards) -> frozenset[bytes]:
    return frozenset(shards.read(i, m) for i in range(len(shards)) for m in _members_of(shards, i))


def _members_of(shards: Shards, index: int) -> tuple[str, ...]:
    return ("image", "json") if shards.column("split")[index] == "test" else ("image", "mask", "json")


# --- damage


def damage(content: bytes, rng: np.random.Generator, other: bytes) -> bytes:
    """Return content with one to three kinds of damage."""
    for _ in range(int(rng.integers(1, 4))):
        kind = DAMAGES[int(rng.integers(len(DAMAGES)))]
        content = kind(bytearray(content), rng, other) if content else content
    return content


def _place(size: int, rng: np.random.Generator) -> int:
    """Headers stand at the start, parquet's and a tar's ends matter too."""
    near = int(rng.integers(min(size, 2048)))
    return [near, size - 1 - near, int(rng.integers(size))][int(rng.integers(3))]


def _flip(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    for _ in range(int(rng.integers(1, 9))):
        content[_place(len(content), rng)] ^= 1 << int(rng.integers(8))
    return bytes(content)


def _cut(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    return bytes(content[: _place(len(content), rng)])


def _zero(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    start = _place(len(content), rng)
    end = min(len(content), start + int(rng.integers(1, 600)))
    content[start:end] = bytes(end - start)
    return bytes(content)


def _splice(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    source = other or bytes(content)
    start, size = int(rng.integers(len(source))), int(rng.integers(1, 600))
    place = _place(len(content), rng)
    content[place : place + (size if rng.random() < 0.5 else 0)] = source[start : start + size]
    return bytes(content)


def _remove(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    place = _place(len(content), rng)
    del content[place : place + int(rng.integers(1, 600))]
    return bytes(content)


def _length(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    place, width = _place(len(content), rng), int(rng.choice([1, 2, 4]))
    value = int(rng.choice(LENGTHS)) % (1 << 8 * width)
    content[place : place + width] = value.to_bytes(width, "little" if rng.random() < 0.7 else "big")
    return bytes(content)


def _element(content: bytearray, rng: np.random.Generator, other: bytes) -> bytes:
    """Damage the VR, length or value of a DICOM element."""
    group, element = TAGS[int(rng.integers(len(TAGS)))]
    place = content.find(group.to_bytes(2, "little") + element.to_bytes(2, "little"))
    if place < 0:
        return bytes(content)
    place += int(rng.integers(4, 20))
    for index in range(place, min(place + int(rng.integers(1, 5)), len(content))):
        content[index] = int(rng.choice([0, 1, 8, 16, 0x30, 0x39, 0x7F, 0xFF, int(rng.integers(256))]))
    return bytes(content)


DAMAGES = (_flip, _flip, _cut, _zero, _splice, _remove, _length, _length, _element, _element)


def _damage_json(text: bytes, rng: np.random.Generator) -> bytes:
    """Replace, remove or repeat one value of a JSON document."""
    document = json.loads(text)
    places: list[tuple[Any, Any]] = []

    def walk(value: Any) -> None:
        for key in value if isinstance(value, dict) else range(len(value)) if isinstance(value, list) else ():
            places.append((value, key))
            walk(value[key])

    walk(document)
    parent, key = places[int(rng.integers(len(places)))]
    action = rng.integers(3)
    if action == 0:
        del parent[key]
    elif action == 1 and isinstance(parent, list):
        parent.append(parent[key])
    else:
        parent[key] = JSON_VALUES[int(rng.integers(len(JSON_VALUES)))]
    return json.dumps(document).encode()


# --- what is tried with the damaged bytes; each returns a word for the counts


def try_film(corpus: Corpus, rng: np.random.Generator, scratch: Path) -> str:
    """Read a damaged DICOM film, alone and through the build."""
    path = _damaged_file(corpus.films, rng, scratch, "film.dcm")
    film = read_film(path, FilmRules(any_film=bool(rng.random() < 0.9), allow_burned_in=True))
    _expect(film.image.dtype == np.uint8 and film.image.ndim == 2 and film.image.size > 0, "no grey image")
    if film.jpeg is not None:
        decoded = cv2.imdecode(np.frombuffer(film.jpeg, np.uint8), cv2.IMREAD_UNCHANGED)
        _expect(decoded is not None and np.array_equal(decoded, film.image), "its JPEG stream is another image")
    return _through_build(SourceFilm("film", "film", path, scratch, "test"), rng)


def try_image(corpus: Corpus, rng: np.random.Generator, scratch: Path) -> str:
    """Build from a damaged PNG or JPEG, as film or as mask."""
    path = _damaged_file(corpus.images, rng, scratch, "film.png")
    mask = None
    if rng.random() < 0.5:
        mask, path = path, corpus.images[int(rng.integers(len(corpus.images)))]
    split = "test" if mask is None else "train"
    return _through_build(SourceFilm("film", "film", path, path.parent, split, mask_path=mask), rng)


def _through_build(source: SourceFilm, rng: np.random.Generator) -> str:
    options = BuildOptions(image_size=64, any_film=True, allow_burned_in=True, codec=str(rng.choice(["png", "jpeg"])))
    made = build_sample(source, options, SALT)
    for name, content in made.members.items():
        if name != "json":
            _expect(cv2.imdecode(np.frombuffer(content, np.uint8), 0) is not None, f"a {name} that cannot be read")
    json.dumps(made.row, allow_nan=False)
    return "taken"


def try_stream(corpus: Corpus, rng: np.random.Generator, scratch: Path) -> str:
    """Strip the metadata of a damaged JPEG stream."""
    jpegs = [path for path in corpus.images if path.suffix == ".jpg"]
    content = damage(jpegs[0].read_bytes(), rng, jpegs[0].read_bytes())
    stripped = strip_jpeg_metadata(content)
    _expect(strip_jpeg_metadata(stripped) == stripped, "stripping twice changes it")
    return "taken"


def try_labels(corpus: Corpus, rng: np.random.Generator, scratch: Path) -> str:
    """Read a damaged label CSV."""
    for rows in load_labels(_damaged_file(corpus.labels, rng, scratch, "labels.csv")).values():
        _expect(len(rows) > 0, "a film without rows")
    return "taken"


def try_dataset(corpus: Corpus, rng: np.random.Generator, scratch: Path) -> str:
    """Read, check and re-split a dataset of which one file is damaged."""
    good = corpus.datasets[int(rng.integers(len(corpus.datasets)))]
    folder = Path(shutil.copytree(good, scratch / "set"))
    kinds = [MANIFEST, TABLE, *(path.name for path in sorted(folder.glob("*.tar"))[:2]), "train-00000.idx"]
    victim = folder / kinds[int(rng.integers(len(kinds)))]
    content = victim.read_bytes()
    if victim.name == MANIFEST and rng.random() < 0.7:
        damaged = _damage_json(content, rng)
    else:
        damaged = damage(content, rng, content)
    victim.write_bytes(damaged)
    outcomes = set()
    with ExitStack() as stack:
        try:
            shards = Shards(folder)
            stack.callback(shards.close)
            for index in range(len(shards)):
                for member in _members_of(shards, index):
                    try:
                        _expect(shards.read(index, member) in corpus.members[good], f"bytes that no {member} has")
                        outcomes.add("read")
                    except InputError as error:
                        _one_line(error)
                        outcomes.add("refused")
        except InputError as error:
            _one_line(error)
            outcomes.add("refused")
    try:
        faults = verify(folder)
    except InputError as error:
        _one_line(error)
        faults = ["refused"]
    if victim.name != MANIFEST and damaged != content:
        _expect(bool(faults), f"verify calls a damaged {victim.suffix} good")
    if victim.name in (MANIFEST, TABLE):
        try:
            finalize(folder, {"folds": 4}, SALT, max_rejects=100)
        except InputError as error:
            _one_line(error)
    return "refused" if "refused" in outcomes else "taken"


ATTEMPTS: tuple[tuple[Callable[[Corpus, np.random.Generator, Path], str], float], ...] = (
    (try_film, 0.45),
    (try_dataset, 0.3),
    (try_image, 0.1),
    (try_stream, 0.1),
    (try_labels, 0.05),
)


def _damaged_file(files: tuple[Path, ...], rng: np.random.Generator, scratch: Path, name: str) -> Path:
    content, other = (files[int(rng.integers(len(files)))].read_bytes() for _ in range(2))
    path = scratch / name
    path.write_bytes(damage(content, rng, other))
    return path


def _expect(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Wrong(otherwise)


def _one_line(error: InputError) -> None:
    _expect(bool(str(error).strip()), "a refusal without a reason")


def run_case(corpus: Corpus, seed: int, case: int, scratch: Path) -> tuple[str, str]:
    """Return what was tried and how it ended. Raises what the code under test should not have raised."""
    rng = np.random.default_rng([seed, case])
    attempt = ATTEMPTS[int(rng.choice(len(ATTEMPTS), p=[share for _, share in ATTEMPTS]))][0]
    folder = scratch / f"case-{case}"
    folder.mkdir()
    try:
        return attempt.__name__, attempt(corpus, rng, folder)
    except (RejectedFilm, InputError) as refusal:
        _one_line(refusal)
        return attempt.__name__, "refused"
    finally:
        shutil.rmtree(folder, ignore_errors=True)


# --- a child process runs the cases, its parent watches the clock


def _child(work: Path, seed: int, first: int, pipe: Connection) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (ADDRESS_SPACE, ADDRESS_SPACE))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    quiet = os.open(os.devnull, os.O_WRONLY)
    os.dup2(quiet, 2)  # decoders write about the damage there
    cv2.setNumThreads(1)
    corpus = corpus_of(work)
    scratch = Path(tempfile.mkdtemp(dir=work))
    case = first
    while True:
        pipe.send((case, "begun", ""))
        try:
            pipe.send((case, *run_case(corpus, seed, case, scratch)))
        except Exception as error:  # whatever it is, it is the finding
            frames = [f for f in traceback.extract_tb(error.__traceback__) if "fuzz_shards" not in f.filename]
            ours = [f for f in frames if Path(f.filename).parent.name == "shards"] or frames
            where = f"{Path(ours[-1].filename).name}:{ours[-1].lineno}" if ours else "fuzz_shards"
            pipe.send((case, "failed", f"{where} {type(error).__name__}:  {' '.join(str(error).split())[:160]}"))
        case += 1


def fuzz(work: Path, seed: int, seconds: float, limit: float, first: int = 0) -> tuple[Counter[str], dict[int, str]]:
    """Run cases for some seconds; return counts of endings and the failures by case."""
    counts: Counter[str] = Counter()
    failures: dict[int, str] = {}
    context = multiprocessing.get_context("spawn")
    end = None
    case = first
    while end is None or time.monotonic() < end:
        ours, theirs = context.Pipe()
        child = context.Process(target=_child, args=(work, seed, case, theirs), daemon=True)
        child.start()
        theirs.close()
        ready = False
        while end is None or time.monotonic() < end:
            try:
                # Imports take some seconds before the first case.
                if not ours.poll(limit if ready else 120):
                    failures[case] = f"takes longer than {limit:g} s"
                    break
                case, what, ending = ours.recv()
            except (EOFError, ConnectionResetError):
                child.join()
                failures[case] = f"ended the process (exit code {child.exitcode})"
                break
            ready = True
            if end is None:
                end = time.monotonic() + seconds
            if what == "begun":
                continue
            if what == "failed":
                failures[case] = ending
            counts[what.removeprefix("try_") if what == "failed" else f"{what.removeprefix('try_')} {ending}"] += 1
        child.kill()
        child.join()
        ours.close()
        case += 1
    return counts, failures


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seconds", type=float, default=60.0, help="how long to try (default 60)")
    parser.add_argument("--seed", type=int, default=0, help="default 0")
    parser.add_argument("--limit", type=float, default=20.0, help="seconds that one case may take (default 20)")
    parser.add_argument("--first", type=int, default=0, help="number of the first case (default 0)")
    parser.add_argument("--case", type=int, help="run this case alone, here")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        prepare(work)
        if arguments.case is not None:
            scratch = Path(tempfile.mkdtemp(dir=work))
            print(*run_case(corpus_of(work), arguments.seed, arguments.case, scratch))
            return 0
        counts, failures = fuzz(work, arguments.seed, arguments.seconds, arguments.limit, arguments.first)
    print(f"{sum(counts.values())} cases: {', '.join(f'{n} {what}' for what, n in sorted(counts.items()))}")
    alike: dict[str, list[int]] = {}
    for case, finding in failures.items():
        alike.setdefault(finding.split(":  ")[0], []).append(case)
    for cases in sorted(alike.values(), key=len, reverse=True):
        print(f"{len(cases)} x {failures[cases[0]]}")
        print(f"  again: python -m tests.tools.fuzz_shards --seed {arguments.seed} --case {cases[0]}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
