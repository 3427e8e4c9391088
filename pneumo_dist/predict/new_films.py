"""Build new films into a dataset of unlabelled test films, in the same way as the training shards."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
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


@dataclass(frozen=True)
class NewFilmOptions:
    """How to build new films: the side of the stored images, the rules for films, and whether warnings refuse them."""

    image_size: int
    rules: FilmRules = field(default_factory=FilmRules)
    strict: bool = False


@dataclass(frozen=True)
class RefusedFilm:
    """A film that the build refuses, and the reason."""

    path: Path
    reason: str


def film_name(path: Path) -> str:
    """Return a film's name without its suffix, as the build derives image ids. A bare UID keeps all of its numbers."""
    return path.stem if path.suffix.lower() in SUFFIXES else path.name


def check_distinct(paths: Sequence[Path]) -> None:
    """Raise InputError, naming both, for two films whose outputs would have the same name."""
    first: dict[str, Path] = {}
    for path in paths:
        name = film_name(path)
        if name in first:
            raise InputError(
                f"{first[name]} and {path}: their outputs would both be called {name}; "
                "segment them into two folders, or rename one"
            )
        first[name] = path


def film_paths(sources: Sequence[Path]) -> list[Path]:
    """Replace each folder by the DICOM files below it, and keep files and their order.

    Broken links with the suffix of a DICOM file are included, to be refused by name. Raises InputError for a missing
    path, and for a folder without DICOM files.
    """
    paths: list[Path] = []
    for path in sources:
        if path.is_dir():
            films, others = dicom_files(path)
            if not films:
                raise InputError(f"{path}: holds no films{others}; give a folder with DICOM files")
            paths += films
        elif path.is_file():
            paths.append(path)
        else:
            raise InputError(f"{path}: no such file")
    return paths


def film_shards(
    paths: Sequence[Path],
    folder: Path,
    options: NewFilmOptions,
    workers: int = 1,
    on_film: Callable[[int], None] | None = None,
    salt: bytes | None = None,
) -> tuple[Shards | None, list[RefusedFilm]]:
    """Build DICOM files as test films into a new scratch folder.

    Near-duplicates are kept. Of films with the same name, the first is used.

    Args:
        on_film: Called with the number of films of each finished shard.
        salt: The salt of an earlier build; a folder that already holds these films is then reused.

    Returns:
        The dataset, or None if all films were refused, and the refused films: those that the build refuses, with its
        reasons, and with `strict` also those with a warning. `row_paths` maps rows to files.

    Raises:
        InputError: There are no films, or the folder is in use.
    """
    if not paths:
        raise InputError("no films to segment; name files or folders")
    first: dict[str, Path] = {}
    refused: list[RefusedFilm] = []
    for path in paths:
        name = film_name(path)
        if path.suffix.lower() in IMAGE_SUFFIXES:
            refused.append(RefusedFilm(path, "not a DICOM file: give the original DICOM file"))
        elif (reason := objection(name)) is not None:
            refused.append(RefusedFilm(path, reason))
        elif name in first:
            refused.append(RefusedFilm(path, f"same image id as {first[name]}; remove one of the two"))
        else:
            first[name] = path
    if not first:
        return None, refused
    films = [SourceFilm(sample_key(name), name, path, path.parent, "test") for name, path in first.items()]
    sources = Sources((), tuple(sorted(films, key=lambda source: source.key)), (), ())
    build_options = BuildOptions(
        image_size=options.image_size,
        any_film=options.rules.any_film,
        allow_burned_in=options.rules.allow_burned_in,
        max_pixels=options.rules.max_pixels,
        strict=options.strict,
        duplicate_distance=None,
    )
    # Films are not grouped by patient here, and a discarded salt leaves no trace of them.
    key = salt or secrets.token_bytes(SALT_BYTES)
    try:
        # A dataset needs at least one film. The build writes the list of refused films before it raises.
        build(sources, folder, build_options, key, Execution(workers, max_rejects=len(films) - 1), on_film)
    except InputError:
        if {name for name, *_ in read_list(folder / REJECTED)} != set(first):
            raise
    refused += [RefusedFilm(first[name], reason) for name, _, reason in read_list(folder / REJECTED)]
    return (Shards(folder) if len(refused) < len(paths) else None), refused


def row_paths(shards: Shards, paths: Sequence[Path]) -> list[Path]:
    """Return the file that each row of a dataset of `film_shards` was built from."""
    first: dict[str, Path] = {}
    for path in paths:
        first.setdefault(film_name(path), path)
    return [first[str(image_id)] for image_id in shards.column("image_id")]
