"""Lists the files of folders, each once, with the reason why a file is skipped."""

import os
import re
from collections import Counter, deque
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from shards.dicom.film import SUFFIXES as DICOM_SUFFIXES
from shards.errors import InputError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg"})

HIDDEN = "hidden, as their names begin with a dot"
MACOS = "companions that macOS puts beside files (._*, __MACOSX)"
SYSTEM = "put there by the operating system (Thumbs.db, @eaDir, lost+found)"
SPECIAL = "pipes, sockets or devices"
DANGLING = "links to nothing"
LOOP = "links back to a folder above them"
VANISHED = "gone before they were read"
TWICE = "links to films that are taken already"
NAMED_TWICE = "unlabelled films with the image id of another film; pass --id sop where different films have one name"

_SYSTEM_NAMES = frozenset(
    {"thumbs.db", "ehthumbs.db", "desktop.ini", "@eadir", "lost+found", "$recycle.bin", "system volume information"}
)
_COMPRESSED = frozenset({".7z", ".bz2", ".gz", ".lz4", ".rar", ".tar", ".tgz", ".xz", ".z", ".zip", ".zst"})
_PICTURES = frozenset({".bmp", ".gif", ".heic", ".jp2", ".tif", ".tiff", ".webp"})
# Suffixes that a reason may contain. Reasons are stored in the dataset, and another name may end in a patient's name.
_NAMED = (
    _COMPRESSED
    | _PICTURES
    | IMAGE_SUFFIXES
    | DICOM_SUFFIXES
    | {".avi", ".bak", ".csv", ".dat", ".dll", ".doc", ".docx", ".exe", ".htm", ".html", ".idx", ".inf", ".ini"}
    | {".jar", ".json", ".log", ".md", ".mha", ".mhd", ".mp4", ".nii", ".npy", ".npz", ".nrrd", ".parquet", ".pdf"}
    | {".py", ".raw", ".rtf", ".salt", ".sh", ".tmp", ".tsv", ".txt", ".xls", ".xlsx", ".xml", ".yaml", ".yml"}
)

Judge = Callable[[Path], str]


@dataclass(frozen=True)
class FileKind:
    """Files that an option accepts. `judge` returns the reason against a file, empty for an accepted one."""

    words: str
    judge: Judge


@dataclass(frozen=True)
class Skipped:
    """A file that is skipped, and the reason."""

    path: Path
    reason: str


@dataclass(frozen=True)
class Listing:
    """The accepted files below `folder`, in order, and the skipped ones.

    `is_shared` means that it contains a folder that another listing lists.
    """

    folder: Path
    files: tuple[Path, ...]
    skipped: tuple[Skipped, ...]
    is_shared: bool = False


def list_folders(folders: Iterable[Path], kind: FileKind, leave_out: Iterable[Path] = ()) -> list[Listing]:
    """List the files below each folder, following linked folders.

    A folder that is named, linked or nested twice is listed once: one of `folders` under its own name, another folder
    at its real path rather than at a link. Folders in `leave_out` are skipped unless they are among `folders`. Raises
    InputError for a folder that cannot be read.
    """
    roots: dict[str, Path] = {}
    for folder in folders:
        roots.setdefault(os.path.realpath(folder), folder)
    seen = {os.path.realpath(path) for path in leave_out} - roots.keys()
    return [_list_folder(folder, kind.judge, seen, frozenset(roots)) for folder in roots.values()]


def _list_folder(root: Path, judge: Judge, seen: set[str], roots: frozenset[str]) -> Listing:
    """List a folder except the other roots and the folders in `seen`, and add its folders to `seen`."""
    files: list[Path] = []
    skipped: list[Skipped] = []
    listed: set[str] = set()
    is_shared = False
    # Real folders come before linked ones, so that a file is listed at its real path. Folders are compared by path,
    # as some network file systems give all folders one inode.
    real_folders, linked_folders = deque([(root, os.path.realpath(root))]), deque[tuple[Path, str]]()
    while real_folders or linked_folders:
        folder, real = (real_folders or linked_folders).popleft()
        if real in seen:
            is_shared = is_shared or real not in listed
            continue
        seen.add(real)
        listed.add(real)
        for entry in _entries(folder):
            path, kind, is_link = folder / entry.name, *_kind(entry)
            reason = _reason_by_name(entry.name)
            if reason and kind == "folder" and not is_link:
                skipped += [Skipped(Path(where, name), reason) for where, _, names in os.walk(path) for name in names]
            elif not reason and kind == "folder":
                inside = os.path.realpath(path) if is_link else str(Path(real, entry.name))
                if is_link and any(_holds(inside, below) for below in (real, *roots)):
                    skipped.append(Skipped(path, LOOP))
                elif inside in roots:
                    is_shared = True
                else:
                    (linked_folders if is_link else real_folders).append((path, inside))
            else:
                reason = reason or (judge(path) if kind == "file" else kind)
                if reason:
                    skipped.append(Skipped(path, reason))
                else:
                    files.append(path)
    return Listing(root, tuple(sorted(files)), tuple(sorted(skipped, key=lambda item: item.path)), is_shared)


