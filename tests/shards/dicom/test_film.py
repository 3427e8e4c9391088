"""DICOM to 8 bits against pixel-by-pixel references, and a reason for every film that is no readable grey film."""

import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
import pytest
from dicom_streams import decode_jpeg, encode_jpeg, huffman_jpeg, recode
from pydicom import uid
from pydicom.data import get_testdata_file
from pydicom.dataset import Dataset

from shards.dicom.film import Film, FilmRules, parse_age, read_film, strip_jpeg_metadata
from shards.errors import RejectedFilm
from shards.phantom.dataset import render_film

WriteFilm = Callable[..., Path]
Pixels = npt.NDArray[Any]

ANY_FILM = FilmRules(any_film=True)
# What a film says of itself when nothing about it is left open.
CHEST = {"ViewPosition": "PA", "BodyPartExamined": "CHEST"}
DX, DX_FOR_PROCESSING = (f"1.2.840.10008.5.1.4.1.1.1.1{end}" for end in ("", ".1"))


# Most films of these tests are small.
def read(path: Path) -> Film:
    return read_film(path, ANY_FILM)


RAMP12 = np.arange(0, 4096, 37, dtype=np.uint16)[:110].reshape(10, 11)


def naive_unit(values: npt.NDArray[Any], low: float, high: float, inverted: bool = False) -> list[list[int]]:
    def one(value: float) -> int:
        unit = min(max((value - low) / (high - low), 0.0), 1.0)
        return round((1.0 - unit if inverted else unit) * 255.0)

    return [[one(float(value)) for value in row] for row in values]


def test_plain_8_bit_pixels_are_kept_bit_for_bit(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12) * 2
    np.testing.assert_array_equal(read(write_film(tmp_path / "a.dcm", pixels)).image, pixels)


