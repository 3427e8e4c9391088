"""Turns pydicom's warnings about a file into warnings about its film that can be counted and identify nobody."""

import re
import warnings
from collections.abc import Iterable
from pathlib import PurePath

# Modules that read elements, frames and pixels. Others warn of values (VR, UID, character set, dates), which are wrong
# throughout real archives; the values that matter are checked where they are used.
_ABOUT_PIXELS = frozenset({"filereader.py", "encaps.py"})
_PIXELS_FOLDER = "pixels"
_OWN = (
    (r"bytes of excess padding", ""),  # reported by the check of the frame
    (r"Number of Frames' is invalid", "its Number of Frames is no number: taken as 1"),
    (r"matches the expected number for uncompressed data", "its compressed pixel data is as long as uncompressed data"),
    (r"Extended Offset Table", "its Extended Offset Table is damaged: not used"),
    (
        r"component IDs that indicate it should be 'RGB'",
        "its Photometric Interpretation is not RGB, its JPEG stream is",
    ),
    (r"JFIF APP marker", "its Photometric Interpretation is not YBR, its JPEG stream is"),
    (r"non-conformant padding", "its RLE data are padded against the standard"),
    (r"Expected (implicit|explicit) VR", "its transfer syntax names another VR encoding than the file has"),
    (r"Unexpected end of file", "the file stops within an element"),
    (r"frames? .*found|EOI/EOC marker was found", "its last frame has no end"),
)


def complaints(caught: Iterable[warnings.WarningMessage]) -> tuple[str, ...]:
    """Return pydicom's warnings about pixels and about the structure of the file, each text once."""
    texts = (_text(str(each.message)) for each in caught if _is_about_pixels(each.filename))
    return tuple(dict.fromkeys(text for text in texts if text))


def rle_excess(caught: Iterable[warnings.WarningMessage]) -> int:
    """Return how many bytes an RLE segment has beyond its plane, 0 if pydicom did not warn of any."""
    matches = (re.search(r"padding - (\d+) vs\. (\d+) bytes", str(each.message)) for each in caught)
    return max((int(match[1]) - int(match[2]) for match in matches if match), default=0)


def _is_about_pixels(filename: str) -> bool:
    path = PurePath(filename)
    return "pydicom" in path.parts and (path.name in _ABOUT_PIXELS or _PIXELS_FOLDER in path.parts)


def _text(message: str) -> str:
    for pattern, text in _OWN:
        if re.search(pattern, message):
            return text
    # Numbers and quoted values differ between films, and paths follow "in file".
    general = re.sub(r"\d+", "N", re.sub(r"'[^']*'|\"[^\"]*\"", "…", message.split(" in file ")[0]))
    return f"pydicom warns: {' '.join(general.split())}"
