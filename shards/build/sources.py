"""Finding the films of a build: folders and labels become an ordered list of films."""

from collections.abc import Container, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from shards.build.films import NO_MASK, NO_ROW, FilmFolders, LabelFiles, SetAside, SourceFilm, Sources
from shards.build.folders import (
    DANGLING,
    DICOM,
    FILMS,
    IMAGES,
    NAMED_TWICE,
    TWICE,
    FileKind,
    Skipped,
    kinds,
    list_folders,
)
from shards.build.labels import LabelRow, Labels, load_labels, match_labels
from shards.build.names import name_id, objection, sop_id, spelling
from shards.build.rows import without_suffix
from shards.dataset import rle
from shards.dataset.check import LABELLED_SPLITS
from shards.dataset.keys import sample_key
from shards.errors import InputError

_NO_LABELS = LabelFiles()


def find_sources(
    folders: FilmFolders,
    labels: LabelFiles = _NO_LABELS,
    known: Container[str] = frozenset(),
    *,
    id_kind: str = "name",
    out: Path | None = None,
) -> Sources:
    """Find the films below the folders and pair them with their labels.

    Args:
        folders: Folders of films.
        labels: Label CSV, or folder of masks.
        known: Image ids of the dataset that the films are added to; their labels need no film.
        id_kind: `name` takes image ids from file names, `sop` from the SOPInstanceUIDs of DICOM files.
        out: Folder of the dataset, in which no film is looked for.

    Raises:
        InputError: A folder is missing or holds no films, a name cannot be an image id, a label has no film, or the
            labels are given not at all or in both ways.
    """
    _check_inputs(folders, labels)
    rows = None if labels.csv is None else load_labels(labels.csv)
    out_dirs = () if out is None else (out,)
    films, skipped = _list_films(folders, out_dirs if labels.masks is None else (*out_dirs, labels.masks))
    nameless: list[SetAside] = []
    if id_kind == "sop":
        films, nameless = _under_sop_ids(films)
    distinct, duplicates, linked_twice = _distinct(_named(films, rows or {}), id_kind)
    train = [film for film in distinct if film.split in LABELLED_SPLITS]
    labelled: list[SourceFilm] = []
    if rows is not None:
        rows = match_labels(rows, [film.image_id for film in distinct], known)
        _check_labels_have_films(rows, distinct, labels.csv, known, nameless)
        labelled = [replace(film, labels=rows[film.image_id]) for film in train if film.image_id in rows]
    elif labels.masks is not None:
        mask_of, other_files = _list_masks(labels.masks, (*out_dirs, *folders.all))
        skipped += other_files
        labelled = _with_masks(train, mask_of, known, labels.absent_mask)
    labelled_keys = {film.key for film in labelled}
    left_out = [film for film in train if film.key not in labelled_keys]
    unlabelled = [film for film in distinct if film.split == "unlabelled"]
    if labels.keep_unlabelled:
        unlabelled += [replace(film, split="unlabelled") for film in left_out]
        left_out = []
    return Sources(
        train=tuple(labelled),
        test=tuple(film for film in distinct if film.split == "test"),
        unlabelled=tuple(sorted(unlabelled, key=lambda film: film.key)),
        left_out=tuple(left_out),
        set_aside=(*duplicates, *nameless),
        left_out_reason=NO_ROW if labels.masks is None else NO_MASK,
        skipped=(*skipped, *linked_twice),
    )


def film_files(folder: Path, kind: FileKind, leave_out: Iterable[Path] = ()) -> tuple[list[Path], str]:
    """Return the films of a kind below a folder in order, and a description of its other files (empty without any).

    The films include broken links with the name of a film. Folders in `leave_out` are not searched.
    """
    (listing,) = list_folders([folder], kind, leave_out)
    broken = [item.path for item in listing.skipped if item.reason == DANGLING and not kind.judge(item.path)]
    return sorted([*listing.files, *broken]), f" but {kinds(listing.skipped)}" if listing.skipped else ""


