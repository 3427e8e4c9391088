"""Reads a DICOM file as a data set, with limits on what a small file may expand to."""

import copy
import io
import re
import zlib
from functools import lru_cache
from pathlib import Path
from types import TracebackType

import pydicom
from pydicom import uid
from pydicom.datadict import DicomDictionary, dictionary_VR
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.filereader import read_dataset as read_elements
from pydicom.filereader import read_partial
from pydicom.tag import BaseTag

from shards.errors import RejectedFilm

PIXEL_DATA, _SOP_INSTANCE = BaseTag(0x7FE00010), BaseTag(0x00080018)
# Elements of a DICOM image, which identify one without a DICM prefix.
_SIGNS = ("SOPClassUID", "Rows", "Columns", "PixelData")
# Larger values are read on access, so that a cine loop is refused before a gigabyte is in memory.
_DEFER_BYTES = 64 << 20
# A film has some hundred elements. Each takes one to four reads, and each 8 KB of compressed pixels takes one.
_MOST_READS = 200_000
# Groups with elements that are used, and maximum lengths. Bytes and sequences contain lookup tables; explicit VR limits
# texts and numbers to 64 KB.
_GROUPS = frozenset({0x0008, 0x0010, 0x0018, 0x0028, 0x0054, 0x2050, 0x7FE0})
_LONG_KINDS = frozenset({"SQ", "OB", "OW", "OV", "UN", "US or OW", "UT"})
_LONG, _LONGEST = 64 << 10, 2 << 20
_ITEMS = (b"\xfe\xff\x00\xe0", b"\xff\xfe\xe0\x00")
_MOST_ITEMS = 5_000
_TOO_MANY = "it has more elements and items than a film; export it again"
# A film of 16 bits, and its other elements.
_BYTES_A_PIXEL, _OTHER_BYTES = 2, 16 << 20
_QUOTED = re.compile(r"(['\"])(.*?)\1", re.DOTALL)
_ALL_QUOTED = re.compile(r"['\"].*['\"]", re.DOTALL)
# Inflated in chunks, each of which becomes at most 67 MB.
_DEFLATED_CHUNK = 64 << 10


class _Stream(io.BufferedReader):
    """A file with a limited number of reads, so that data sets with a million items or elements are refused early."""

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
        if self._left < 0 and not isinstance(error, RejectedFilm):  # pydicom turns the error into another
            raise RejectedFilm(_TOO_MANY)


def read_dataset(path: Path, max_pixels: int) -> Dataset:
    """Read a DICOM image. Large values are read on access, and a missing transfer syntax is guessed.

    Raises RejectedFilm for a file that is not a DICOM image, and for more elements, longer elements or more inflated
    data than a film of `max_pixels` has.
    """
    try:
        with _Stream(io.FileIO(path)) as stream:
            dataset = _parse(stream, max_pixels)
            size = stream.seek(0, io.SEEK_END)
    except OSError as error:  # its text would contain the path
        raise RejectedFilm(f"unreadable: {error.strerror or one_line(error)}") from None
    except EOFError as error:
        raise RejectedFilm(f"unreadable: {one_line(error)}") from None
    except RecursionError:
        raise RejectedFilm("its sequences are nested deeper than a film's; export it again") from None
    _check_pixels(dataset)
    _check_lengths(dataset, size)
    if not _has_transfer_syntax(dataset):
        _guess_transfer_syntax(dataset)
    return dataset


def held_dataset(dataset: Dataset) -> Dataset:
    """Return a data set that is in memory with a transfer syntax, which only the copy gets if it has none.

    Raises RejectedFilm for one without pixels.
    """
    _check_pixels(dataset)
    if _has_transfer_syntax(dataset):
        return dataset
    known = copy.copy(dataset)
    known.file_meta = FileMetaDataset(getattr(dataset, "file_meta", {}))
    if None in dataset.original_encoding:  # made in Python, where values are little-endian
        known.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
    else:
        _guess_transfer_syntax(known)
    return known


def _check_pixels(dataset: Dataset) -> None:
    if "PixelData" not in dataset:
        raise RejectedFilm("it has no pixel data (a report or a truncated file?); export it again")


