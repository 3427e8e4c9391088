"""Small files that would expand to gigabytes are refused early; files without meta information are read."""

import io
import struct
import subprocess
import sys
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pydicom
import pytest
from dicom_films import CHEST, RAMP12, read
from dicom_streams import encode_jpeg, recode
from film_files import film_dataset, write_film
from pydicom import uid
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info

from shards.build.names import sop_id
from shards.dicom.film import FilmRules, read_film
from shards.dicom.read import one_line
from shards.errors import RejectedFilm

PIXELS = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
EXPLICIT, IMPLICIT, DEFLATED = (
    uid.ExplicitVRLittleEndian,
    uid.ImplicitVRLittleEndian,
    uid.DeflatedExplicitVRLittleEndian,
)
SEQUENCE = struct.pack("<HH2sHL", 0x0008, 0x1140, b"SQ", 0, 0xFFFFFFFF)
ITEM, ITEM_END = struct.pack("<HHL", 0xFFFE, 0xE000, 0xFFFFFFFF), struct.pack("<HHL", 0xFFFE, 0xE00D, 0)
EMPTY_ITEM, SEQUENCE_END = struct.pack("<HHL", 0xFFFE, 0xE000, 0), struct.pack("<HHL", 0xFFFE, 0xE0DD, 0)
PIXEL_DATA = struct.pack("<HH", 0x7FE0, 0x0010)


def head(syntax: uid.UID) -> bytes:
    stream, meta = DicomBytesIO(b"\0" * 128 + b"DICM"), FileMetaDataset()
    stream.seek(132)
    meta.update(film_dataset(PIXELS).file_meta)
    meta.TransferSyntaxUID = syntax
    write_file_meta_info(stream, meta)
    return stream.getvalue()


def body(syntax: uid.UID = EXPLICIT, **attributes: Any) -> bytes:
    content, bare = DicomBytesIO(), Dataset()
    content.is_implicit_VR, content.is_little_endian = syntax.is_implicit_VR, True
    bare.update({element.tag: element for element in film_dataset(PIXELS, **attributes)})
    write_dataset(content, bare)
    return content.getvalue()


def before_pixels(inserted: bytes, **attributes: Any) -> bytes:
    content = body(**attributes)
    at = content.index(PIXEL_DATA)
    return head(EXPLICIT) + content[:at] + inserted + content[at:]


def encapsulated(syntax: uid.UID, frame: bytes, **attributes: Any) -> bytes:
    dataset = film_dataset(PIXELS, **attributes)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].VR, dataset["PixelData"].is_undefined_length = "OB", True
    stream = io.BytesIO()
    pydicom.dcmwrite(stream, dataset, enforce_file_format=True)
    return stream.getvalue()


def deflate_bomb() -> bytes:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    parts = [deflater.compress(body()), *(deflater.compress(b"\0" * (10 << 20)) for _ in range(100)), deflater.flush()]
    return head(DEFLATED) + b"".join(parts)


def rle_bomb(size: int) -> bytes:
    return encapsulated(uid.RLELossless, struct.pack("<16L", 1, 64, *[0] * 14) + b"\x81\x00" * size)


def jpeg_of(rows: int, columns: int) -> bytes:
    stream = bytearray(encode_jpeg(PIXELS))
    at = stream.index(b"\xff\xc0")
    stream[at + 5 : at + 9] = struct.pack(">HH", rows, columns)
    return bytes(stream)


def jpeg_2000_of(path: Path, rows: int, columns: int) -> bytes:
    dataset = pydicom.dcmread(recode(write_film(path, PIXELS), uid.JPEG2000Lossless))
    frame = bytearray(pydicom.encaps.get_frame(dataset.PixelData, 0, number_of_frames=1))
    at = frame.index(b"\xff\x51")
    frame[at + 6 : at + 14] = struct.pack(">LL", columns, rows)
    return bytes(frame)


