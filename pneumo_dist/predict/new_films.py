"""New films become a dataset of unlabelled test films, by the same build that made the training shards."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.build.build import build
from shards.build.films import SourceFilm, Sources
from shards.build.folders import IMAGE_SUFFIXES
from shards.build.names import objection
from shards.build.options import BuildOptions, Execution
from shards.build.progress import REJECTED, read_list
from shards.build.sources import dicom_files
from shards.dataset.keys import SALT_BYTES, sample_key
from shards.dataset.table import Shards
from shards.dicom.film import SUFFIXES, FilmRules
from shards.errors import InputError

_DEFAULT_RULES = FilmRules()


@dataclass(frozen=True)
class Refused:
    """A film that the build does not take, and its reason."""

    path: Path
    reason: str


def film_name(path: Path) -> str:
    """Return a film's name without its suffix, as the build derives image ids: a bare UID keeps all its parts."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def check_distinct(paths: Sequence[Path]) -> None:
    """Raise InputError, naming both, for two films whose outputs would have one name."""
    first: dict[str, Path] = {}
    for path in paths:
        name = film_name(path)
        if name in first:
            raise InputError(
                f"{first[name]} and {path}: their outputs would both be called {name}; "
                "segment them into two folders, or rename one"
            )
        first[name] = path


def film_paths(given: Sequence[Path]) -> list[Path]:
    """Return the given files, and for each folder among them the DICOM files below it, in order.

    Links to nothing that are called like a DICOM file are among them, to be refused by name.

    Raises InputError for what is not there, and for a folder without DICOM files.
    """
    paths: list[Path] = []
    for path in given:
        if path.is_dir():
            found, others = dicom_files(path)
            if not found:
                raise InputError(f"{path}: holds no films{others}; give a folder with DICOM files")
            paths += found
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{path}: no such file")
    return paths


def film_shards(
    paths: Sequence[Path],
    folder: Path,
    image_size: int,
    rules: FilmRules = _DEFAULT_RULES,
    strict: bool = False,
    workers: int = 1,
    on_film: Callable[[int], None] | None = None,
    salt: bytes | None = None,
) -> tuple[Shards | None, list[Refused]]:
    """Build DICOM files as test films into a new scratch folder, and return the dataset and what it refused.

    Exactly what the build refuses is refused, with its reasons, and with `strict` films that have a warning;
    near-duplicates are kept. Of films with one name the first is taken. None where none is left. `row_paths` tells
    which row is which file; `on_film` hears how many films a finished shard took. With the `salt` of a build before, a
    folder that holds these films already is taken as it is.
    Raises InputError for no films and for a folder in use.
    """
    if not paths:
        raise InputError("no films given")
    first: dict[str, Path] = {}
    refused: list[Refused] = []
    for path in paths:
        name = film_name(path)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            refused.append(Refused(path, "not a DICOM file: give the film as its maker sent it"))
        elif (reason := objection(name)) is not None:
            refused.append(Refused(path, reason))
        elif name in first:
            refused.append(Refused(path, f"same image id as {first[name]}; remove one of the two"))
        else:
            first[name] = path
    if not first:
        return None, refused
    films = [SourceFilm(sample_key(name), name, path, path.parent, "test") for name, path in first.items()]
    sources = Sources((), tuple(sorted(films, key=lambda source: source.key)), (), ())
    options = BuildOptions(
        image_size=image_size,
        any_film=rules.any_film,
        allow_burned_in=rules.allow_burned_in,
        max_pixels=rules.max_pixels,
        strict=strict,
        duplicate_distance=None,
    )
    # Patients are not grouped here: a salt that nobody keeps leaves no trace of them.
    key = salt or secrets.token_bytes(SALT_BYTES)
    try:
        # One less than all: a dataset needs a film. The list of refused films is written before the error is raised.
        build(sources, folder, options, key, Execution(workers, max_rejects=len(films) - 1), on_film)
    except InputError:
        if {name for name, *_ in read_list(folder / REJECTED)} != set(first):
            raise
    refused += [Refused(first[name], reason) for name, _, reason in read_list(folder / REJECTED)]
    return (Shards(folder) if len(refused) < len(paths) else None), refused


def row_paths(shards: Shards, paths: Sequence[Path]) -> list[Path]:
    """Return the file that each row of such a dataset was built from."""
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(film_name(path), path)
    return [first[str(image_id)] for image_id in shards.column("image_id")]