def _check_inputs(folders: FilmFolders, labels: LabelFiles) -> None:
    if folders.labelled and (labels.csv is None) == (labels.masks is None):
        raise InputError("give labels for the films either with --rle CSV or with --masks DIR")
    if not folders.all:
        raise InputError("no films: give --dicom DIR, --images DIR, --test-dicom DIR or --test-images DIR")
    if labels.keep_unlabelled and not folders.labelled:
        raise InputError("--keep-unlabelled is for films of --dicom and --images, and there are none")
    if labels.absent_mask != "unlabelled" and labels.masks is None:
        raise InputError(
            f"--absent-mask {labels.absent_mask}: works with --masks DIR only; in a CSV for --rle, -1 means no mask"
        )
    if labels.masks is not None and labels.masks.resolve() in {folder.resolve() for folder in folders.all}:
        raise InputError(f"{labels.masks}: --masks is also a folder of films; move the masks to another folder")


def _list_films(folders: FilmFolders, leave_out: Sequence[Path]) -> tuple[list[SourceFilm], list[Skipped]]:
    films: list[SourceFilm] = []
    skipped: list[Skipped] = []
    for paths, split, kind, option in (
        (folders.dicom, "train", DICOM, "--dicom"),
        (folders.images, "train", IMAGES, "--images"),
        (folders.always_train, "always_train", FILMS, "--always-train"),
        (folders.test_dicom, "test", DICOM, "--test-dicom"),
        (folders.test_images, "test", IMAGES, "--test-images"),
        # Last: a film that another option gives too is not an unlabelled one.
        (folders.unlabelled_dicom, "unlabelled", DICOM, "--unlabelled-dicom"),
        (folders.unlabelled_images, "unlabelled", IMAGES, "--unlabelled-images"),
    ):
        for listing in list_folders([_existing(path, option) for path in paths], kind, leave_out):
            if not listing.files and not listing.is_shared:
                raise InputError(
                    f"{listing.folder}: holds no films; {option} takes {kind.words}, and found {kinds(listing.skipped)}"
                )
            skipped += listing.skipped
            films += [SourceFilm("", name_id(path), path, listing.folder, split) for path in listing.files]
    return films, skipped


def _existing(folder: Path, option: str) -> Path:
    if folder.is_dir():
        return folder
    if folder.exists():
        raise InputError(f"{folder}: not a folder; give the folder that holds the file with {option}")
    raise InputError(f"{folder}: no such folder; check {option}")


def _under_sop_ids(films: Sequence[SourceFilm]) -> tuple[list[SourceFilm], list[SetAside]]:
    """Return the films named by their SOPInstanceUIDs, and the films without one named by their paths."""
    image = next((film for film in films if not film.is_dicom), None)
    if image:
        raise InputError(f"{image.path}: a PNG or JPEG has no SOPInstanceUID; build it without --id sop")
    named, nameless = [], []
    for film in films:
        uid = sop_id(film.path)
        if uid is None:
            named_by_path = replace(film, image_id=film.listed_path)
            nameless.append(SetAside(named_by_path, "no SOPInstanceUID can be read in it; export it again"))
        else:
            named.append(replace(film, image_id=uid))
    return named, nameless


def _named(films: Sequence[SourceFilm], rows: Labels) -> list[SourceFilm]:
    """Return the films with keys, their image ids spelled as in the labels. Raises InputError for unusable names."""
    spelled = spelling(dict.fromkeys([*rows, *map(without_suffix, rows)]))
    names = [spelled(film.image_id) for film in films]
    _check_names(zip((film.path for film in films), names, strict=True))
    return [replace(film, key=sample_key(name), image_id=name) for film, name in zip(films, names, strict=True)]


def _check_names(image_ids: Iterable[tuple[Path, str]]) -> None:
    wrong = [(path, text) for path, image_id in image_ids if (text := objection(image_id))]
    if wrong:
        path, text = wrong[0]
        more = f" ({len(wrong)} such names in all)" if len(wrong) > 1 else ""
        raise InputError(f"{path}: {text}{more}")


