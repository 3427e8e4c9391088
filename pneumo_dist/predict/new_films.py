"""Build new films into a dataset of unlabelled test films, in the same way as the training shards."""

import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from shards.build.build import build
from shards.build.films import SourceFilm, Sources
from shards.build.folders import DICOM, FILMS, IMAGES, FileKind
from shards.build.names import name_id, objection
from shards.build.options import BuildOptions, Execution
from shards.build.progress import REJECTED, read_list
from shards.build.sources import film_files
from shards.dataset.keys import SALT_BYTES, sample_key
from shards.dataset.table import Shards
from shards.dicom.film import FilmRules
from shards.errors import InputError

# How `segment` ends the names of the pictures and objects that it writes. In a folder of films, they are none.
MASK, OVERLAY, SEGMENTATION = ".mask.png", ".overlay.png", ".seg.dcm"
_FIXES = {DICOM: "DICOM files", IMAGES: "PNG or JPEG files", FILMS: "DICOM, PNG or JPEG files"}


@dataclass(frozen=True)
class NewFilm:
    """A film's file, and its name: that of the file without its suffix, below its folder where folders are kept."""

    path: Path
    name: str

    @property
    def file(self) -> str:
        """The file's own name, below the same folder."""
        return str(Path(self.name).parent / self.path.name)


@dataclass(frozen=True)
class NewFilmOptions:
    """How to build new films: the side of the stored images, the rules for films, and whether warnings refuse them.

    `samples_per_shard` is the number of films between two reports of progress.
    """

    image_size: int
    rules: FilmRules = field(default_factory=FilmRules)
    strict: bool = False
    samples_per_shard: int = 512


@dataclass(frozen=True)
class RefusedFilm:
    """A film that the build refuses, and the reason."""

    path: Path
    reason: str


def check_distinct(films: Sequence[NewFilm], keep_folders: bool = False) -> None:
    """Raise InputError, naming both and the fix, for two films whose outputs would have the same name."""
    first: dict[str, Path] = {}
    for film in films:
        other = first.setdefault(film.name, film.path)
        if other is not film.path:
            keep = "" if keep_folders or other.parent == film.path.parent else "pass --keep-folders, "
            raise InputError(
                f"{other} and {film.path}: their outputs would both be called {film.name}; {keep}segment them into two "
                "folders, or rename one"
            )


def find_films(
    sources: Sequence[Path], kind: FileKind = FILMS, keep_folders: bool = False, leave_out: Sequence[Path] = ()
) -> list[NewFilm]:
    """Replace each folder by the films below it, and keep files and their order.

    Broken links with the suffix of a film are included, to be refused by name. What `segment` has written is not.

    Args:
        sources: Files and folders.
        kind: Kind of the films to find in folders.
        keep_folders: Name a film by its path below the given folder.
        leave_out: Folders in which no film is looked for, unless they are among the sources.

    Raises:
        InputError: A path is missing, or a folder holds no films.
    """
    films: list[NewFilm] = []
    for source in sources:
        if source.is_dir():
            paths, others = film_files(source, kind, leave_out)
            paths = [path for path in paths if not path.name.lower().endswith((MASK, OVERLAY, SEGMENTATION))]
            if not paths:
                raise InputError(f"{source}: holds no films{others}; give a folder with {_FIXES[kind]}")
            for path in paths:
                folder = path.parent.relative_to(source) if keep_folders else Path()
                films.append(NewFilm(path, str(folder / name_id(path))))
        elif source.is_file():
            films.append(NewFilm(source, name_id(source)))
        else:
            raise InputError(f"{source}: no such file")
    return films


def film_shards(
    films: Sequence[NewFilm],
    folder: Path,
    options: NewFilmOptions,
    workers: int = 1,
    on_film: Callable[[int], None] | None = None,
    salt: bytes | None = None,
) -> tuple[Shards | None, list[RefusedFilm]]:
    """Build DICOM, PNG and JPEG files as test films into a new scratch folder.

    Near-duplicates are kept. Of films with the same name, the first is used.

    Args:
        on_film: Called with the number of films of each finished shard.
        salt: The salt of an earlier build; a folder that already holds these films is then reused.

    Returns:
        The dataset, or None if all films were refused, and the refused films: those that the build refuses, with its
        reasons, and with `strict` also those with a warning. `row_films` maps rows to films.

    Raises:
        InputError: There are no films, or the folder is in use.
    """
    if not films:
        raise InputError("no films to segment; name files or folders")
    first: dict[str, Path] = {}
    refused: list[RefusedFilm] = []
    for film in films:
        if (reason := objection(film.name)) is not None:
            refused.append(RefusedFilm(film.path, reason))
        elif film.name in first:
            refused.append(RefusedFilm(film.path, f"same image id as {first[film.name]}; remove one of the two"))
        else:
            first[film.name] = film.path
    if not first:
        return None, refused
    sources = [SourceFilm(sample_key(name), name, path, path.parent, "test") for name, path in first.items()]
    build_options = BuildOptions(
        image_size=options.image_size,
        samples_per_shard=options.samples_per_shard,
        any_film=options.rules.any_film,
        allow_burned_in=options.rules.allow_burned_in,
        max_pixels=options.rules.max_pixels,
        strict=options.strict,
        duplicate_distance=None,
    )
    # Films are not grouped by patient here, and a discarded salt leaves no trace of them.
    key = salt or secrets.token_bytes(SALT_BYTES)
    in_order = Sources((), tuple(sorted(sources, key=lambda source: source.key)), (), ())
    try:
        # A dataset needs at least one film. The build writes the list of refused films before it raises.
        build(in_order, folder, build_options, key, Execution(workers, max_rejects=len(sources) - 1), on_film)
    except InputError:
        if {name for name, *_ in read_list(folder / REJECTED)} != set(first):
            raise
    refused += [RefusedFilm(first[name], reason) for name, _, reason in read_list(folder / REJECTED)]
    return (Shards(folder) if len(refused) < len(films) else None), refused


def row_films(shards: Shards, films: Sequence[NewFilm]) -> list[NewFilm]:
    """Return the film that each row of a dataset of `film_shards` was built from."""
    first: dict[str, NewFilm] = {}
    for film in films:
        first.setdefault(film.name, film)
    return [first[str(image_id)] for image_id in shards.column("image_id")]
