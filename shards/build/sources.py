"""Which films go into a build: folders and labels become an ordered list of sources."""

from collections.abc import Callable, Container, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from shards.build.labels import LabelRow, Labels, match_labels
from shards.dataset.keys import image_pseudonym, sample_key
from shards.dicom import film as dicom
from shards.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})


@dataclass(frozen=True)
class Source:
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
        return self.path.suffix.lower() not in IMAGE_SUFFIXES

    @property
    def listed_path(self) -> str:
        """The path below the folder that was given, for lists that people read; empty under a pseudonym."""
        return "" if self.pseudonymous else str(self.path.relative_to(self.root))


@dataclass(frozen=True)
class Sources:
    """Films in key order, films without a label, and films set aside before reading (with the reason)."""

    train: tuple[Source, ...]
    test: tuple[Source, ...]
    unlabelled: tuple[Source, ...]
    duplicates: tuple[tuple[Source, str], ...]

    def without(self, image_ids: Container[str]) -> "Sources":
        """Return the films whose image id is not among the given ones."""

        def rest(films: Iterable[Source]) -> tuple[Source, ...]:
            return tuple(source for source in films if source.image_id not in image_ids)

        duplicates = tuple((s, reason) for s, reason in self.duplicates if s.image_id not in image_ids)
        return Sources(rest(self.train), rest(self.test), rest(self.unlabelled), duplicates)

    def pseudonymise(self, salt: bytes) -> tuple["Sources", dict[str, str]]:
        """Return the films under keyed pseudonyms, in the pseudonyms' order, and image id -> pseudonym."""
        names: dict[str, str] = {}

        def hide(source: Source) -> Source:
            name = names.setdefault(source.image_id, image_pseudonym(source.image_id, salt))
            return replace(source, key=name, image_id=name, pseudonymous=True)

        def hidden(films: Iterable[Source]) -> tuple[Source, ...]:
            return tuple(sorted(map(hide, films), key=lambda source: source.key))

        duplicates = tuple(
            (hide(source), "the same image id stands twice; remove one") for source, _ in self.duplicates
        )
        return Sources(hidden(self.train), hidden(self.test), hidden(self.unlabelled), duplicates), names


def find_sources(
    dicom_dirs: Sequence[Path],
    image_dirs: Sequence[Path],
    masks: Path | None,
    labels: Labels | None,
    labels_path: Path | None,
    test_dicom_dirs: Sequence[Path],
    test_image_dirs: Sequence[Path],
    always_train_dirs: Sequence[Path] = (),
    known: Container[str] = frozenset(),
) -> Sources:
    """Pair films with labels; `known` are the films of a dataset that these are added to.

    `always_train_dirs` hold labelled films (DICOM or images) that train in every fold and are never validated on.
    Raises InputError for a missing or empty folder, for labels of films that are not there, and where neither or both
    kinds of label are given.
    """
    if (dicom_dirs or image_dirs or always_train_dirs) and (labels is None) == (masks is None):
        raise InputError("give labels for the films either with --rle CSV or with --masks DIR")
    if not (dicom_dirs or image_dirs or always_train_dirs or test_dicom_dirs or test_image_dirs):
        raise InputError("no films: give --dicom DIR, --images DIR, --test-dicom DIR or --test-images DIR")
    found = [
        *_scan(dicom_dirs, "train", _dicom_files, "--dicom"),
        *_scan(image_dirs, "train", _image_files, "--images"),
        *_scan(always_train_dirs, "always_train", _any_files, "--always-train"),
        *_scan(test_dicom_dirs, "test", _dicom_files, "--test-dicom"),
        *_scan(test_image_dirs, "test", _image_files, "--test-images"),
    ]
    sources, duplicates = _distinct(found)
    train = [source for source in sources if source.split != "test"]
    test = tuple(source for source in sources if source.split == "test")
    if labels is not None:
        labels = match_labels(labels, [source.image_id for source in sources], known)
        _check_labels_have_films(labels, sources, labels_path, known)
        labelled = [replace(source, labels=labels[source.image_id]) for source in train if source.image_id in labels]
        unlabelled = [source for source in train if source.image_id not in labels]
    elif masks is not None:
        mask_of: dict[str, Path] = {}
        for path in _image_files(_existing(masks, "--masks")):
            first = mask_of.setdefault(path.stem, path)
            if first is not path:
                raise InputError(f"{path}: a second mask for {path.stem} besides {first}; remove one of the two")
        labelled = [replace(s, mask_path=mask_of[s.image_id]) for s in train if s.image_id in mask_of]
        unlabelled = [source for source in train if source.image_id not in mask_of]
        stray = sorted(set(mask_of) - {source.image_id for source in train})
        if stray:
            raise InputError(f"{mask_of[stray[0]]}: a mask without a film ({len(stray)} in all); add or remove it")
    else:
        labelled, unlabelled = [], []
    return Sources(tuple(labelled), test, tuple(unlabelled), tuple(duplicates))


def _existing(folder: Path, option: str) -> Path:
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder; check {option}")
    return folder


def _scan(folders: Iterable[Path], split: str, files: Callable[[Path], list[Path]], option: str) -> list[Source]:
    result = []
    for folder in folders:
        paths = files(_existing(folder, option))
        if not paths:
            raise InputError(f"{folder}: holds no films; check {option}")
        for path in paths:
            image_id = path.stem if path.suffix.lower() in dicom.SUFFIXES | IMAGE_SUFFIXES else path.name
            result.append(Source(sample_key(image_id), image_id, path, folder, split))
    return result


def _image_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.suffix.lower() in IMAGE_SUFFIXES and path.is_file())


def _dicom_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*") if path.is_file() and _looks_like_dicom(path))


def _any_files(folder: Path) -> list[Path]:
    return sorted([*_image_files(folder), *_dicom_files(folder)])


def _looks_like_dicom(path: Path) -> bool:
    if path.suffix.lower() in dicom.SUFFIXES:
        return True
    if path.name.startswith(".") or path.name == "DICOMDIR":
        return False
    with path.open("rb") as stream:
        return stream.read(132)[128:] == b"DICM"


def _distinct(found: Iterable[Source]) -> tuple[list[Source], list[tuple[Source, str]]]:
    by_key: dict[str, Source] = {}
    duplicates = []
    for source in found:
        first = by_key.setdefault(source.key, source)
        if first is not source:
            duplicates.append((source, f"same image id as {first.listed_path}; remove one of the two"))
    return sorted(by_key.values(), key=lambda source: source.key), duplicates


def _check_labels_have_films(
    labels: Labels, sources: Iterable[Source], path: Path | None, known: Container[str]
) -> None:
    split_of = {source.image_id: source.split for source in sources}
    missing = [
        image_id
        for image_id in labels
        if split_of.get(image_id, "test") == "test" and (image_id in split_of or image_id not in known)
    ]
    if not missing:
        return
    line = labels[missing[0]][0].line
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    if missing[0] in split_of:
        raise InputError(f"{path} line {line}: {missing[0]}{more} has a label but is given as a test film; drop one")
    raise InputError(
        f"{path} line {line}: no film for the label of {missing[0]}{more}; add its folder with --dicom or --images, "
        "or remove the row"
    )
