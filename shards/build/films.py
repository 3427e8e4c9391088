"""The films of a build before they are read: where each is, what it is called, and what its label is."""

from collections import Counter
from collections.abc import Container, Iterable
from dataclasses import dataclass, replace
from pathlib import Path

from shards.build.folders import IMAGES, Skipped
from shards.build.labels import LabelRow
from shards.console import printable
from shards.dataset.keys import image_pseudonym

NO_ROW = "no row in the labels"
NO_MASK = "no mask of its name in --masks; pass --absent-mask negative if films without one have no pneumothorax"


@dataclass(frozen=True)
class SourceFilm:
    """One film to build: where it is and what its label is. `labels` is None for test films and mask files."""

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
        return bool(IMAGES.judge(self.path))

    @property
    def listed_path(self) -> str:
        """The path below the folder that was given, for lists that people read; empty under a pseudonym.

        Characters that cannot be printed are escaped, and no spreadsheet takes it for a formula.
        """
        if self.pseudonymous:
            return ""
        path = printable(str(self.path.relative_to(self.root)))
        return f"./{path}" if path[0] in "=+-@＝＋－＠" else path


@dataclass(frozen=True)
class SetAside:
    """A film that is refused before it is read; `twin` is the film that is taken under its image id."""

    source: SourceFilm
    reason: str
    twin: SourceFilm | None = None

    def __str__(self) -> str:
        if self.twin is None:
            return self.reason
        return f"same image id as {self.twin.listed_path or 'another film'}; {self.reason}"


@dataclass(frozen=True)
class Sources:
    """Films in key order, films without a label (`unlabelled_reason` says why), and films set aside before reading.

    `skipped` are the files in the folders that are no films.
    """

    train: tuple[SourceFilm, ...]
    test: tuple[SourceFilm, ...]
    unlabelled: tuple[SourceFilm, ...]
    set_aside: tuple[SetAside, ...]
    unlabelled_reason: str = NO_ROW
    skipped: tuple[Skipped, ...] = ()

    @property
    def skipped_counts(self) -> dict[str, int]:
        """Files by the reason why they are skipped."""
        return dict(sorted(Counter(item.reason for item in self.skipped).items()))

    def without(self, image_ids: Container[str]) -> "Sources":
        """Return the films whose image id is not among the given ones."""

        def rest(films: Iterable[SourceFilm]) -> tuple[SourceFilm, ...]:
            return tuple(source for source in films if source.image_id not in image_ids)

        set_aside = tuple(item for item in self.set_aside if item.source.image_id not in image_ids)
        return replace(
            self, train=rest(self.train), test=rest(self.test), unlabelled=rest(self.unlabelled), set_aside=set_aside
        )

    def pseudonymise(self, salt: bytes) -> tuple["Sources", dict[str, str]]:
        """Return the films under keyed pseudonyms, in the pseudonyms' order, and image id -> pseudonym."""
        names: dict[str, str] = {}

        def hide(source: SourceFilm) -> SourceFilm:
            name = names.setdefault(source.image_id, image_pseudonym(source.image_id, salt))
            return replace(source, key=name, image_id=name, pseudonymous=True)

        def hidden(films: Iterable[SourceFilm]) -> tuple[SourceFilm, ...]:
            return tuple(sorted(map(hide, films), key=lambda source: source.key))

        set_aside = tuple(
            replace(item, source=hide(item.source), twin=item.twin and hide(item.twin)) for item in self.set_aside
        )
        films = replace(
            self,
            train=hidden(self.train),
            test=hidden(self.test),
            unlabelled=hidden(self.unlabelled),
            set_aside=set_aside,
        )
        return films, names


@dataclass(frozen=True)
class Held:
    """The image ids of a dataset, asked for by the films' own ids; `salt` where the dataset holds pseudonyms."""

    image_ids: frozenset[str] = frozenset()
    salt: bytes | None = None

    def __contains__(self, image_id: object) -> bool:
        return (image_id if self.salt is None else image_pseudonym(str(image_id), self.salt)) in self.image_ids
