"""Decoding of the first frame: colour, palettes, and every transfer syntax."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pydicom
import pytest
import simplejpeg
from dicom_films import ANY_FILM, END, FILM, RAMP12, SMALL_FILM, naive_unit, read, write
from dicom_streams import encode_jpeg, huffman_jpeg, recode
from film_files import film_dataset, write_film
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.encaps import get_frame
from pydicom.filereader import dcmread

from shards.dicom.film import read_film
from shards.errors import RejectedFilm

WriteFilm = Callable[..., Path]


def test_colour_films_become_grey_by_rec_601(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    image = read(write_film(tmp_path / "a.dcm", pixels)).image
    naive = [[round(float(0.299 * r + 0.587 * g + 0.114 * b)) for r, g, b in row] for row in pixels.tolist()]
    assert image.tolist() == naive


def test_planes_of_colour_are_read_as_pixels_of_colour(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    plain = write_film(tmp_path / "a.dcm", pixels)
    planes = np.ascontiguousarray(pixels.transpose(2, 0, 1)).tobytes()
    planar = write_film(tmp_path / "b.dcm", pixels, PlanarConfiguration=1, PixelData=planes)
    np.testing.assert_array_equal(read(planar).image, read(plain).image)


def test_a_window_of_a_colour_film_is_not_applied(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 9, 3), np.uint8)
    plain = write_film(tmp_path / "a.dcm", pixels)
    windowed = write_film(tmp_path / "b.dcm", pixels, WindowCenter="128", WindowWidth="20")
    np.testing.assert_array_equal(read(windowed).image, read(plain).image)


@pytest.mark.parametrize("photometric", ["YBR_FULL", "YBR_FULL_422"])
def test_luma_is_the_grey_of_films_in_luma_and_chroma(tmp_path: Path, write_film: WriteFilm, photometric: str) -> None:
    # Chroma at its zero: grey stays the same grey.
    luma = np.arange(80, dtype=np.uint8).reshape(8, 10) * 3
    if photometric == "YBR_FULL":
        data = np.stack([luma, np.full_like(luma, 128), np.full_like(luma, 128)], axis=2).tobytes()
    else:
        data = b"".join(bytes([first, second, 128, 128]) for first, second in luma.reshape(-1, 2).tolist())
    film = write_film(
        tmp_path / "a.dcm", np.zeros((8, 10, 3), np.uint8), PhotometricInterpretation=photometric, PixelData=data
    )
    np.testing.assert_array_equal(read(film).image, luma)


def test_chroma_does_not_leak_into_grey(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.random.default_rng(0).integers(96, 160, (8, 10, 3), np.uint8)
    film = write_film(tmp_path / "a.dcm", pixels, PhotometricInterpretation="YBR_FULL")
    # The luma of the colours is Y, except for the rounding of the colours.
    assert np.abs(read(film).image.astype(int) - pixels[..., 0]).max() <= 1


@pytest.mark.parametrize("bits", [8, 16])
def test_a_palette_is_looked_up(tmp_path: Path, write_film: WriteFilm, bits: int) -> None:
    pixels = np.arange(80, dtype=np.uint8).reshape(8, 10)
    rng = np.random.default_rng(0)
    palette = rng.integers(0, 1 << bits, (3, 100)).astype(f"<u{bits // 8}")
    film = write_film(tmp_path / "a.dcm", pixels, PhotometricInterpretation="PALETTE COLOR")
    dataset = pydicom.dcmread(film)
    for name, entries in zip(("Red", "Green", "Blue"), palette, strict=True):
        dataset.add_new(f"{name}PaletteColorLookupTableDescriptor", "US", [100, 0, bits])
        dataset.add_new(f"{name}PaletteColorLookupTableData", "OW", entries.tobytes())
    dataset.save_as(film)
    red, green, blue = palette.astype(float)[:, pixels]
    grey = np.rint(0.299 * red + 0.587 * green + 0.114 * blue)
    expected = grey if bits == 8 else naive_unit(grey, grey.min(), grey.max())
    np.testing.assert_array_equal(read(film).image, expected)


def test_deep_colour_spans_its_own_range(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.random.default_rng(0).integers(500, 4000, (8, 9, 3), np.uint16)
    grey = np.rint(pixels @ np.array([0.299, 0.587, 0.114]))
    assert read(write_film(tmp_path / "a.dcm", pixels)).image.tolist() == naive_unit(grey, grey.min(), grey.max())


@pytest.mark.parametrize(
    "syntax",
    [
        uid.ImplicitVRLittleEndian,
        uid.ExplicitVRBigEndian,
        uid.DeflatedExplicitVRLittleEndian,
        uid.RLELossless,
        uid.JPEG2000Lossless,
    ],
    ids=lambda syntax: str(syntax.name),
)
@pytest.mark.parametrize("kind", ["u2", "i2"])
def test_every_lossless_transfer_syntax_gives_the_same_film(
    tmp_path: Path, write_film: WriteFilm, syntax: uid.UID, kind: str
) -> None:
    pixels = np.tile(RAMP12, (4, 4)).astype(kind) - (1000 if kind == "i2" else 0)
    attributes = {"BitsStored": 13, "HighBit": 12, "WindowCenter": "900", "WindowWidth": "1200"}
    film = write_film(tmp_path / "a.dcm", pixels, **attributes)
    expected = read(film).image
    got = read(recode(film, syntax))
    np.testing.assert_array_equal(got.image, expected)
    assert got.jpeg is None


def test_lossless_jpeg_is_decoded_exactly(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.random.default_rng(0).integers(0, 4096, (9, 13)).astype(np.uint16)
    film = write_film(tmp_path / "a.dcm", pixels, BitsStored=12, HighBit=11)
    expected = read(film).image
    values = pixels.astype(int)
    predicted = np.empty_like(values)  # by the left neighbour, in the first column by the one above
    predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = values[:, :-1], values[:-1, 0], 2048
    stream = huffman_jpeg(0xC3, 12, (9, 13), (values - predicted).ravel().tolist(), is_dct=False)
    np.testing.assert_array_equal(read(recode(film, uid.JPEGLosslessSV1, [stream])).image, expected)


def test_12_bit_extended_jpeg_is_decoded(tmp_path: Path, write_film: WriteFilm) -> None:
    blocks = np.random.default_rng(0).integers(0, 4096, (3, 4))
    pixels = np.kron(blocks, np.ones((8, 8), int)).astype(np.uint16)
    film = write_film(tmp_path / "a.dcm", pixels, BitsStored=12, HighBit=11)
    expected = read(film).image
    # A block of one value v has only the coefficient DC = 8 (v - 2048), and 8 is the quantiser.
    levels = np.diff(blocks.ravel() - 2048, prepend=0)
    film = recode(film, uid.JPEGExtended12Bit, [huffman_jpeg(0xC1, 12, (24, 32), levels.tolist(), is_dct=True)])
    np.testing.assert_array_equal(read(film).image, expected)


def test_lossy_jpeg_2000_is_decoded(tmp_path: Path, write_film: WriteFilm) -> None:
    smooth = np.add.outer(np.arange(64), np.arange(64)).astype(np.uint16) * 30
    film = write_film(tmp_path / "a.dcm", smooth, BitsStored=12, HighBit=11)
    expected = read(film).image.astype(int)
    dataset = pydicom.dcmread(film)
    dataset.compress(uid.JPEG2000, j2k_cr=[4])
    dataset.save_as(film)
    assert np.abs(read(film).image - expected).max() <= 2


# No JPEG-LS encoder is installed, but pydicom includes such files and their uncompressed originals.
@pytest.mark.parametrize(
    ("name", "original", "error"),
    [
        ("MR_small_jpeg_ls_lossless.dcm", "MR_small.dcm", 0),
        ("SC_rgb_jls_lossy_line.dcm", "SC_rgb_rle.dcm", 3),
        ("SC_rgb_jpeg_gdcm.dcm", "SC_rgb_rle.dcm", 0),
    ],
)
def test_files_of_other_encoders_equal_their_originals(name: str, original: str, error: int) -> None:
    paths = [get_testdata_file(each, download=False) for each in (name, original)]
    if None in paths:
        pytest.skip(f"this pydicom comes without {name} or {original}, and no encoder of its syntax is installed")
    got, expected = (read_film(Path(str(path)), ANY_FILM).image.astype(int) for path in paths)
    assert np.abs(got - expected).max() <= error


def test_a_stream_of_fewer_bits_is_not_handed_out(tmp_path: Path) -> None:
    dark = SMALL_FILM >> 1
    path = write_film(tmp_path / "a.dcm", dark, BitsStored=7, HighBit=6)
    film = read_film(recode(path, uid.JPEGBaseline8Bit, [encode_jpeg(dark)]))
    assert film.jpeg is None
    assert np.abs(film.image.astype(int) - SMALL_FILM).max() < 30 and film.image.max() > 150


def test_grey_in_luma_and_chroma_that_is_called_rgb_is_its_luma(tmp_path: Path) -> None:
    planes = np.stack([SMALL_FILM, np.full_like(SMALL_FILM, 129), np.full_like(SMALL_FILM, 126)], axis=2)
    dataset = film_dataset(SMALL_FILM, SamplesPerPixel=3, PhotometricInterpretation="RGB", PlanarConfiguration=0)
    dataset.PixelData = planes.tobytes()
    dataset.save_as(tmp_path / "a.dcm", enforce_file_format=True)
    film = read_film(tmp_path / "a.dcm")
    np.testing.assert_array_equal(film.image, SMALL_FILM)
    assert film.warnings == (
        "its Photometric Interpretation is RGB, its colours are luma and chroma: the luma is taken",
    )


Pixels = npt.NDArray[Any]


def test_a_plain_film_is_decoded_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[str] = []
    decode = simplejpeg.decode_jpeg

    def counted(*arguments: Any, **more: Any) -> Any:
        calls.append("one")
        return decode(*arguments, **more)

    monkeypatch.setattr(simplejpeg, "decode_jpeg", counted)
    monkeypatch.setattr("shards.dicom.pixels.get_decoder", lambda syntax: pytest.fail("pydicom decoded it too"))
    assert read_film(write(tmp_path, encode_jpeg(FILM))).jpeg is not None
    assert calls == ["one"]


def lossless(pixels: Pixels) -> bytes:
    values = pixels.astype(int)
    predicted = np.empty_like(values)
    predicted[:, 1:], predicted[1:, 0], predicted[0, 0] = values[:, :-1], values[:-1, 0], 2048
    return huffman_jpeg(0xC3, 12, pixels.shape, (values - predicted).ravel().tolist(), is_dct=False)


def extended(pixels: Pixels) -> bytes:
    levels = np.diff(pixels[::8, ::8].astype(int).ravel() - 2048, prepend=0)
    return huffman_jpeg(0xC1, 12, pixels.shape, levels.tolist(), is_dct=True)


DEEP = np.kron(np.random.default_rng(1).integers(0, 4096, (10, 12)), np.ones((8, 8), int)).astype(np.uint16)
WITH_BORDER = np.where(np.arange(80)[:, None] < 40, DEEP, 100).astype(np.uint16)


@pytest.mark.parametrize(
    ("syntax", "encode"),
    [(uid.JPEGLosslessSV1, lossless), (uid.JPEGExtended12Bit, extended)],
    ids=["lossless", "12 bits"],
)
def test_a_scan_whose_decoder_says_nothing_is_refused_where_it_stops_early(
    tmp_path: Path, syntax: uid.UID, encode: Any
) -> None:
    bits = {"BitsStored": 12, "HighBit": 11}
    for good in (DEEP, WITH_BORDER):  # a border of one value looks like a truncated scan
        film = read_film(write(tmp_path, encode(good), good, syntax, **bits))
        assert film.image.shape == good.shape and film.warnings == ()
    stream = encode(DEEP)
    for share in (0.5, 0.8):
        cut = stream[: int(len(stream) * share)].rstrip(b"\xff")
        for damaged in (cut, cut + END):
            with pytest.raises(RejectedFilm, match="its scan stops early"):
                read_film(write(tmp_path, damaged, DEEP, syntax, **bits))


@pytest.mark.parametrize("syntax", [uid.JPEGLSLossless, uid.JPEG2000Lossless, uid.RLELossless], ids=lambda s: s.name)
def test_other_streams_that_stop_early_are_refused(tmp_path: Path, syntax: uid.UID) -> None:
    path = recode(write_film(tmp_path / "a.dcm", DEEP, BitsStored=12, HighBit=11), syntax)
    frame = get_frame(dcmread(path).PixelData, 0, number_of_frames=1)
    for share in (0.5, 0.9):
        cut = frame[: int(len(frame) * share)]
        for damaged in (cut, cut + END):
            with pytest.raises(RejectedFilm):
                read_film(write(tmp_path, damaged, DEEP, syntax, BitsStored=12, HighBit=11))