def _has_transfer_syntax(dataset: Dataset) -> bool:
    return bool(getattr(dataset, "file_meta", FileMetaDataset()).get("TransferSyntaxUID"))


def read_uid(path: Path) -> str:
    """Return the SOPInstanceUID of a file, empty without one. Elements after it are neither read nor inflated.

    Raises errors of any kind for a file that is not DICOM.
    """
    with _Stream(io.FileIO(path)) as stream:
        meta = _deflated_meta(stream, 132 if stream.read(132)[128:] == b"DICM" else 0)
        if meta is None:
            stream.seek(0)
            dataset: Dataset = read_partial(stream, _is_after_uid, force=True)
        else:
            inflated = zlib.decompressobj(-zlib.MAX_WBITS).decompress(stream.read(_DEFLATED_CHUNK), _LONGEST)
            dataset = read_elements(io.BytesIO(inflated), False, True, stop_when=_is_after_uid)
    return str(dataset.get("SOPInstanceUID", "")).strip("\0 ")


def _is_after_uid(tag: BaseTag, vr: str | None, length: int) -> bool:
    return bool(tag > _SOP_INSTANCE)


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
    except Exception:  # other files, parsed as DICOM, raise errors of any kind
        if has_prefix:
            raise
    raise RejectedFilm("not a DICOM file: no DICM prefix, and no elements of an image; remove it, or export it again")


def _deflated_meta(stream: io.BufferedReader, start: int) -> FileMetaDataset | None:
    """Return the file meta information of a deflated file, and move the stream behind it; None for other files.

    Some writers encode it in implicit VR. pydicom tries both too.
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
    for start in range(0, len(content), _DEFLATED_CHUNK):
        inflated += inflater.decompress(content[start : start + _DEFLATED_CHUNK])
        if len(inflated) > most:
            raise RejectedFilm(
                f"its data inflate to more than {most >> 20} MB, the maximum for a film of {max_pixels} pixels; "
                "pass a larger --max-pixels to accept it"
            )
    if not inflater.eof:
        raise RejectedFilm("its deflated data stop early; export it again")
    with _Stream(io.BytesIO(inflated)) as stream:  # type: ignore[arg-type]
        dataset = read_elements(stream, is_implicit_VR=False, is_little_endian=True)
    dataset.file_meta = meta
    return dataset


def _check_lengths(dataset: Dataset, size: int) -> None:
    """Refuse long values before they are parsed: a million numbers in a text, a million items in a sequence."""
    for tag in dataset.keys():  # noqa: SIM118 - iterating over a data set parses its elements
        element = dataset.get_item(tag, keep_deferred=True)
        if not isinstance(element, RawDataElement):
            for item in element.value if element.VR == "SQ" else ():
                _check_lengths(item, size)
        elif tag == PIXEL_DATA:
            if element.value is None and element.length and element.value_tell + element.length > size:
                raise RejectedFilm("the file stops before the end of its pixel data; export it again")
        elif element.length > _LONG and tag.group in _GROUPS and not _may_be_long(element):
            raise RejectedFilm(
                f"its element {tag} is {element.length} bytes long, longer than any element of a film; export it again"
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
    """Set the transfer syntax to the encoding that pydicom detected in the elements."""
    if dataset["PixelData"].is_undefined_length:
        raise RejectedFilm(
            "its pixels are compressed, and it has no transfer syntax; export it again with file meta information"
        )
    implicit, little = dataset.original_encoding
    if not hasattr(dataset, "file_meta"):
        dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = (
        uid.ImplicitVRLittleEndian if implicit else uid.ExplicitVRLittleEndian if little else uid.ExplicitVRBigEndian
    )


def one_line(error: Exception) -> str:
    """Return the text of an error on one line, without quoted values, which may identify a patient.

    Names of elements are kept.
    """
    text = str(error)
    if not all(quoted in _element_names() for _, quoted in _QUOTED.findall(text)):
        text = _ALL_QUOTED.sub("…", text)
    return " ".join(text.split())


@lru_cache
def _element_names() -> frozenset[str]:
    return frozenset(text for entry in DicomDictionary.values() for text in (entry[2], entry[4]))
