"""The first frame of a film as its file holds it, and whether it is the picture that the tags tell of."""

from dataclasses import dataclass
from io import BytesIO

from pydicom import uid
from pydicom.dataelem import RawDataElement
from pydicom.dataset import Dataset
from pydicom.encaps import get_frame, parse_basic_offsets, parse_fragments

from shards.dicom.read import PIXEL_DATA, one_line
from shards.dicom.rules import FilmRules, frame_count, text
from shards.dicom.stream import (
    StreamHeader,
    jpeg_2000_header,
    jpeg_header,
    other_row_length,
    rle_run_ends,
    rle_segments,
    shows_rows,
)
from shards.errors import RejectedFilm

_JPEG = frozenset({*uid.JPEGTransferSyntaxes, *uid.JPEGLSTransferSyntaxes})
_JPEG_2000 = frozenset(uid.JPEG2000TransferSyntaxes)
# How fragments begin that begin a frame.
_STARTS = (b"\xff\xd8\xff", b"\xff\x4f\xff\x51")
# So many runs show the length of a row beyond doubt, where they are of noise.
_RUNS = 20_000
# Longer segments may unfold to more memory than they may take: each two bytes become 128 at most.
_LONG_SEGMENT = 8 << 20
CROSSED_ROWS = "its RLE runs cross the ends of its rows: Columns may be wrong"
PADDED = "its pixel data is a few bytes longer than its frames: taken as padding"


@dataclass(frozen=True)
class Layout:
    """How the elements of the Image Pixel module say that pixels are laid out."""

    rows: int
    columns: int
    samples: int
    frames: int
    bits_allocated: int
    bits_stored: int
    is_signed: bool
    photometric: str

    @property
    def size(self) -> str:
        """Return the size of a frame for people."""
        return f"{self.columns}x{self.rows}"

    @property
    def frame_bits(self) -> int:
        """Return the bits of an uncompressed frame; YBR_FULL_422 has two samples a pixel (PS3.3 C.7.6.3.1.2)."""
        samples = 2 if self.photometric == "YBR_FULL_422" and self.samples == 3 else self.samples
        return self.rows * self.columns * samples * self.bits_allocated


def layout_of(dataset: Dataset, rules: FilmRules) -> Layout:
    """Return a film's layout. Raises RejectedFilm where it is incomplete, contradicts itself or has too many pixels."""
    layout = Layout(
        rows=_whole(dataset, "Rows"),
        columns=_whole(dataset, "Columns"),
        samples=_whole(dataset, "SamplesPerPixel", 1),
        frames=frame_count(dataset),
        bits_allocated=_whole(dataset, "BitsAllocated"),
        bits_stored=_whole(dataset, "BitsStored"),
        is_signed=_whole(dataset, "PixelRepresentation", 0) == 1,
        photometric=text(dataset, "PhotometricInterpretation"),
    )
    pixels = layout.rows * layout.columns
    if not pixels:
        raise RejectedFilm(f"it is {layout.size} pixels large; export it again")
    if pixels > rules.max_pixels:
        raise RejectedFilm(
            f"it is {layout.size} pixels large, more than {rules.max_pixels}; pass --max-pixels {pixels} to accept it"
        )
    high_bit = _whole(dataset, "HighBit", layout.bits_stored - 1)
    if high_bit != layout.bits_stored - 1:
        raise RejectedFilm(
            f"its High Bit is {high_bit} and Bits Stored {layout.bits_stored}: its values are not in the lowest bits; "
            "export it again"
        )
    return layout


def first_frame(dataset: Dataset, layout: Layout) -> tuple[bytes | None, tuple[str, ...]]:
    """Return the first compressed frame, None for native pixels, and warnings about its geometry.

    Raises RejectedFilm where the pixel data hold a picture of another size, or other frames, than the tags say.
    """
    syntax = dataset.file_meta.TransferSyntaxUID
    if not syntax.is_encapsulated:
        return None, _check_native(dataset, layout)
    frame = _get_frame(dataset, layout, syntax)
    if syntax == uid.RLELossless:
        return frame, _check_rle(frame, layout)
    if syntax in _JPEG:
        _check_header(jpeg_header(frame), layout)
    elif syntax in _JPEG_2000:
        _check_header(jpeg_2000_header(frame), layout)
    return frame, ()