def _kind(entry: os.DirEntry[str]) -> tuple[str, bool]:
    """Return `folder`, `file` or the reason why it is neither, and whether it is a link."""
    is_link = entry.is_symlink()
    try:
        if entry.is_dir():
            return "folder", is_link
        if entry.is_file():
            return "file", is_link
        if is_link:
            entry.stat()
    except OSError:  # missing, a link to itself, or a link through an unreadable folder
        return DANGLING if is_link else VANISHED, is_link
    return SPECIAL, is_link


def _holds(folder: str, path: str) -> bool:
    return os.path.commonpath([folder, path]) == folder


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except OSError as error:
        raise InputError(
            f"{folder}: this folder cannot be read ({error.strerror}); change its permissions or move it"
        ) from None


def _reason_by_name(name: str) -> str:
    if name.startswith("._") or name == "__MACOSX":
        return MACOS
    if name.lower() in _SYSTEM_NAMES:
        return SYSTEM
    return HIDDEN if name.startswith(".") else ""


def is_image(path: Path) -> bool:
    """Return whether a file is called like a PNG or JPEG image."""
    return path.suffix.lower() in IMAGE_SUFFIXES


def _not_image(path: Path) -> str:
    if is_image(path):
        return ""
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return "DICOM among images; give them with --dicom or --test-dicom"
    return _other_kind(path)


def _not_dicom(path: Path) -> str:
    """Return the reason against a file, by its name and its first bytes."""
    if re.fullmatch(r"DICOMDIR(\W.*)?", path.name.upper()):
        return "the index of a DICOM medium (DICOMDIR)"
    suffix = path.suffix.lower()
    if suffix in DICOM_SUFFIXES:
        return ""
    if suffix in IMAGE_SUFFIXES:
        return "PNG or JPEG among DICOM files; give them with --images or --test-images"
    try:
        with path.open("rb") as stream:
            if stream.read(132)[128:] == b"DICM":
                return ""
    except FileNotFoundError:
        return VANISHED
    except OSError:
        return ""  # accepted: the film's reader reports the error
    return _other_kind(path) if _named_suffix(path) else "neither a DICM prefix nor a suffix .dcm"


def _not_film(path: Path) -> str:
    return _not_dicom(path) if _not_image(path) else ""


IMAGES = FileKind(".png, .jpg and .jpeg", _not_image)
DICOM = FileKind(".dcm, .dicom and files with a DICM prefix", _not_dicom)
FILMS = FileKind(f"{IMAGES.words}, {DICOM.words}", _not_film)


def _other_kind(path: Path) -> str:
    suffix = _named_suffix(path)
    if suffix in _COMPRESSED:
        return f"compressed ({suffix}); unpack them"
    if suffix in _PICTURES:
        return f"images of another kind ({suffix}); convert them to PNG"
    return f"files of another kind ({suffix or 'no known suffix'})"


def _named_suffix(path: Path) -> str:
    """Return the suffix of a file in lower case, empty for an uncommon one."""
    suffix = path.suffix.lower()
    return suffix if suffix in _NAMED else ""


def kinds(skipped: Sequence[Skipped]) -> str:
    """Describe skipped files: `12 .tif files, 3 others`."""
    if not skipped:
        return "nothing"
    counts = Counter(_named_suffix(item.path) for item in skipped)
    named = sorted(
        ((count, suffix) for suffix, count in counts.items() if suffix), key=lambda item: (-item[0], item[1])
    )
    others = len(skipped) - sum(count for count, _ in named[:5])
    parts = [f"{count} {suffix} files" for count, suffix in named[:5]]
    if others:
        parts.append(f"{others} others" if parts else f"{others} files without a known suffix")
    return ", ".join(parts)
