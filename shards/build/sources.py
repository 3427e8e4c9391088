"""Which films go into a build: folders and labels become an ordered list of sources."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shards.build.films import NO_MASK, NO_ROW, SetAside, SourceFilm, Sources
from shards.build.folders import (
    DANGLING,
    DICOM,
    FILMS,
    IMAGES,
    TWICE,
    FileKind,
    Skipped,
    kinds,
    list_folders,
)
from shards.build.labels import LabelRow, Labels, match_labels
from shards.build.names import name_id, objection, sop_id, spelling
from shards.build.rows import without_suffix
from shards.dataset import rle
from shards.dataset.keys import sample_key
from shards.errors import InputError

__all__ = ["ABSENT_MASKS", "SourceFilm", "Sources", "dicom_files", "find_sources"]

ABSENT_MASKS = ("unlabelled", "negative")


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
    *,
    id_kind: str = "name",
    absent_mask: str = "unlabelled",
    out: Path | None = None,
) -> Sources:
    """Pair films with labels; `known` are the films of a dataset that these are added to.

    `always_train_dirs` hold labelled films (DICOM or images) that train in every fold and are never validated on.
    `id_kind` sop takes the DICOM files' SOPInstanceUIDs for image ids in place of their names; `absent_mask` negative
    takes an empty mask where `masks` holds none. Below `out`, the dataset
    itself, nothing is read.

    Raises InputError for a missing or empty folder, for names that cannot be image ids, for labels of films that are
    not there, and where neither or both kinds of label are given.
    """
    if (dicom_dirs or image_dirs or always_train_dirs) and (labels is None) == (masks is None):
        raise InputError("give labels for the films either with --rle CSV or with --masks DIR")
    if not (dicom_dirs or image_dirs or always_train_dirs or test_dicom_dirs or test_image_dirs):
        raise InputError("no films: give --dicom DIR, --images DIR, --test-dicom DIR or --test-images DIR")
    if absent_mask != "unlabelled" and masks is None:
        raise InputError(f"--absent-mask {absent_mask}: goes with --masks DIR; a CSV of --rle says -1 for no mask")
    film_dirs = (*dicom_dirs, *image_dirs, *always_train_dirs, *test_dicom_dirs, *test_image_dirs)
    if masks is not None and masks.resolve() in {folder.resolve() for folder in film_dirs}:
        raise InputError(f"{masks}: --masks is a folder of films too; put the masks into a folder of their own")
    out_dirs = () if out is None else (out,)
    beside_films = out_dirs if masks is None else (*out_dirs, masks)
    found: list[SourceFilm] = []
    skipped: list[Skipped] = []
    for folders, split, kind, option in (
        (dicom_dirs, "train", DICOM, "--dicom"),
        (image_dirs, "train", IMAGES, "--images"),
        (always_train_dirs, "always_train", FILMS, "--always-train"),
        (test_dicom_dirs, "test", DICOM, "--test-dicom"),
        (test_image_dirs, "test", IMAGES, "--test-images"),
    ):
        more_found, more_skipped = _scan(folders, split, kind, option, beside_films)
        found += more_found
        skipped += more_skipped
    nameless: list[SetAside] = []
    if id_kind == "sop":
        found, nameless = _under_sop_ids(found)
    spelt = spelling(dict.fromkeys([*(labels or ()), *map(without_suffix, labels or ())]))
    names = {source.path: spelt(source.image_id) for source in found}
    _check_names(names)
    found = [replace(source, key=sample_key(name), image_id=name) for source in found for name in [names[source.path]]]
    sources, duplicates, linked_twice = _distinct(found, id_kind)
    train = [source for source in sources if source.split != "test"]
    test = tuple(source for source in sources if source.split == "test")
    labelled: list[SourceFilm] = []
    if labels is not None:
        labels = match_labels(labels, [source.image_id for source in sources], known)
        _check_labels_have_films(labels, sources, labels_path, known, nameless)
        labelled = [replace(source, labels=labels[source.image_id]) for source in train if source.image_id in labels]
    elif masks is not None:
        mask_of, other_files = _masks(masks, (*out_dirs, *film_dirs))
        skipped += other_files
        labelled = _with_masks(train, mask_of, known, absent_mask)
    taken = {source.key for source in labelled}
    return Sources(
        train=tuple(labelled),
        test=test,
        unlabelled=tuple(source for source in train if source.key not in taken),
        set_aside=(*duplicates, *nameless),
        unlabelled_reason=NO_ROW if masks is None else NO_MASK,
        skipped=(*skipped, *linked_twice),
    )


def dicom_files(folder: Path) -> tuple[list[Path], str]:
    """Return the DICOM files below a folder in order, and in words what else lies there, an empty text for nothing.

    Links to nothing that are called like a DICOM file are among them.
    """
    (listing,) = list_folders([folder], DICOM)
    gone = [item.path for item in listing.skipped if item.reason == DANGLING and not DICOM.judge(item.path)]
    return sorted([*listing.files, *gone]), f" but {kinds(listing.skipped)}" if listing.skipped else ""


def _existing(folder: Path, option: str) -> Path:
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder}: is no folder; give the folder that holds the file with {option}")
    raise InputError(f"{folder}: no such folder; check {option}")


def _scan(
    folders: Sequence[Path], split: str, kind: FileKind, option: str, leave_out: Sequence[Path]
) -> tuple[list[SourceFilm], list[Skipped]]:
    found: list[SourceFilm] = []
    skipped: list[Skipped] = []
    for listing in list_folders([_existing(folder, option) for folder in folders], kind, leave_out):
        if not listing.files and not listing.is_shared:
            raise InputError(
                f"{listing.folder}: holds no films; {option} takes {kind.words}, and found {kinds(listing.skipped)}"
            )
        skipped += listing.skipped
        found += [SourceFilm("", name_id(path), path, listing.folder, split) for path in listing.files]
    return found, skipped


def _under_sop_ids(found: Sequence[SourceFilm]) -> tuple[list[SourceFilm], list[SetAside]]:
    """Return the films under their SOPInstanceUIDs, and those without one under their paths."""
    image = next((source for source in found if not source.is_dicom), None)
    if image:
        raise InputError(f"{image.path}: a PNG or JPEG has no SOPInstanceUID; build it without --id sop")
    named, nameless = [], []
    for source in found:
        uid = sop_id(source.path)
        if uid is None:
            named_by_path = replace(source, image_id=source.listed_path)
            nameless.append(SetAside(named_by_path, "no SOPInstanceUID can be read in it; export it again"))
        else:
            named.append(replace(source, image_id=uid))
    return named, nameless


def _check_names(image_ids: Mapping[Path, str]) -> None:
    wrong = [(path, text) for path, image_id in image_ids.items() if (text := objection(image_id))]
    if wrong:
        path, text = wrong[0]
        more = f" ({len(wrong)} such names in all)" if len(wrong) > 1 else ""
        raise InputError(f"{path}: {text}{more}")


def _distinct(found: Iterable[SourceFilm], id_kind: str) -> tuple[list[SourceFilm], list[SetAside], list[Skipped]]:
    """Return the films in key order, those whose image id another has, and links to the very film that is taken."""
    by_key: dict[str, SourceFilm] = {}
    twins: list[SetAside] = []
    linked: list[Skipped] = []
    for source in found:
        first = by_key.setdefault(source.key, source)
        if first is source:
            continue
        if source.split == first.split and source.path.resolve() == first.path.resolve():
            linked.append(Skipped(source.path, TWICE))
            continue
        fix = "remove one of the two"
        if id_kind == "name" and source.is_dicom and first.is_dicom:
            fix += ", or pass --id sop where different films have one file name"
        twins.append(SetAside(source, fix, first))
    return sorted(by_key.values(), key=lambda source: source.key), twins, linked


def _masks(folder: Path, leave_out: Sequence[Path]) -> tuple[dict[str, Path], tuple[Skipped, ...]]:
    """Return the mask files by their names without suffix, and the other files of their folder."""
    (listing,) = list_folders([_existing(folder, "--masks")], IMAGES, leave_out)
    if not listing.files:
        raise InputError(f"{folder}: holds no masks; --masks takes {IMAGES.words}, and found {kinds(listing.skipped)}")
    _check_names({path: path.stem for path in listing.files})
    mask_of: dict[str, Path] = {}
    for path in listing.files:
        first = mask_of.setdefault(path.stem, path)
        if first.resolve() != path.resolve():
            raise InputError(f"{path}: a second mask for {path.stem} besides {first}; remove one of the two")
    return mask_of, listing.skipped


def _with_masks(
    train: Sequence[SourceFilm], mask_of: Mapping[str, Path], known: Container[str], absent_mask: str
) -> list[SourceFilm]:
    spelt = spelling(mask_of.keys())
    labelled = []
    for source in train:
        path = mask_of.get(spelt(source.image_id))
        if path is not None:
            labelled.append(replace(source, mask_path=path))
        elif absent_mask == "negative":
            labelled.append(replace(source, labels=(LabelRow(0, rle.EMPTY),)))
    used = {source.mask_path for source in labelled}
    stray = sorted(name for name, path in mask_of.items() if path not in used and name not in known)
    if stray:
        raise InputError(f"{mask_of[stray[0]]}: a mask without a film ({len(stray)} in all); add or remove it")
    return labelled


def _check_labels_have_films(
    labels: Labels,
    sources: Iterable[SourceFilm],
    path: Path | None,
    known: Container[str],
    nameless: Sequence[SetAside],
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
    if nameless:
        more += f" ({len(nameless)} films have no readable SOPInstanceUID, first {nameless[0].source.path})"
    raise InputError(
        f"{path} line {line}: no film for the label of {missing[0]}{more}; add its folder with --dicom or --images, "
        "or remove the row"
    )
