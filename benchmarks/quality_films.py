"""The phantoms of benchmarks.quality: with labels, without, and a holdout that nothing is tuned on."""

import csv
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from benchmarks.common import SALT, FilmSet, label_file
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.dataset.table import Shards

FOLDS, SIDE = 2, 128
HOLDOUT = FilmSet(films=500, size=256, positive_rate=0.22, seed=101)
MORE = FilmSet(films=600, size=256, positive_rate=0.22, seed=102)
FEW = FilmSet(films=60, size=256, positive_rate=0.5, seed=103)
DEMO = FilmSet(films=240, size=256, positive_rate=0.5, seed=104)


def few(work: Path) -> Path:
    """Return shards of 60 films with labels, 600 without, and the holdout."""
    return _shards(work, "few", FEW, (MORE,))


def demo(work: Path) -> Path:
    """Return shards of 240 films with labels, as in the demo, and the holdout."""
    return _shards(work, "demo", DEMO, ())


DATASETS: Mapping[str, Callable[[Path], Path]] = {"few": few, "demo": demo}


def _shards(work: Path, name: str, labelled: FilmSet, without: tuple[FilmSet, ...]) -> Path:
    out = work / f"shards-{name}"
    if (out / "manifest.json").exists():
        return out
    parts = [films.folder(work) for films in (labelled, HOLDOUT)]
    # Folds of the films with labels alone, as a build without the holdout makes them.
    alone = work / f"folds-{name}"
    shutil.rmtree(alone, ignore_errors=True)
    build(find_sources(FilmFolders(dicom=parts[:1]), LabelFiles(label_file(parts[0]))), alone, _options(), SALT)
    folded = Shards(alone)
    fold_of = dict(zip(folded.column("image_id").tolist(), folded.column("fold").tolist(), strict=True))
    shutil.rmtree(alone)
    rows = [tuple(row) for part in parts for row in list(csv.reader(label_file(part).open()))[1:]]
    labels, folds = work / f"labels-{name}.csv", work / f"folds-{name}.csv"
    _write(labels, [("ImageId", "EncodedPixels"), *rows])
    ids = dict.fromkeys(row[0].strip() for row in rows)
    _write(folds, [("image_id", "fold"), *((each, fold_of.get(each, -1)) for each in ids)])
    folders = FilmFolders(dicom=parts, unlabelled_dicom=[films.folder(work) for films in without])
    shutil.rmtree(out, ignore_errors=True)
    build(find_sources(folders, LabelFiles(labels)), out, _options(folds), SALT)
    return out


def _options(folds_csv: Path | None = None) -> BuildOptions:
    return BuildOptions(image_size=SIDE, folds=FOLDS, folds_csv=folds_csv)


def _write(path: Path, rows: list[tuple[object, ...]]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows(rows)