def test_monochrome1_is_shown_dark_where_there_is_air(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(120, dtype=np.uint8).reshape(10, 12)
    film = write_film(tmp_path / "a.dcm", pixels, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(read(film).image, 255 - pixels)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_deep_pixels_without_a_window_span_their_own_range(
    tmp_path: Path, write_film: WriteFilm, photometric: str
) -> None:
    film = write_film(tmp_path / "a.dcm", RAMP12, PhotometricInterpretation=photometric, BitsStored=12, HighBit=11)
    low, high = int(RAMP12.min()), int(RAMP12.max())
    assert read(film).image.tolist() == naive_unit(RAMP12, low, high, photometric == "MONOCHROME1")


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_window_is_applied_by_the_standards_formula(tmp_path: Path, write_film: WriteFilm, photometric: str) -> None:
    center, width = 1800.0, 1501.0
    film = write_film(
        tmp_path / "a.dcm",
        RAMP12,
        PhotometricInterpretation=photometric,
        BitsStored=12,
        HighBit=11,
        WindowCenter=str(center),
        WindowWidth=str(width),
    )
    # PS3.3 C.11.2.1.2.1: black below c - 0.5 - (w-1)/2, white above c - 0.5 + (w-1)/2, linear between.
    low, high = center - 0.5 - (width - 1) / 2, center - 0.5 + (width - 1) / 2
    expected = np.array(naive_unit(RAMP12, low, high, photometric == "MONOCHROME1"))
    got = read(film).image.astype(int)
    np.testing.assert_array_equal(got, expected)
    assert {0, 255} <= set(got.ravel().tolist())


def test_the_window_counts_rescaled_values(tmp_path: Path, write_film: WriteFilm) -> None:
    attributes = {"RescaleSlope": "2", "RescaleIntercept": "-1000", "WindowCenter": "2000", "WindowWidth": "3001"}
    film = write_film(tmp_path / "a.dcm", RAMP12, BitsStored=12, HighBit=11, **attributes)
    values = RAMP12.astype(float) * 2 - 1000
    assert read(film).image.tolist() == naive_unit(values, 499.5, 3499.5)


def test_a_voi_lookup_table_is_applied(tmp_path: Path, write_film: WriteFilm) -> None:
    table = [value * value for value in range(200)]
    lookup = Dataset()
    lookup.add_new("LUTDescriptor", "US", [200, 0, 16])
    lookup.add_new("LUTData", "US", table)
    pixels = np.arange(0, 240, 2, dtype=np.uint16).reshape(10, 12)
    film = write_film(tmp_path / "a.dcm", pixels, VOILUTSequence=[lookup])
    looked_up = np.array([[table[min(int(value), 199)] for value in row] for row in pixels])
    assert read(film).image.tolist() == naive_unit(looked_up, 0, table[-1])


def naive_window(value: float, center: float, width: float, function: str) -> float:
    """PS3.3 C.11.2.1.2 and C.11.2.1.3 word by word, for an output range of 0 to 1."""
    if function == "SIGMOID":
        return 1 / (1 + math.exp(-4 * (value - center) / width))
    if function == "LINEAR_EXACT":
        if value <= center - width / 2:
            return 0.0
        return 1.0 if value > center + width / 2 else (value - center) / width + 0.5
    if value <= center - 0.5 - (width - 1) / 2:
        return 0.0
    if value > center - 0.5 + (width - 1) / 2:
        return 1.0
    return (value - (center - 0.5)) / (width - 1) + 0.5


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize("function", ["LINEAR", "LINEAR_EXACT", "SIGMOID"])
@pytest.mark.parametrize(("center", "width"), [(1800.0, 1501.0), (2000.0, 700.0), (300.5, 900.25)])
def test_every_window_function_is_applied_to_signed_pixels_too(
    tmp_path: Path, write_film: WriteFilm, photometric: str, function: str, center: float, width: float
) -> None:
    pixels = RAMP12.astype(np.int16) - 1500
    film = write_film(
        tmp_path / "a.dcm",
        pixels,
        PhotometricInterpretation=photometric,
        VOILUTFunction=function,
        WindowCenter=str(center - 1500),
        WindowWidth=str(width),
    )
    # Far below the window the naive sigmoid overflows; 100 widths below it is 0.
    lowest = center - 1500 - 100 * width
    units = np.array(
        [[naive_window(max(float(v), lowest), center - 1500, width, function) for v in row] for row in pixels]
    )
    expected = np.rint((1 - units if photometric == "MONOCHROME1" else units) * 255)
    np.testing.assert_array_equal(read(film).image, expected)


def test_the_first_of_several_windows_is_applied(tmp_path: Path, write_film: WriteFilm) -> None:
    one = write_film(tmp_path / "a.dcm", RAMP12, WindowCenter="1800", WindowWidth="1501")
    several = write_film(tmp_path / "b.dcm", RAMP12, WindowCenter=["1800", "90"], WindowWidth=["1501", "40"])
    np.testing.assert_array_equal(read(several).image, read(one).image)


def lookup_item(entries: list[int], first: int, bits: int, vr: str = "US") -> Dataset:
    item = Dataset()
    item.add_new("LUTDescriptor", "SS" if first < 0 else "US", [len(entries), first, bits])
    item.add_new("LUTData", vr, np.array(entries, "<u2").tobytes() if vr == "OW" else entries)
    return item


def naive_look_up(pixels: Pixels, entries: list[int], first: int) -> Pixels:
    return np.array([[entries[min(max(int(v) - first, 0), len(entries) - 1)] for v in row] for row in pixels])


@pytest.mark.parametrize("vr", ["US", "OW"])
def test_a_voi_table_of_8_bit_entries_takes_12_bit_values(tmp_path: Path, write_film: WriteFilm, vr: str) -> None:
    entries = [min(255, value // 12) for value in range(3800)]
    film = write_film(tmp_path / "a.dcm", RAMP12, VOILUTSequence=[lookup_item(entries, 100, 8, vr)])
    expected = naive_look_up(RAMP12, entries, 100)
    np.testing.assert_array_equal(read(film).image, naive_unit(expected, 0, 255))


def test_8_bit_entries_may_come_two_to_a_word(tmp_path: Path, write_film: WriteFilm) -> None:
    entries = [255 - value for value in range(256)]
    item = lookup_item(entries, 0, 8, "OW")
    item.LUTData = bytes(entries)
    pixels = np.arange(0, 240, 2, dtype=np.uint8).reshape(10, 12)
    np.testing.assert_array_equal(
        read(write_film(tmp_path / "a.dcm", pixels, VOILUTSequence=[item])).image, 255 - pixels
    )


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
def test_a_modality_table_is_applied_to_signed_pixels(tmp_path: Path, write_film: WriteFilm, photometric: str) -> None:
    entries = [(value * 7) % 5003 for value in range(2000)]
    pixels = (RAMP12.astype(np.int32) * 16 - 32768).astype(np.int16)
    item = lookup_item(entries, -10000, 16)
    film = write_film(tmp_path / "a.dcm", pixels, PhotometricInterpretation=photometric, ModalityLUTSequence=[item])
    values = naive_look_up(pixels, entries, -10000)
    expected = naive_unit(values, values.min(), values.max(), photometric == "MONOCHROME1")
    assert read(film).image.tolist() == expected


def test_a_window_after_a_modality_table_counts_its_output(tmp_path: Path, write_film: WriteFilm) -> None:
    entries = [value * 3 for value in range(4096)]
    window = {"WindowCenter": "6000", "WindowWidth": "5001"}
    film = write_film(tmp_path / "a.dcm", RAMP12, ModalityLUTSequence=[lookup_item(entries, 0, 16)], **window)
    assert read(film).image.tolist() == naive_unit(RAMP12 * 3.0, 3499.5, 8499.5)


@pytest.mark.parametrize("photometric", ["MONOCHROME1", "MONOCHROME2"])
@pytest.mark.parametrize(
    ("padding", "attributes"),
    [
        ([4095], {"PixelPaddingValue": 4095}),
        ([0], {"PixelPaddingValue": 0}),
        ([4000, 4050, 4095], {"PixelPaddingValue": 4095, "PixelPaddingRangeLimit": 4000}),
    ],
)
def test_padding_is_dark_and_does_not_stretch_the_range(
    tmp_path: Path, write_film: WriteFilm, photometric: str, padding: list[int], attributes: dict[str, int]
) -> None:
    pixels = np.arange(1000, 1120, dtype=np.uint16).reshape(10, 12)
    expected = np.zeros((10, 12), int)
    expected[2:] = naive_unit(pixels[2:], 1024, 1119, photometric == "MONOCHROME1")
    pixels[:2] = np.resize(padding, (2, 12))
    film = write_film(tmp_path / "a.dcm", pixels, PhotometricInterpretation=photometric, **attributes)
    np.testing.assert_array_equal(read(film).image, expected)


def test_padding_written_in_the_wrong_sign_is_understood(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(120, dtype=np.int16).reshape(10, 12)
    pixels[0] = -2000
    film = write_film(tmp_path / "a.dcm", pixels)
    content = pydicom.dcmread(film)
    content.add_new("PixelPaddingValue", "US", 65536 - 2000)
    content.save_as(film)
    np.testing.assert_array_equal(read(film).image, naive_unit(pixels, 12, 119))


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
    # Chroma at its zero: grey in, the same grey out.
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
    # The luma of the colours is Y itself, but for the rounding of the colours in between.
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
    # A block of one value v has no coefficient but DC = 8 (v - 2048), and 8 is the quantiser.
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


# No JPEG-LS encoder is installed, but pydicom brings such files, and their uncompressed originals.
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


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")
@pytest.mark.filterwarnings("ignore:.*value length:UserWarning")
@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"NumberOfFrames": "3", "PixelData": bytes(range(64)) * 192}, "multi-frame object with 3 frames"),
        *(
            ({"ViewPosition": view}, "not a frontal film")
            for view in ("LL", "RL", "LATERAL", "lateral", "LLO", "RLO", "LLD", "LAO LAT", "OBLIQUE")
        ),
        *(
            ({"BodyPartExamined": part}, "not the chest")
            for part in ("HIP", "SKULL", "THORACIC SPINE", "CSPINE", "hand")
        ),
        *(({"Modality": modality}, "not a radiograph") for modality in ("CT", "MR", "US", "MG")),
        ({"PresentationIntentType": "FOR PROCESSING"}, "FOR PROCESSING"),
        ({"SOPClassUID": DX_FOR_PROCESSING}, "FOR PROCESSING"),
    ],
)
def test_films_that_are_no_frontal_chest_films_are_taken_only_on_demand(
    tmp_path: Path, write_film: WriteFilm, attributes: dict[str, Any], reason: str
) -> None:
    pixels = np.tile(np.arange(64, dtype=np.uint8), (64, 1))
    film = write_film(tmp_path / "a.dcm", pixels, **{**CHEST, **attributes})
    with pytest.raises(RejectedFilm, match=f"{reason}.*; pass --any-film to accept it"):
        read_film(film)
    with pytest.raises(RejectedFilm, match="--any-film"):
        read_film(film, FilmRules(allow_burned_in=True))
    got = read_film(film, ANY_FILM)
    np.testing.assert_array_equal(got.image, pixels)
    if "NumberOfFrames" in attributes:
        assert got.warnings == ("only the first of its 3 frames is taken",)


@pytest.mark.parametrize(
    ("sequence", "meaning", "reason"),
    [
        ("ViewCodeSequence", "lateral", "view is LATERAL"),
        ("AnatomicRegionSequence", "Knee", "body part is KNEE"),
    ],
)
def test_codes_stand_in_for_missing_terms(
    tmp_path: Path, write_film: WriteFilm, sequence: str, meaning: str, reason: str
) -> None:
    code = Dataset()
    code.CodeMeaning = meaning
    film = write_film(tmp_path / "a.dcm", np.eye(64, dtype=np.uint8), **{sequence: [code]})
    with pytest.raises(RejectedFilm, match=reason):
        read_film(film)


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")
@pytest.mark.parametrize("part", ["CHEST", "chest", "Thorax", "LUNG", "PORT CHEST", "TORAX"])
@pytest.mark.parametrize("view", ["PA", "AP", "ap", "BILATERAL PA"])
def test_frontal_chest_films_pass_without_a_warning(
    tmp_path: Path, write_film: WriteFilm, part: str, view: str
) -> None:
    film = write_film(tmp_path / "a.dcm", np.eye(64, dtype=np.uint8), BodyPartExamined=part, ViewPosition=view)
    assert read_film(film).warnings == ()


def test_each_missing_tag_is_a_warning(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.eye(64, dtype=np.uint8)

    def missing(**attributes: Any) -> list[str]:
        found = read_film(write_film(tmp_path / "a.dcm", pixels, **attributes)).warnings
        return [warning.split()[1].rstrip(":") for warning in found]

    assert missing() == ["ViewPosition", "BodyPartExamined"]
    assert missing(ViewPosition="PA", BodyPartExamined="") == ["BodyPartExamined"]
    assert missing(**CHEST, SOPClassUID=DX) == ["PresentationIntentType"]
    assert missing(**CHEST, SOPClassUID=DX, PresentationIntentType="FOR PRESENTATION") == []


def test_text_burned_into_the_pixels_is_taken_only_on_demand(tmp_path: Path, write_film: WriteFilm) -> None:
    film = write_film(tmp_path / "a.dcm", np.eye(64, dtype=np.uint8), **CHEST, BurnedInAnnotation="YES")
    for rules in (FilmRules(), ANY_FILM):
        with pytest.raises(RejectedFilm, match="--allow-burned-in"):
            read_film(film, rules)
    assert read_film(film, FilmRules(allow_burned_in=True)).image.shape == (64, 64)
    unsaid = write_film(tmp_path / "b.dcm", np.eye(64, dtype=np.uint8), **CHEST, BurnedInAnnotation="NO")
    assert read_film(unsaid).warnings == ()


SECRET = b"DOE^JANE"


def segments_before_scan(stream: bytes) -> tuple[list[bytes], bytes]:
    """The marker segments up to the scan, and all from the scan on; for streams without fill bytes."""
    position, parts = 2, [stream[:2]]
    while stream[position + 1] != 0xDA:
        end = position + 2 + int.from_bytes(stream[position + 2 : position + 4], "big")
        parts.append(stream[position:end])
        position = end
    return parts, stream[position:]


def secret(marker: int) -> bytes:
    return bytes([0xFF, marker]) + (len(SECRET) + 2).to_bytes(2, "big") + SECRET


@pytest.fixture(scope="module")
def phantom() -> Pixels:
    return render_film(np.random.default_rng(5), 96, True).image


@pytest.mark.parametrize(
    "options", [(), (cv2.IMWRITE_JPEG_RST_INTERVAL, 3), (cv2.IMWRITE_JPEG_PROGRESSIVE, 1)], ids=str
)
def test_metadata_segments_are_stripped_and_all_else_is_kept(phantom: Pixels, options: tuple[int, ...]) -> None:
    parts, rest = segments_before_scan(encode_jpeg(phantom, *options))
    assert any(part[1] == 0xE0 for part in parts)
    kept = [part for part in parts if part[1] != 0xE0]
    assert strip_jpeg_metadata(b"".join(parts) + rest) == b"".join(kept) + rest
    # Metadata in every gap, before the first scan's end marker too; fill bytes; a pad byte and more after the end.
    for pad in (b"", b"\0", b"\xff", SECRET):
        for marker in (*range(0xE0, 0xF0), 0xFE):
            filled = b"".join(part + secret(marker) + b"\xff\xff" + secret(marker) for part in kept)
            full = filled + rest[:-2] + secret(marker) + rest[-2:] + pad
            assert strip_jpeg_metadata(full) == b"".join(kept) + rest
    # Fill bytes and a standalone marker in what is kept stay where they are.
    odd = kept[0] + b"\xff\xff" + kept[1] + b"\xff\x01" + b"".join(kept[2:]) + rest[:-2] + b"\xff" + rest[-2:]
    assert strip_jpeg_metadata(odd) == odd


def test_metadata_between_scans_is_stripped(phantom: Pixels) -> None:
    parts, rest = segments_before_scan(encode_jpeg(phantom, cv2.IMWRITE_JPEG_PROGRESSIVE, 1))
    bare = strip_jpeg_metadata(b"".join(parts) + rest)
    second = bare.index(b"\xff\xc4", bare.index(b"\xff\xda"))  # the second scan's Huffman table
    assert strip_jpeg_metadata(bare[:second] + secret(0xFE) + bare[second:]) == bare


def test_a_damaged_stream_is_refused(phantom: Pixels) -> None:
    stream = encode_jpeg(phantom)
    for length in [*range(700), *range(700, len(stream), 37), len(stream) - 1]:
        with pytest.raises(RejectedFilm, match="damaged JPEG"):
            strip_jpeg_metadata(stream[:length])
    for damaged in (b"no stream", stream[2:], stream[:2] + stream, stream[:2] + b"\xff\xdb\0\1" + stream[2:]):
        with pytest.raises(RejectedFilm, match="damaged JPEG"):
            strip_jpeg_metadata(damaged)
    rng = random.Random(0)
    for _ in range(300):
        flipped = bytearray(stream)
        flipped[rng.randrange(len(stream))] = rng.randrange(256)
        try:
            stripped = strip_jpeg_metadata(bytes(flipped))
            assert strip_jpeg_metadata(stripped) == stripped
        except RejectedFilm:
            pass


def jpeg_film(path: Path, write_film: WriteFilm, image: Pixels, stream: bytes, **attributes: Any) -> Film:
    """Write and read a film of `image`'s shape whose one frame is `stream`."""
    film = write_film(path, image, **{**CHEST, **attributes})
    return read_film(recode(film, uid.JPEGBaseline8Bit, [stream]), ANY_FILM)


def test_a_plain_baseline_film_hands_out_its_own_stream(tmp_path: Path, write_film: WriteFilm, phantom: Pixels) -> None:
    stream = encode_jpeg(phantom)
    # EXIF says: turn the picture upside down. A film's decoder must not, nor one that gets the stripped stream.
    exif = b"Exif\0\0MM\0*\0\0\0\x08\0\x01\x01\x12\0\x03\0\0\0\x01\0\x03\0\0\0\0\0\0"
    tagged = stream[:2] + b"\xff\xe1" + (len(exif) + 2).to_bytes(2, "big") + exif + secret(0xFE) + stream[2:]
    assert not np.array_equal(decode_jpeg(tagged), decode_jpeg(stream))
    film = jpeg_film(tmp_path / "a.dcm", write_film, phantom, tagged)
    assert film.jpeg == strip_jpeg_metadata(stream)
    assert SECRET not in film.jpeg
    np.testing.assert_array_equal(film.image, decode_jpeg(stream))
    np.testing.assert_array_equal(film.image, decode_jpeg(film.jpeg))
    assert film.warnings == ()


@pytest.mark.parametrize(
    ("attributes", "is_own"),
    [
        ({"WindowCenter": "128", "WindowWidth": "256"}, True),  # sends 0..255 to 0..255
        ({"RescaleSlope": "1", "RescaleIntercept": "0"}, True),
        ({"PixelPaddingValue": 0}, True),
        ({"PixelPaddingValue": 255}, False),
        ({"WindowCenter": "120", "WindowWidth": "200"}, False),
        ({"RescaleSlope": "2", "RescaleIntercept": "0"}, False),
        ({"PhotometricInterpretation": "MONOCHROME1"}, False),
        ({"NumberOfFrames": "2"}, False),
    ],
    ids=str,
)
def test_a_stream_is_handed_out_only_where_nothing_is_done_to_it(
    tmp_path: Path, write_film: WriteFilm, phantom: Pixels, attributes: dict[str, Any], is_own: bool
) -> None:
    stream = encode_jpeg(phantom)
    path = write_film(tmp_path / "a.dcm", phantom, **CHEST, **attributes)
    frames = [stream] * int(attributes.get("NumberOfFrames", 1))
    film = read(recode(path, uid.JPEGBaseline8Bit, frames))
    assert (film.jpeg is not None) == is_own
    if film.jpeg is not None:
        np.testing.assert_array_equal(film.image, decode_jpeg(film.jpeg))


def test_a_stream_without_its_end_marker_is_read_with_a_warning_and_not_handed_out(
    tmp_path: Path, write_film: WriteFilm, phantom: Pixels
) -> None:
    stream = encode_jpeg(phantom)
    film = jpeg_film(tmp_path / "a.dcm", write_film, phantom, stream[:-2])
    np.testing.assert_array_equal(film.image, decode_jpeg(stream))
    assert film.jpeg is None
    assert film.warnings == ("its JPEG stream has no end marker: its picture is whole",)


def test_streams_of_other_kinds_are_not_handed_out(tmp_path: Path, write_film: WriteFilm, phantom: Pixels) -> None:
    progressive = encode_jpeg(phantom, cv2.IMWRITE_JPEG_PROGRESSIVE, 1)
    film = jpeg_film(tmp_path / "a.dcm", write_film, phantom, progressive)
    assert film.jpeg is None
    np.testing.assert_array_equal(film.image, decode_jpeg(progressive))
    colour = cv2.cvtColor(phantom, cv2.COLOR_GRAY2BGR)
    film = jpeg_film(
        tmp_path / "b.dcm", write_film, colour, encode_jpeg(colour), PhotometricInterpretation="YBR_FULL_422"
    )
    assert film.jpeg is None
    assert np.abs(film.image.astype(int) - phantom).max() < 20


@pytest.mark.filterwarnings("ignore:Invalid value for VR CS:UserWarning")
def test_only_the_facts_that_training_may_know_are_kept(tmp_path: Path, write_film: WriteFilm) -> None:
    film = write_film(
        tmp_path / "a.dcm",
        np.eye(8, dtype=np.uint8),
        PatientID=" p7 ",
        PatientName="Doe^Jane",
        ViewPosition="pa",
        PatientSex="F",
        PatientAge="093Y",
        ImagerPixelSpacing=["0.2", "0.3"],
    )
    info = read(film).info
    assert (info.patient_id, info.view, info.sex, info.age) == ("p7", "PA", "F", 90)
    assert (info.spacing_row, info.spacing_column, info.spacing_tag) == (0.2, 0.3, "ImagerPixelSpacing")
    assert "Doe" not in repr(info)


def test_a_spacing_of_nothing_is_unknown(tmp_path: Path, write_film: WriteFilm) -> None:
    info = read(write_film(tmp_path / "a.dcm", np.eye(8, dtype=np.uint8), PixelSpacing=["0.000", "0.000"])).info
    assert (info.spacing_row, info.spacing_column, info.spacing_tag) == (None, None, "")


@pytest.mark.parametrize(
    ("text", "age"),
    [
        ("038Y", 38),
        ("38", 38),
        ("011M", 0),
        ("30M", 2),
        ("104W", 2),
        ("800D", 2),
        ("89Y", 89),
        ("91", 90),
        ("", None),
        ("Y", None),
        ("old", None),
        ("-5", None),
    ],
)
def test_ages_are_whole_years_pooled_at_ninety(text: str, age: int | None) -> None:
    assert parse_age(text) == age


@pytest.mark.parametrize(
    ("attributes", "reason"),
    [
        ({"PixelData": None}, "no pixel data"),
        ({"NumberOfFrames": "3"}, "64 bytes long, Columns x Rows of 3 frames of 8x8 take 192"),
        ({"PixelData": b"\0" * 10}, "10 bytes long, Columns x Rows of 8x8 take 64"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "PALETTE COLOR"),
        ({"PhotometricInterpretation": None}, "Photometric"),
        ({"Rows": None}, "Rows is no whole number"),
        ({"WindowCenter": "0", "WindowWidth": "-5"}, "lookup"),
        ({"WindowCenter": "5", "WindowWidth": "5", "VOILUTFunction": "CUBIC"}, "CUBIC"),
        ({"VOILUTSequence": [Dataset()]}, "lookup"),
        ({"RescaleSlope": "0", "RescaleIntercept": "5"}, "one value"),
        ({"WindowCenter": "900", "WindowWidth": "10"}, "one value"),
    ],
)
def test_what_is_no_single_grey_film_is_rejected(
    tmp_path: Path, write_film: WriteFilm, attributes: dict[str, Any], reason: str
) -> None:
    film = write_film(tmp_path / "a.dcm", np.eye(8, dtype=np.uint8), **attributes)
    with pytest.raises(RejectedFilm, match=reason):
        read(film)


@pytest.mark.parametrize(
    ("pixels", "attributes"),
    [
        (np.full((8, 8), 70, np.uint8), {}),
        (np.full((8, 8), 700, np.uint16), {}),
        (np.full((8, 8), 700, np.uint16), {"PixelPaddingValue": 700}),
        (np.full((8, 8), 70000, np.uint32), {}),
    ],
    ids=["8-bit", "16-bit", "padding", "32-bit"],
)
def test_a_film_of_one_value_is_rejected(
    tmp_path: Path, write_film: WriteFilm, pixels: Pixels, attributes: dict[str, Any]
) -> None:
    with pytest.raises(RejectedFilm, match="one value"):
        read(write_film(tmp_path / "a.dcm", pixels, **attributes))


def test_pixels_of_32_bits_span_their_own_range(tmp_path: Path, write_film: WriteFilm) -> None:
    pixels = np.arange(64, dtype=np.uint32).reshape(8, 8) ** 2 * 100_000
    film = write_film(tmp_path / "a.dcm", pixels)
    assert read(film).image.tolist() == naive_unit(pixels, 0, 63**2 * 100_000)


@pytest.mark.parametrize("content", [b"", b"no film", b"\0" * 128 + b"DICM", b"\0" * 128 + b"DICM" + b"\xff" * 400])
def test_what_is_no_dicom_is_rejected(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.dcm").write_bytes(content)
    with pytest.raises(RejectedFilm):
        read(tmp_path / "a.dcm")


@pytest.mark.parametrize(
    ("old", "new"),
    [
        (b"DS\x04\x001.5 ", b"DS\x04\x00abc "),
        (b"IS\x02\x001 ", b"IS\x02\x00x "),
        (b"AS\x04\x00038Y", b"AS\x04\x00\xff\xff\xff\xff"),
        (b"DS\x08\x000.2\\0.3 ", b"DS\x08\x00x.2\\y.3 "),
    ],
    ids=["slope", "frames", "age", "spacing"],
)
def test_a_damaged_value_is_left_out_or_rejected_but_never_a_fault(
    tmp_path: Path, write_film: WriteFilm, old: bytes, new: bytes
) -> None:
    film = write_film(
        tmp_path / "a.dcm",
        np.eye(8, dtype=np.uint8),
        RescaleSlope="1.5",
        RescaleIntercept="0",
        NumberOfFrames="1",
        PatientAge="038Y",
        PixelSpacing=["0.2", "0.3"],
    )
    content = film.read_bytes()
    assert content.count(old) == 1
    film.write_bytes(content.replace(old, new))
    try:
        assert read(film).image.shape == (8, 8)
    except RejectedFilm as reason:
        assert str(reason)


def test_a_film_cut_or_flipped_anywhere_is_read_or_rejected_but_never_a_fault(
    tmp_path: Path, write_film: WriteFilm
) -> None:
    film = write_film(
        tmp_path / "a.dcm",
        np.arange(64, dtype=np.uint16).reshape(8, 8),
        PatientID="p",
        PatientAge="038Y",
        NumberOfFrames="1",
        RescaleSlope="1.5",
        RescaleIntercept="1",
        WindowCenter="40",
        WindowWidth="60",
        PixelSpacing=["0.2", "0.3"],
    )
    whole, rng = film.read_bytes(), random.Random(0)
    damaged = [whole[:length] for length in range(0, len(whole), 23)]
    for _ in range(250):
        flipped = bytearray(whole)
        flipped[rng.randrange(132, len(whole))] = rng.randrange(256)
        damaged.append(bytes(flipped))
    outcomes = []
    for content in damaged:
        film.write_bytes(content)
        try:
            image = read(film).image
            outcomes.append(image.dtype == np.uint8 and image.ndim == 2)
        except RejectedFilm:
            outcomes.append(None)
    assert set(outcomes) == {True, None}


@pytest.mark.parametrize("syntax", [uid.JPEGBaseline8Bit, uid.JPEG2000Lossless, uid.RLELossless], ids=lambda s: s.name)
def test_a_compressed_film_flipped_anywhere_is_read_or_rejected_but_never_a_fault(
    tmp_path: Path, write_film: WriteFilm, phantom: Pixels, syntax: uid.UID
) -> None:
    film = write_film(tmp_path / "a.dcm", phantom[:48, :48], **CHEST)
    recode(film, syntax, [encode_jpeg(phantom[:48, :48])] if syntax == uid.JPEGBaseline8Bit else None)
    whole, rng = film.read_bytes(), random.Random(0)
    for _ in range(150):
        flipped = bytearray(whole)
        flipped[rng.randrange(132, len(whole))] = rng.randrange(256)
        film.write_bytes(flipped)
        try:
            got = read(film)
            assert got.image.dtype == np.uint8
            assert got.jpeg is None or decode_jpeg(got.jpeg).shape == got.image.shape
        except RejectedFilm as reason:
            assert "\n" not in str(reason)


# What stands in the way of each without --any-film: nothing, where a film does not say what it shows.
ZOO = {
    "966_fixed": "",
    "CR-MONO1-10-chest_nometa": "",
    "RG1_J2KI": "",
    "RG2_JPLY_fixed": "body part is HIP",
    "RG3_J2KR": "body part is EXTREMITY",
    "image_dfl": "",
    "mlut_18": "",
    "vlut_04": "",
}


@pytest.mark.parametrize("name", ZOO)
def test_films_of_other_makers_are_read(real_data: Path, name: str) -> None:
    path = real_data / "dicom_zoo" / f"{name}.dcm"
    film = read_film(path, ANY_FILM)
    assert film.image.dtype == np.uint8
    assert min(film.image.shape) >= 64
    assert film.image.std() > 5
    assert film.jpeg is None
    if ZOO[name]:
        with pytest.raises(RejectedFilm, match=f"{ZOO[name]}.*--any-film"):
            read_film(path)
    else:
        np.testing.assert_array_equal(read_film(path).image, film.image)


@pytest.mark.parametrize("name", ["966_fixed", "CR-MONO1-10-chest_nometa", "RG1_J2KI"])
def test_the_spine_of_a_chest_film_is_brighter_than_its_lungs(real_data: Path, name: str) -> None:
    image = read_film(real_data / "dicom_zoo" / f"{name}.dcm").image
    height, width = image.shape
    rows = image[int(height * 0.3) : int(height * 0.5)]
    spine = rows[:, int(width * 0.45) : int(width * 0.55)].mean()
    assert spine > rows[:, int(width * 0.15) : int(width * 0.35)].mean() + 20


def test_the_competitions_films_hand_out_their_own_streams(real_data: Path) -> None:
    paths = sorted((real_data / "siim_sample").glob("*.dcm"))
    assert len(paths) == 10
    for path in paths:
        film = read_film(path)
        assert film.warnings == ()
        assert film.jpeg is not None
        np.testing.assert_array_equal(decode_jpeg(film.jpeg), film.image)