def _whole(dataset: Dataset, keyword: str, default: int | None = None) -> int:
    value = dataset.get(keyword)
    if value is None and default is not None:
        return default
    try:
        return int(value)
    except (TypeError, ValueError):
        raise RejectedFilm(f"its {keyword} is no whole number; export it again") from None


def _check_native(dataset: Dataset, layout: Layout) -> tuple[str, ...]:
    element = dataset.get_item(PIXEL_DATA, keep_deferred=True)
    if isinstance(element, RawDataElement) and element.value is None:  # on disk until asked for
        actual = element.length
    else:
        actual = len(element.value or b"")
    expected = -(-layout.frame_bits * layout.frames // 8)
    excess = actual - expected
    # What is missing a row or a column, or has one too many, is no frame with padding.
    line = min(layout.rows, layout.columns) * layout.frame_bits // (8 * layout.rows * layout.columns)
    if excess < 0 or excess > max(1, line - 1):
        frames = f"{layout.frames} frames of {layout.size}" if layout.frames > 1 else layout.size
        raise RejectedFilm(
            f"its pixel data is {actual} bytes long, Columns x Rows of {frames} take {expected}: one of them is wrong; "
            "export it again"
        )
    return (PADDED,) if excess > 1 else ()


def _get_frame(dataset: Dataset, layout: Layout, syntax: uid.UID) -> bytes:
    """Return the first frame, joined from its fragments."""
    content = dataset.PixelData
    extended = None
    if "ExtendedOffsetTable" in dataset:
        extended = (dataset.ExtendedOffsetTable, dataset.ExtendedOffsetTableLengths)
    try:
        buffer = BytesIO(content)
        offsets = parse_basic_offsets(buffer)
        _, positions = parse_fragments(buffer)
        starts = [content[at + 8 : at + 12] for at in positions if content[at + 4 : at + 8] != b"\0\0\0\0"]
        # RLE has a frame to a fragment.
        found = sum(syntax == uid.RLELossless or start.startswith(_STARTS) for start in starts)
        found = max(found, len(offsets), len(extended[0]) // 8 if extended else 0)
        if found > layout.frames:
            raise RejectedFilm(
                f"its pixel data hold {found} frames, Number of Frames says {layout.frames}; export it again"
            )
        return get_frame(content, 0, number_of_frames=layout.frames, extended_offsets=extended)
    except RejectedFilm:
        raise
    except Exception as error:  # damaged items lead to errors of any kind
        raise RejectedFilm(f"its pixel data are no whole frames ({one_line(error)}); export it again") from None


def _check_header(header: StreamHeader, layout: Layout) -> None:
    if (header.rows, header.columns) != (layout.rows, layout.columns):
        raise RejectedFilm(
            f"its compressed picture is {header.columns}x{header.rows}, Columns x Rows are {layout.size}; "
            "export it again"
        )
    if header.samples != layout.samples:
        raise RejectedFilm(
            f"its compressed picture has {header.samples} samples a pixel, Samples per Pixel says {layout.samples}; "
            "export it again"
        )


def _check_rle(frame: bytes, layout: Layout) -> tuple[str, ...]:
    """RLE tells no size, but no run of it crosses the end of a row."""
    plane = layout.rows * layout.columns
    segments = rle_segments(frame)
    for segment in segments:
        if len(segment) > _LONG_SEGMENT:
            ends = rle_run_ends(segment, plane + 1, len(segment))
            if ends and ends[-1] > plane + 1:
                raise RejectedFilm(longer_rle(layout))
    # The last has the lowest bits, whose runs are short and many.
    ends = rle_run_ends(segments[-1], plane, _RUNS)
    is_half_row = layout.columns % layout.rows == 0 and layout.rows != layout.columns and shows_rows(ends, layout.rows)
    if shows_rows(ends, layout.columns) and not is_half_row:
        return ()
    length = other_row_length(rle_run_ends(segments[-1], plane, plane), layout.rows, layout.columns)
    if length is None:
        return (CROSSED_ROWS,)
    raise RejectedFilm(f"its RLE data are rows of {length} pixels, Columns is {layout.columns}; export it again")


def longer_rle(layout: Layout) -> str:
    """Return the reason to reject RLE data that hold more than a frame."""
    return f"its RLE data hold more than Columns x Rows of {layout.size}; export it again"