ONES = b"1\\" * 4_000_000
BOMBS: dict[str, tuple[Callable[[], bytes], str]] = {
    "deflate": (deflate_bomb, "inflate to more than .* MB.*; pass a larger --max-pixels"),
    "rle": (lambda: rle_bomb(6_000_000), "RLE data contain more than Columns x Rows of 64x64"),
    "rle of 8 MB": (lambda: rle_bomb(4_000_000), "RLE data"),
    "jpeg": (
        lambda: encapsulated(uid.JPEGBaseline8Bit, jpeg_of(65500, 65500), Rows=65500, Columns=65500),
        "it is 65500x65500 pixels large, more than .*; pass --max-pixels 4290250000 to accept it",
    ),
    "jpeg of other rows": (
        lambda: encapsulated(uid.JPEGBaseline8Bit, jpeg_of(65500, 65500)),
        "compressed picture is 65500x65500, Columns x Rows are 64x64",
    ),
    "native": (lambda: head(EXPLICIT) + body(Rows=65535, Columns=65535), "65535x65535 pixels large"),
    "implicit": (
        lambda: head(IMPLICIT) + body(IMPLICIT)[:-4104] + PIXEL_DATA + struct.pack("<L", 0xFFFFFFF0) + bytes(5000),
        "the file stops before the end of its pixel data",
    ),
    "deep": (
        lambda: before_pixels((SEQUENCE + ITEM) * 100_000 + (ITEM_END + SEQUENCE_END) * 100_000),
        "nested deeper than a film's",
    ),
    "wide": (
        lambda: before_pixels(SEQUENCE + (ITEM + ITEM_END) * 1_000_000 + SEQUENCE_END),
        "more elements and items than a film",
    ),
    "wide in one element": (
        lambda: before_pixels(
            struct.pack("<HH2sHL", 0x0054, 0x0220, b"SQ", 0, 8 * 200_000) + EMPTY_ITEM * 200_000, ViewPosition=None
        ),
        r"element \(0054,0220\) is 1600000 bytes long",
    ),
    "elements": (
        lambda: head(IMPLICIT) + b"".join(struct.pack("<HHL", 9, i % 65536, 0) for i in range(1_000_000)),
        "more elements and items than a film",
    ),
    "numbers": (
        lambda: (
            head(IMPLICIT)
            + body(IMPLICIT).replace(PIXEL_DATA, struct.pack("<HHL", 0x0028, 0x1050, len(ONES)) + ONES + PIXEL_DATA, 1)
        ),
        r"element \(0028,1050\) is 8000000 bytes long",
    ),
}
READ = """
import resource, sys, time
from pathlib import Path
from shards.dicom.film import FilmRules, read_film
from shards.errors import RejectedFilm
rules = FilmRules(any_film=True, max_pixels=int(sys.argv[2]))
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
try:
    read_film(Path(sys.argv[1]), rules)
except RejectedFilm as reason:
    print(reason)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024, time.process_time() - start)
"""


@pytest.mark.parametrize("name", BOMBS)
def test_a_bomb_is_refused_in_little_memory_and_time(tmp_path: Path, name: str) -> None:
    make, reason = BOMBS[name]
    content = make()
    assert len(content) < 20 << 20
    (tmp_path / "a.dcm").write_bytes(content)
    done = subprocess.run(
        [sys.executable, "-c", READ, str(tmp_path / "a.dcm"), "20000000"], capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    *said, measured = done.stdout.splitlines()
    megabytes, seconds = (float(number) for number in measured.split())
    assert megabytes < 300
    assert seconds < 5
    with pytest.raises(RejectedFilm, match=reason):
        raise RejectedFilm(*said)


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.RLELossless, EXPLICIT])
def test_no_decoder_is_called_for_a_film_of_too_many_pixels(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, syntax: uid.UID
) -> None:
    path = write_film(tmp_path / "a.dcm", PIXELS)
    recode(path, syntax, [encode_jpeg(PIXELS)] if syntax == uid.JPEGBaseline8Bit else None)
    assert read_film(path, FilmRules(max_pixels=4096)).image.shape == (64, 64)
    for name in ("get_decoder", "decode_grey_jpeg", "check_jpeg"):
        monkeypatch.setattr(f"shards.dicom.pixels.{name}", lambda *_: pytest.fail("decoded"))
    with pytest.raises(RejectedFilm) as refused:
        read_film(path, FilmRules(max_pixels=4095))
    assert str(refused.value) == "it is 64x64 pixels large, more than 4095; pass --max-pixels 4096 to accept it"


