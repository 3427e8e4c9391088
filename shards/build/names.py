"""Image ids from file names or SOPInstanceUIDs, and names that cannot be image ids."""

import re
import unicodedata
import warnings
from collections.abc import Callable, Collection
from pathlib import Path

from shards.build.folders import IMAGE_SUFFIXES
from shards.console import is_one_line, printable
from shards.dicom.film import SUFFIXES as DICOM_SUFFIXES
from shards.dicom.read import read_uid
from shards.spreadsheet import is_formula

ID_KINDS = ("name", "sop")

_UID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


def name_id(path: Path) -> str:
    """Return the image id from the name of a file: the name without a film's suffix."""
    return path.stem if path.suffix.lower() in DICOM_SUFFIXES | IMAGE_SUFFIXES else path.name


def sop_id(path: Path) -> str | None:
    """Return the SOPInstanceUID of a DICOM file, None if it has none that can be an image id. No pixel is read."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            uid = read_uid(path)
        except Exception:  # other files, parsed as DICOM, raise errors of any kind
            return None
    return uid if _UID.fullmatch(uid) else None


def objection(image_id: str) -> str | None:
    """Return why a name cannot be an image id, with the fix; None if it can."""
    try:
        image_id.encode()
    except UnicodeEncodeError:
        return (
            "its name is not UTF-8; rename it, as with 'convmv -f latin1 -t utf8', or unpack its archive again with "
            "'unzip -O latin1'"
        )
    if not is_one_line(image_id):
        return "its name contains a line break or another control character; rename it"
    if is_formula(image_id):
        return f"a spreadsheet would run its name, {printable(image_id)}, as a formula; rename it"
    return None


def spelling(names: Collection[str]) -> Callable[[str], str]:
    """Return a function that maps a film's name to its spelling in `names`, or to itself if it is not among them.

    Spellings differ in accents, which are one character or two (macOS decomposes them in file names), and in spaces
    around a name, which tables lose.
    """
    known = {_folded(name): name for name in names}
    return lambda name: name if name in names else known.get(_folded(name), name)


def _folded(name: str) -> str:
    return unicodedata.normalize("NFC", name).strip()