def _distinct(films: Iterable[SourceFilm], id_kind: str) -> tuple[list[SourceFilm], list[SetAside], list[Skipped]]:
    """Return the films in key order, films whose image id is used already, and files that need no film of their own."""
    by_key: dict[str, SourceFilm] = {}
    twins: list[SetAside] = []
    linked: list[Skipped] = []
    for film in films:
        first = by_key.setdefault(film.key, film)
        if first is film:
            continue
        if film.split == first.split and film.path.resolve() == first.path.resolve():
            linked.append(Skipped(film.path, TWICE))
            continue
        if film.split == "unlabelled":
            linked.append(Skipped(film.path, NAMED_TWICE))
            continue
        fix = "remove one of the two"
        if id_kind == "name" and film.is_dicom and first.is_dicom:
            fix += ", or pass --id sop where different films have one file name"
        twins.append(SetAside(film, fix, first))
    return sorted(by_key.values(), key=lambda film: film.key), twins, linked


def _list_masks(folder: Path, leave_out: Sequence[Path]) -> tuple[dict[str, Path], tuple[Skipped, ...]]:
    """Return the mask files by their names without suffix, and the other files of their folder."""
    (listing,) = list_folders([_existing(folder, "--masks")], IMAGES, leave_out)
    if not listing.files:
        raise InputError(f"{folder}: holds no masks; --masks takes {IMAGES.words}, and found {kinds(listing.skipped)}")
    _check_names((path, path.stem) for path in listing.files)
    mask_of: dict[str, Path] = {}
    for path in listing.files:
        first = mask_of.setdefault(path.stem, path)
        if first.resolve() != path.resolve():
            raise InputError(f"{path}: a second mask for {path.stem}, after {first}; remove one of the two")
    return mask_of, listing.skipped


def _with_masks(
    train: Sequence[SourceFilm], mask_of: Mapping[str, Path], known: Container[str], absent_mask: str
) -> list[SourceFilm]:
    spelled = spelling(mask_of.keys())
    labelled = []
    for film in train:
        path = mask_of.get(spelled(film.image_id))
        if path is not None:
            labelled.append(replace(film, mask_path=path))
        elif absent_mask == "negative":
            labelled.append(replace(film, labels=(LabelRow(0, rle.EMPTY),)))
    used = {film.mask_path for film in labelled}
    stray = sorted(name for name, path in mask_of.items() if path not in used and name not in known)
    if stray:
        raise InputError(f"{mask_of[stray[0]]}: a mask without a film ({len(stray)} in all); add the film or remove it")
    return labelled


def _check_labels_have_films(
    labels: Labels,
    films: Iterable[SourceFilm],
    path: Path | None,
    known: Container[str],
    nameless: Sequence[SetAside],
) -> None:
    split_of = {film.image_id: film.split for film in films}
    missing = [
        image_id
        for image_id in labels
        if split_of.get(image_id, "test") not in LABELLED_SPLITS and (image_id in split_of or image_id not in known)
    ]
    if not missing:
        return
    line = labels[missing[0]][0].line
    more = f" (and {len(missing) - 1} more)" if len(missing) > 1 else ""
    if split_of.get(missing[0]) == "unlabelled":
        raise InputError(
            f"{path} line {line}: {missing[0]}{more} has a label but is among the unlabelled films; give its folder "
            "with --dicom or --images, or remove the row"
        )
    if missing[0] in split_of:
        raise InputError(f"{path} line {line}: {missing[0]}{more} has a label but is also a test film; drop one")
    if nameless:
        more += f" ({len(nameless)} films have no readable SOPInstanceUID, first {nameless[0].source.path})"
    raise InputError(
        f"{path} line {line}: no film for the label of {missing[0]}{more}; add its folder with --dicom or --images, "
        "or remove the row"
    )
