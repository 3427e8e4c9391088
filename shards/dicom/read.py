"""A DICOM file becomes a data set, within bounds on what a small file may unfold to."""

import io
import zlib
from pathlib import Path
from types import TracebackType

import pydicom
from pydicom import uid
from pydicom.datadict import dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset as read_elements
from pydicom.tag import BaseTag

from shards.errors import RejectedFilm

PIXEL_DATA = BaseTag(0x7FE00010)
# What shows that a file without a DICM prefix is a DICOM image all the same.
_SIGNS = ("SOPClassUID", "Rows", "Columns", "PixelData")
# Larger values stay on disk until asked for: a cine loop is refused without a gigabyte of it in memory.
_DEFER_BYTES = 64 << 20
# A film has some hundred elements; each takes one to four reads, and each 8 KB of compressed pixels one.
_MOST_READS = 200_000
# The groups of which elements are looked at, and how long one may be: bytes and sequences hold lookup tables, and 64 KB
# is the most that explicit VR can say of a text or of numbers.
_GROUPS = frozenset({0x0008, 0x0010, 0x0018, 0x0028, 0x0054, 0x2050, 0x7FE0})
_LONG_KINDS = frozenset({"SQ", "OB", "OW", "OV", "UN", "US or OW", "UT"})
_LONG, _LONGEST = 64 << 10, 2 << 20
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_MOST_ITEMS = 5_000
_TOO_MANY = "it holds more elements and items than a film has; export it again"
# A film of 16 bits, and what it says besides its pixels.
_BYTES_A_PIXEL, _OTHER_BYTES = 2, 16 << 20
# Inflated one at a time; a part becomes 67 MB at most.
_DEFLATED_PART = 64 << 10


class _Stream(io.BufferedReader):
    """A file that can be read so many times: data sets with a million items or elements are refused halfway."""

    def __init__(self, raw: io.RawIOBase) -> None:
        super().__init__(raw)
        self._left = _MOST_READS

    def read(self, size: int | None = -1, /) -> bytes:
        self._left -= 1
        if self._left < 0:
            raise RejectedFilm(_TOO_MANY)
        return super().read(size)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        super().__exit__(kind, error, trace)
        if self._left < 0 and not isinstance(error, RejectedFilm):  # pydicom turns the error into others
            raise RejectedFilm(_TOO_MANY)


def read_dataset(path: Path, max_pixels: int) -> Dataset:
    """Read a DICOM image, of which larger values stay on disk, with a transfer syntax guessed for want of one.

    Raises RejectedFilm for what is no DICOM image, and for more elements, longer ones or more inflated data than a
    film of `max_pixels` has.
    """
    try:
        with _Stream(io.FileIO(path)) as stream:
            dataset = _parse(stream, max_pixels)
            size = stream.seek(0, io.SEEK_END)
    except OSError as error:  # its text would hold the path
        raise RejectedFilm(f"unreadable: {error.strerror or one_line(error)}") from None
    except EOFError as error:
        raise RejectedFilm(f"unreadable: {one_line(error)}") from None
    except RecursionError:
        raise RejectedFilm("its sequences are nested deeper than a film's; export it again") from None
    if "PixelData" not in dataset:
        raise RejectedFilm("holds no pixel data (a report or a truncated file?)")
    _check_lengths(dataset, size)
    if not getattr(dataset, "file_meta", FileMetaDataset()).get("TransferSyntaxUID"):
        _guess_transfer_syntax(dataset)
    return dataset


def _parse(stream: io.BufferedReader, max_pixels: int) -> Dataset:
    has_prefix = stream.read(132)[128:] == b"DICM"
    start = 132 if has_prefix else 0
    try:
        deflated = _deflated_meta(stream, start)
        if deflated is not None:
            dataset = _parse_deflated(deflated, stream.read(), max_pixels)
        else:
            stream.seek(0)
            dataset = pydicom.dcmread(stream, defer_size=_DEFER_BYTES, force=not has_prefix)
        if has_prefix or all(sign in dataset for sign in _SIGNS):
            return dataset
    except Exception:  # other files' bytes, read as DICOM, lead to errors of any kind
        if has_prefix:
            raise
    raise RejectedFilm(
        "not a DICOM file: no DICM prefix, and no image's elements without it; remove it, or export it again"
    )


def _deflated_meta(stream: io.BufferedReader, start: int) -> FileMetaDataset | None:
    """Return the file meta information of a deflated file, with the stream behind it; None for other files.

    Some writers encode it in implicit VR, and pydicom tries that too.
    """
    for is_implicit in (False, True):
        stream.seek(start)
        meta = read_elements(stream, is_implicit, True, stop_when=lambda tag, vr, length: tag.group != 2)
        syntax = meta.get("TransferSyntaxUID")
        if syntax:
            return FileMetaDataset(meta) if syntax == uid.DeflatedExplicitVRLittleEndian else None
    return None


def _parse_deflated(meta: FileMetaDataset, content: bytes, max_pixels: int) -> Dataset:
    most = _BYTES_A_PIXEL * max_pixels + _OTHER_BYTES
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    inflated = bytearray()
    for start in range(0, len(content), _DEFLATED_PART):
        inflated += inflater.decompress(content[start : start + _DEFLATED_PART])
        if len(inflated) > most:
            raise RejectedFilm(
                f"its data inflate to more than {most >> 20} MB, more than a film of {max_pixels} pixels has; "
                "pass a larger --max-pixels to accept it"
            )
    if not inflater.eof:
        raise RejectedFilm("its deflated data stop early; export it again")
    with _Stream(io.BytesIO(inflated)) as stream:  # type: ignore[arg-type]
        dataset = read_elements(stream, is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = meta
    return dataset


def _check_lengths(dataset: Dataset, size: int) -> None:
    """Values are parsed when they are asked for: a text of a million numbers, or a sequence of a million items."""
    for tag in dataset.keys():  # noqa: SIM118 - a data set iterates over its elements and parses them
        element = dataset.get_item(tag, keep_deferred=True)
        if not isinstance(element, RawDataElement):
            for item in element.value if element.VR == "SQ" else ():
                _check_lengths(item, size)
        elif tag == PIXEL_DATA:
            if element.value is None and element.length and element.value_tell + element.length > size:
                raise RejectedFilm("the file stops before the end of its pixel data; export it again")
        elif element.length > _LONG and tag.group in _GROUPS and not _may_be_long(element):
            raise RejectedFilm(
                f"its element {tag} is {element.length} bytes long, longer than any of a film; export it again"
            )


def _may_be_long(element: RawDataElement) -> bool:
    try:
        kind = element.VR or dictionary_VR(element.tag)
    except KeyError:
        kind = "UN"
    if kind not in _LONG_KINDS or element.length > _LONGEST:
        return False
    return kind != "SQ" or sum((element.value or b"").count(item) for item in _ITEMS) <= _MOST_ITEMS


def _guess_transfer_syntax(dataset: Dataset) -> None:
    """Set the transfer syntax that pydicom found in the elements themselves, for want of a file meta element."""
    if dataset["PixelData"].is_undefined_length:
        raise RejectedFilm(
            "its pixels are compressed and no transfer syntax says how; export it again with file meta information"
        )
    implicit, little = dataset.original_encoding
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = (
        uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    )


def one_line(error: Exception) -> str:
    """Return an error's text without line breaks."""
    return " ".join(str(error).split())
