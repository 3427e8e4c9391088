"""The films of a build before they are read: their paths, image ids and labels."""

from collections import Counter
from collections.abc import Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shards.build.folders import Skipped, is_image
from shards.build.labels import LabelRow
from shards.console import printable
from shards.dataset.keys import image_pseudonym
from shards.spreadsheet import inert, is_formula

ABSENT_MASKS = ("unlabelled", "negative")
# These reasons and those of SetAside count in a build's digest: with other words, a finished dataset is another one.
NO_ROW = "no row in the labels"
NO_MASK = "no mask of its name in --masks; pass --absent-mask negative if films without one have no pneumothorax"


@dataclass(frozen=True)
class FilmFolders:
    """Folders of films. Films in `always_train` (DICOM or images) train in every fold and are never validated on.

    Films in the unlabelled folders become the split `unlabelled`, from which training can learn without labels.
    """

    dicom: Sequence[Path] = ()
    images: Sequence[Path] = ()
    always_train: Sequence[Path] = ()
    test_dicom: Sequence[Path] = ()
    test_images: Sequence[Path] = ()
    unlabelled_dicom: Sequence[Path] = ()
    unlabelled_images: Sequence[Path] = ()

    @property
    def labelled(self) -> tuple[Path, ...]:
        """Folders whose films need labels."""
        return (*self.dicom, *self.images, *self.always_train)

    @property
    def all(self) -> tuple[Path, ...]:
        return (*self.labelled, *self.test_dicom, *self.test_images, *self.unlabelled_dicom, *self.unlabelled_images)


@dataclass(frozen=True)
class LabelFiles:
    """The labels of a build: a CSV, or a folder of masks.

    `absent_mask`, one of ABSENT_MASKS, says what a film without a file in `masks` is. `keep_unlabelled` builds films
    without a label into the split `unlabelled`, instead of only listing them.
    """

    csv: Path | None = None
    masks: Path | None = None
    absent_mask: str = "unlabelled"
    keep_unlabelled: bool = False


@dataclass(frozen=True)
class SourceFilm:
    """One film to build. `root` is the given folder; `labels` is None for films without a label or with a mask file."""

    key: str
    image_id: str
    path: Path
    root: Path
    split: str
    labels: tuple[LabelRow, ...] | None = None
    mask_path: Path | None = None
    pseudonymous: bool = False

    @property
    def is_dicom(self) -> bool:
        return not is_image(self.path)

    @property
    def listed_path(self) -> str:
        """The path below `root`, for lists that people read; empty under a pseudonym.

        Unprintable characters are escaped, and no spreadsheet runs it as a formula.
        """
        if self.pseudonymous:
            return ""
        path = printable(str(self.path.relative_to(self.root)))
        return inert(f"./{path}" if is_formula(path[0]) else path)


@dataclass(frozen=True)
class SetAside:
    """A film that is refused before it is read. `twin` is the film that uses its image id already."""

    source: SourceFilm
    reason: str
    twin: SourceFilm | None = None

    def __str__(self) -> str:
        if self.twin is None:
            return self.reason
        return f"same image id as {self.twin.listed_path or 'another film'}; {self.reason}"


@dataclass(frozen=True)
class Sources:
    """Films of a build in key order, films that are left out without a label (and why), and films set aside unread.

    `unlabelled` are films of the split of that name. `skipped` are the other files in the folders.
    """

    train: tuple[SourceFilm, ...]
    test: tuple[SourceFilm, ...]
    left_out: tuple[SourceFilm, ...]
    set_aside: tuple[SetAside, ...]
    left_out_reason: str = NO_ROW
    skipped: tuple[Skipped, ...] = ()
    unlabelled: tuple[SourceFilm, ...] = ()

    @property
    def films(self) -> tuple[SourceFilm, ...]:
        """The films to build."""
        return (*self.train, *self.test, *self.unlabelled)

    @property
    def skipped_counts(self) -> dict[str, int]:
        """Numbers of skipped files by reason."""
        return dict(sorted(Counter(item.reason for item in self.skipped).items()))

    def without(self, image_ids: Container[str]) -> "Sources":
        """Return the sources without films of these image ids."""

        def rest(films: Iterable[SourceFilm]) -> tuple[SourceFilm, ...]:
            return tuple(film for film in films if film.image_id not in image_ids)

        set_aside = tuple(item for item in self.set_aside if item.source.image_id not in image_ids)
        return replace(
            self,
            train=rest(self.train),
            test=rest(self.test),
            unlabelled=rest(self.unlabelled),
            left_out=rest(self.left_out),
            set_aside=set_aside,
        )

    def pseudonymise(self, salt: bytes) -> tuple["Sources", dict[str, str]]:
        """Return the sources under keyed pseudonyms, in the pseudonyms' order, and image id -> pseudonym."""
        names: dict[str, str] = {}

        def hide(film: SourceFilm) -> SourceFilm:
            name = names.setdefault(film.image_id, image_pseudonym(film.image_id, salt))
            return replace(film, key=name, image_id=name, pseudonymous=True)

        def hidden(films: Iterable[SourceFilm]) -> tuple[SourceFilm, ...]:
            return tuple(sorted(map(hide, films), key=lambda film: film.key))

        set_aside = tuple(
            replace(item, source=hide(item.source), twin=item.twin and hide(item.twin)) for item in self.set_aside
        )
        films = replace(
            self,
            train=hidden(self.train),
            test=hidden(self.test),
            unlabelled=hidden(self.unlabelled),
            left_out=hidden(self.left_out),
            set_aside=set_aside,
        )
        return films, names


@dataclass(frozen=True)
class KnownIds:
    """The image ids of a dataset, looked up by the films' own ids. `salt` is that of a dataset with pseudonyms."""

    image_ids: frozenset[str] = frozenset()
    salt: bytes | None = None

    def __contains__(self, image_id: object) -> bool:
        return (image_id if self.salt is None else image_pseudonym(str(image_id), self.salt)) in self.image_ids