def test_a_stream_of_another_size_is_not_decoded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shards.dicom.pixels.get_decoder", lambda *_: pytest.fail("decoded"))
    path = tmp_path / "a.dcm"
    path.write_bytes(encapsulated(uid.JPEG2000Lossless, jpeg_2000_of(tmp_path / "b.dcm", 60000, 60000)))
    with pytest.raises(RejectedFilm, match=r"lacks tiles|60000x60000"):
        read_film(path)


def test_a_deflated_film_is_read_whole_or_refused(tmp_path: Path) -> None:
    path = recode(write_film(tmp_path / "a.dcm", PIXELS), DEFLATED)
    np.testing.assert_array_equal(read_film(path).image, PIXELS)
    content = path.read_bytes()
    for length in range(len(content) - 60, len(content) - 8, 7):
        path.write_bytes(content[:length])
        with pytest.raises(RejectedFilm):
            read_film(path)


def test_a_progressive_stream_of_countless_scans_is_refused(tmp_path: Path) -> None:
    stream = encode_jpeg(PIXELS, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    last = stream.rindex(b"\xff\xda")
    many = stream[:last] + stream[last:-2] * 80 + stream[-2:]
    path = recode(write_film(tmp_path / "a.dcm", PIXELS), uid.JPEGBaseline8Bit, [many])
    with pytest.raises(RejectedFilm, match="more than 64 scans"):
        read_film(path)


def test_long_lookup_tables_are_no_bomb(tmp_path: Path) -> None:
    def table(scale: int) -> Dataset:
        item = Dataset()
        item.add_new("LUTDescriptor", "US", [0, 0, 16])
        item.add_new("LUTData", "OW", (np.arange(65536) // scale).astype("<u2").tobytes())
        return item

    path = write_film(
        tmp_path / "a.dcm", PIXELS.astype(np.uint16) << 10, VOILUTSequence=[table(scale) for scale in range(1, 13)]
    )
    assert read_film(path).warnings == ()


def test_a_path_is_in_no_reason(tmp_path: Path) -> None:
    for path in (tmp_path / "missing.dcm", tmp_path):
        with pytest.raises(RejectedFilm) as refused:
            read_film(path)
        assert str(tmp_path) not in str(refused.value)


WriteFilm = Callable[..., Path]


@pytest.mark.parametrize("syntax", [uid.ImplicitVRLittleEndian, uid.ExplicitVRLittleEndian, uid.ExplicitVRBigEndian])
def test_a_film_without_file_meta_information_is_read(tmp_path: Path, write_film: WriteFilm, syntax: uid.UID) -> None:
    film = write_film(tmp_path / "a.dcm", RAMP12, **CHEST)
    expected = read(film).image
    bare = pydicom.dcmread(film)
    if not syntax.is_little_endian:
        bare.PixelData = np.frombuffer(bare.PixelData, "<u2").byteswap().tobytes()
    content = Dataset()
    content.update({element.tag: element for element in bare})
    pydicom.dcmwrite(film, content, implicit_vr=syntax.is_implicit_VR, little_endian=syntax.is_little_endian)
    assert film.read_bytes()[128:132] != b"DICM"
    got = read(film)
    np.testing.assert_array_equal(got.image, expected)
    assert got.warnings == ()


def test_compressed_pixels_without_a_transfer_syntax_are_rejected(tmp_path: Path, write_film: WriteFilm) -> None:
    film = recode(write_film(tmp_path / "a.dcm", np.eye(16, dtype=np.uint8)), uid.RLELossless)
    content = Dataset()
    content.update({element.tag: element for element in pydicom.dcmread(film)})
    pydicom.dcmwrite(film, content, implicit_vr=False, little_endian=True)
    with pytest.raises(RejectedFilm, match="no transfer syntax"):
        read(film)


UID = """
import resource, sys, time
from pathlib import Path
from shards.build.names import sop_id
peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
start = time.process_time()
print(sop_id(Path(sys.argv[1])))
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - peak) // 1024, time.process_time() - start)
"""


@pytest.mark.parametrize(("name", "is_read"), [("deflate", True), ("wide", True), ("deep", True), ("elements", False)])
def test_the_uid_of_a_bomb_costs_little_memory_and_time(tmp_path: Path, name: str, is_read: bool) -> None:
    (tmp_path / "a.dcm").write_bytes(BOMBS[name][0]())
    done = subprocess.run(
        [sys.executable, "-c", UID, str(tmp_path / "a.dcm")], capture_output=True, text=True, check=True
    )
    uid_read, measured = done.stdout.splitlines()
    megabytes, seconds = (float(number) for number in measured.split())
    assert megabytes < 100 and seconds < 5
    assert (uid_read != "None") == is_read


def test_the_uid_of_a_deflated_film_is_read(tmp_path: Path) -> None:
    deflater = zlib.compressobj(9, zlib.DEFLATED, -15)
    content = body()
    (tmp_path / "a.dcm").write_bytes(head(DEFLATED) + deflater.compress(content) + deflater.flush())
    assert sop_id(tmp_path / "a.dcm") == pydicom.dcmread(tmp_path / "a.dcm").SOPInstanceUID


def test_a_million_frames_are_refused_early(tmp_path: Path) -> None:
    for frames in ("1000000", "2147483647"):
        path = write_film(tmp_path / "a.dcm", PIXELS, NumberOfFrames=frames)
        with pytest.raises(RejectedFilm, match="4096 bytes long, Columns x Rows of"):
            read_film(path, FilmRules(any_film=True))


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("could not convert string to float: 'MUELLER^HANS'", "could not convert string to float: …"),
        ('value "O\'Brien" is wrong', "value … is wrong"),
        ("value 'O'Brien' is wrong", "value … is wrong"),
        ("Missing required element: (0028,0004) 'Photometric Interpretation'",) * 2,
        ("two\nlines", "two lines"),
    ],
)
def test_values_in_errors_are_left_out_and_names_of_elements_are_not(text: str, shown: str) -> None:
    assert one_line(ValueError(text)) == shown


NUMBERS = (
    "WindowCenter",
    "RescaleSlope",
    "RescaleIntercept",
    "NumberOfFrames",
    "PixelSpacing",
    "PixelAspectRatio",
    "Rows",
)


CODES = ("PhotometricInterpretation", "Modality", "BodyPartExamined", "ViewPosition")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("keyword", [*NUMBERS, *CODES])
@pytest.mark.parametrize("value", ["MUELLER^HANS", "MUELLER'S", "HAND MUELLER;=1"])
def test_a_name_in_any_element_is_in_no_reason_and_no_warning(tmp_path: Path, keyword: str, value: str) -> None:
    film = film_dataset(PIXELS, WindowWidth="80")
    tag = pydicom.tag.Tag(pydicom.datadict.tag_for_keyword(keyword) or 0)
    film[tag] = pydicom.dataelem.RawDataElement(tag, "LO", len(value), value.encode(), 0, False, True)
    pydicom.dcmwrite(tmp_path / "a.dcm", film, enforce_file_format=True)
    for rules in (FilmRules(), FilmRules(any_film=True)):
        try:
            said = repr(read_film(tmp_path / "a.dcm", rules))
        except RejectedFilm as reason:
            said = str(reason)
        assert "MUELLER" not in said.upper() and ";=" not in said
