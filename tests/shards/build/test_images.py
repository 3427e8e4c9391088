"""Image files of every depth and kind: read unchanged, or refused with the format to save instead."""

import io
import itertools
import struct
import zlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from PIL import Image

from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.images import TURNED, film_of_array, read_image_film, read_image_mask
from shards.build.options import BuildOptions
from shards.build.progress import REJECTED, read_list
from shards.build.sources import find_sources
from shards.dataset.table import Shards
from shards.dataset.verify import verify
from shards.errors import InputError, RejectedFilm

Pixels = npt.NDArray[Any]
LIMIT = 10_000
BOXES = ((4, 20, 6, 30), (24, 36, 10, 16))


def saved(folder: Path, pixels: Pixels, suffix: str = ".png") -> Path:
    """Write grey or BGR(A) pixels."""
    path = folder / f"image{suffix}"
    assert cv2.imwrite(str(path), pixels)
    return path


def region() -> npt.NDArray[np.bool_]:
    mask = np.zeros((40, 50), bool)
    for top, bottom, left, right in BOXES:
        mask[top:bottom, left:right] = True
    return mask


def noise(depth: type[np.unsignedinteger] = np.uint8, top: int = 255) -> Pixels:
    return np.random.default_rng(0).integers(0, top, (40, 50), endpoint=True).astype(depth)


def film(path: Path) -> tuple[Pixels, tuple[str, ...]]:
    return read_image_film(path, LIMIT)


def mask(path: Path) -> Pixels:
    return read_image_mask(path, LIMIT)[0]


def test_film_of_8_bits_keeps_its_values(tmp_path: Path) -> None:
    found, warnings = film(saved(tmp_path, noise()))
    assert np.array_equal(found, noise()) and found.dtype == np.uint8 and warnings == ()


@pytest.mark.parametrize("top", [255, 1023, 4080, 65535])
def test_film_of_16_bits_spans_its_own_range(tmp_path: Path, top: int) -> None:
    values = noise(np.uint16, top - 7) + np.uint16(7)
    found, _ = film(saved(tmp_path, values))
    low, high = int(values.min()), int(values.max())
    assert np.array_equal(found, np.rint((values - low) / (high - low) * 255))


def test_colour_film_of_equal_channels_is_grey(tmp_path: Path) -> None:
    found, warnings = film(saved(tmp_path, cv2.merge([noise()] * 3)))
    assert np.array_equal(found, noise()) and warnings == ()


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_colour_film_is_taken_by_its_brightness_with_a_warning(tmp_path: Path, depth: type[np.unsignedinteger]) -> None:
    scale = np.iinfo(depth).max // 255
    blue, green, red = (noise() // part for part in (3, 2, 1))
    found, warnings = film(saved(tmp_path, cv2.merge([c.astype(depth) * depth(scale) for c in (blue, green, red)])))
    expected = 0.114 * blue + 0.587 * green + 0.299 * red
    if depth == np.uint16:
        expected = (expected - expected.min()) / np.ptp(expected) * 255
    assert np.abs(found - expected).max() <= 1
    assert warnings == ("a colour image: its brightness is taken",)


def test_film_of_a_palette_of_greys_keeps_its_values(tmp_path: Path) -> None:
    Image.fromarray(noise()).convert("P").save(tmp_path / "film.png")
    assert np.array_equal(film(tmp_path / "film.png")[0], noise())


@pytest.mark.parametrize("pixels", [np.full((40, 50), 7, np.uint8), np.full((40, 50, 3), 900, np.uint16)])
def test_film_of_one_value_is_refused(tmp_path: Path, pixels: Pixels) -> None:
    with pytest.raises(RejectedFilm, match="all its pixels have one value"):
        film(saved(tmp_path, pixels))


def test_film_of_two_greys_may_be_a_mask(tmp_path: Path) -> None:
    assert film(saved(tmp_path, region() * np.uint8(255)))[1] == ("a film of two greys: is it a mask?",)


def test_transparent_film_is_refused_and_an_opaque_one_is_not(tmp_path: Path) -> None:
    with pytest.raises(RejectedFilm, match="alpha channel varies"):
        film(saved(tmp_path, cv2.merge([noise()] * 3 + [noise()])))
    opaque = cv2.merge([noise()] * 3 + [np.full((40, 50), 255, np.uint8)])
    assert np.array_equal(film(saved(tmp_path, opaque))[0], noise())


@pytest.mark.parametrize("orientation", [3, 6, 8])
def test_exif_never_turns_a_film_or_a_mask(tmp_path: Path, orientation: int) -> None:
    exif = Image.Exif()
    exif[0x112] = orientation
    smooth = cv2.GaussianBlur(noise(), (0, 0), 3)
    Image.fromarray(smooth).save(tmp_path / "a.jpg", exif=exif, quality=100)
    Image.fromarray(region() * np.uint8(255)).save(tmp_path / "a.png", exif=exif)
    found, warnings = film(tmp_path / "a.jpg")
    assert found.shape == smooth.shape and np.abs(found.astype(int) - smooth).max() <= 3
    assert warnings == (TURNED,)
    assert np.array_equal(read_image_mask(tmp_path / "a.png", LIMIT)[0], region())
    assert read_image_mask(tmp_path / "a.png", LIMIT)[1] == (TURNED,)


MASKS = [(np.uint8, 1), (np.uint8, 255), (np.uint8, 200), (np.uint16, 1), (np.uint16, 255), (np.uint16, 65535)]


@pytest.mark.parametrize(("depth", "value"), MASKS)
@pytest.mark.parametrize("channels", [1, 3, 4])
def test_masks_of_every_depth_and_channel_are_masks(
    tmp_path: Path, depth: type[np.unsignedinteger], value: int, channels: int
) -> None:
    grey = region().astype(depth) * depth(value)
    opaque = np.full(grey.shape, np.iinfo(depth).max, depth)
    layers = {1: grey, 3: cv2.merge([grey] * 3), 4: cv2.merge([grey, grey, grey, opaque])}
    found = mask(saved(tmp_path, layers[channels]))
    assert np.array_equal(found, region()) and found.dtype == np.uint8


@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
@pytest.mark.parametrize("colour", [(0, 0, 0), (255, 255, 255), (0, 0, 200)])
def test_mask_in_the_alpha_channel_over_one_colour(
    tmp_path: Path, depth: type[np.unsignedinteger], colour: tuple[int, int, int]
) -> None:
    alpha = region().astype(depth) * np.iinfo(depth).max
    layers = [np.full(alpha.shape, value, depth) for value in colour]
    assert np.array_equal(mask(saved(tmp_path, cv2.merge([*layers, alpha]))), region())


@pytest.mark.parametrize("kind", ["1", "P"])
def test_masks_of_one_bit_and_of_a_black_and_white_palette(tmp_path: Path, kind: str) -> None:
    Image.fromarray(region() * np.uint8(255)).convert(kind).save(tmp_path / "mask.png")
    assert np.array_equal(mask(tmp_path / "mask.png"), region())


def test_soft_edges_and_jpeg_noise_are_no_labels(tmp_path: Path) -> None:
    soft = cv2.GaussianBlur(region() * np.uint8(255), (0, 0), 1)
    twice = cv2.resize(region() * np.uint8(255), None, fx=2, fy=2, interpolation=cv2.INTER_LINEAR)
    for pixels, suffix in ((soft, ".png"), (twice, ".png"), (region() * np.uint8(255), ".jpg")):
        assert np.array_equal(mask(saved(tmp_path, pixels, suffix)), pixels >= 128)


def two_labels(first: int, second: int, depth: type[np.unsignedinteger] = np.uint8) -> Pixels:
    pixels = np.zeros((40, 50), depth)
    for (top, bottom, left, right), value in zip(BOXES, (first, second), strict=True):
        pixels[top:bottom, left:right] = value
    return pixels


def bordered() -> Pixels:
    inner = region().astype(np.uint8)
    inner[cv2.dilate(inner, np.ones((3, 3), np.uint8)) > inner] = 255
    return inner


@pytest.mark.parametrize(
    ("pixels", "named"),
    [
        (region() * np.uint8(77), "a largest value of 77"),
        (region() * np.uint16(4095), "a largest value of 4095"),
        (two_labels(1, 2), "a largest value of 2"),
        (two_labels(127, 255), "areas of 127 besides 255"),
        (two_labels(1, 255), "areas of 1 besides 255"),
        (two_labels(300, 65535, np.uint16), "areas of 300 besides 65535"),
        (bordered(), "areas of 1 besides 255"),
        (cv2.merge([region() * np.uint8(v) for v in (0, 0, 255)]), "in colours"),
        (cv2.merge([noise()] * 3 + [region() * np.uint8(255)]), "varies in colour and in alpha"),
    ],
)
def test_what_is_no_mask_of_one_region_is_refused(tmp_path: Path, pixels: Pixels, named: str) -> None:
    with pytest.raises(RejectedFilm, match=named):
        mask(saved(tmp_path, pixels))


@settings(max_examples=150, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    hnp.arrays(bool, hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=12)),
    st.sampled_from(MASKS),
    st.sampled_from([1, 3, 4]),
)
def test_any_region_comes_back(
    tmp_path: Path, shape: npt.NDArray[np.bool_], kind: tuple[type[np.unsignedinteger], int], channels: int
) -> None:
    depth, value = kind
    grey = shape.astype(depth) * depth(value)
    layers = [grey] * min(channels, 3) + [np.full(grey.shape, 255, depth)] * (channels == 4)
    assert np.array_equal(mask(saved(tmp_path, grey if channels == 1 else cv2.merge(layers))), shape)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.sampled_from([np.uint8, np.uint16]).flatmap(lambda d: hnp.arrays(d, (4, 5))))
def test_any_grey_film_is_its_values_or_one_value(tmp_path: Path, pixels: Pixels) -> None:
    path = saved(tmp_path, pixels)
    if pixels.min() == pixels.max():
        with pytest.raises(RejectedFilm):
            film(path)
        return
    found, _ = film(path)
    low, high = (0, 255) if pixels.dtype == np.uint8 else (int(pixels.min()), int(pixels.max()))
    assert np.array_equal(found, np.rint((pixels.astype(int) - low) / (high - low) * 255))


def bomb(side: int) -> bytes:
    """A PNG of zeros, a thousandth of its inflated size."""
    packer, row = zlib.compressobj(9), bytes(side + 1)
    content = b"".join(packer.compress(row) for _ in range(side)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 8, 0, 0, 0, 0)

    def chunk(kind: bytes, body: bytes) -> bytes:
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", content) + chunk(b"IEND", b"")


def test_size_is_judged_before_decoding(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    jpeg = io.BytesIO()
    Image.new("L", (3000, 2000), 9).save(jpeg, "JPEG")
    (tmp_path / "a.png").write_bytes(bomb(2000))
    (tmp_path / "a.jpg").write_bytes(jpeg.getvalue())
    monkeypatch.setattr(cv2, "imdecode", lambda *_: pytest.fail("decoded"))
    for name, reader in itertools.product(("a.png", "a.jpg"), (read_image_film, read_image_mask)):
        with pytest.raises(RejectedFilm, match=r"are more than 3999999; pass --max-pixels to accept it"):
            reader(tmp_path / name, 3_999_999)


@pytest.mark.parametrize("content", [b"", b"\x89PNG\r\n\x1a\n", b"\xff\xd8\xff", b"GIF89a", b"not an image"])
def test_what_is_no_image_is_refused(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.png").write_bytes(content)
    reason = "not a readable PNG or JPEG image" if content else "the image file is empty"
    with pytest.raises(RejectedFilm, match=reason):
        film(tmp_path / "a.png")


def test_a_damaged_png_is_refused_without_a_word_of_the_decoder(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    whole = saved(tmp_path, noise()).read_bytes()
    for content in (*(whole[:-left] for left in (1, 4, 12, 20, 700)), whole[:900] + b"?" + whole[901:]):
        (tmp_path / "a.png").write_bytes(content)
        with pytest.raises(RejectedFilm, match="damaged image file; export it again"):
            film(tmp_path / "a.png")
    (tmp_path / "a.png").write_bytes(whole + b"behind the end")
    assert np.array_equal(film(tmp_path / "a.png")[0], noise())
    assert capfd.readouterr() == ("", "")


@pytest.mark.parametrize("channels", [0, 1, 3, 4])
@pytest.mark.parametrize("depth", [np.uint8, np.uint16])
def test_an_array_is_a_film_like_a_file_of_its_pixels(
    tmp_path: Path, channels: int, depth: type[np.unsignedinteger]
) -> None:
    values = np.random.default_rng(3).integers(0, np.iinfo(depth).max, (40, 50, 3), endpoint=True).astype(depth)
    opaque = np.full((40, 50, 1), np.iinfo(depth).max, depth)
    array = {0: values[..., 0], 1: values[..., :1], 3: values, 4: np.concatenate([values, opaque], axis=2)}[channels]
    in_file = array if channels < 3 else np.ascontiguousarray(array[..., [2, 1, 0, 3][:channels]])  # OpenCV writes BGR
    expected, warnings = film(saved(tmp_path, in_file))
    found, said = film_of_array(array, LIMIT)
    assert np.array_equal(found, expected) and said == warnings and bool(said) == (channels > 1)


@pytest.mark.parametrize(
    ("array", "reason"),
    [
        (np.zeros((9, 9), np.int16), "its values are int16; give grey values as uint8 or uint16"),
        (np.zeros((9, 9, 2), np.uint8), r"its shape is \(9, 9, 2\); give"),
        (np.zeros(9, np.uint8), r"its shape is \(9,\)"),
        (np.zeros((9, 0), np.uint8), r"its shape is \(9, 0\)"),
        (np.zeros((101, 100), np.uint8), "its 10100 values are more than 10000"),
        (np.ones((9, 9), np.uint8), "all its pixels have one value"),
        (np.random.default_rng(0).integers(0, 9, (9, 9, 4), np.uint8), "its alpha channel varies"),
    ],
)
def test_an_array_that_is_no_film_is_refused(array: Pixels, reason: str) -> None:
    with pytest.raises(RejectedFilm, match=reason):
        film_of_array(array, LIMIT)


@settings(max_examples=100, suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
@given(st.sampled_from([".png", ".jpg"]), st.data())
def test_damage_of_any_kind_is_refused_or_read(tmp_path: Path, suffix: str, data: st.DataObject) -> None:
    content = bytearray(cv2.imencode(suffix, noise())[1].tobytes())
    for _ in range(data.draw(st.integers(0, 3))):
        content[data.draw(st.integers(0, len(content) - 1))] = data.draw(st.integers(0, 255))
    path = tmp_path / f"xylophone{suffix}"
    path.write_bytes(content[: data.draw(st.integers(0, len(content)))])
    for reader in (read_image_film, read_image_mask):
        try:
            found, _ = reader(path, LIMIT)
        except RejectedFilm as reason:
            assert "xylophone" not in str(reason) and "opencv" not in str(reason).lower()
        else:
            assert found.dtype == np.uint8 and found.ndim == 2


def test_reasons_never_name_the_file(tmp_path: Path) -> None:
    with pytest.raises(RejectedFilm) as reason:
        film(tmp_path / "xylophone.png")
    assert "xylophone" not in str(reason.value) and "No such file" in str(reason.value)


def built(tmp_path: Path, codec: str, **options: Any) -> Shards:
    """Two films with masks, one of which covers 61 % of its film."""
    large = np.zeros((40, 50), np.uint8)
    large.reshape(-1)[:1220] = 255
    for number, pixels in enumerate((region() * np.uint8(255), large)):
        for kind, content in (("films", noise() ^ np.uint8(number * 85)), ("masks", pixels)):
            (tmp_path / kind).mkdir(exist_ok=True)
            assert cv2.imwrite(str(tmp_path / kind / f"film{number}.png"), content)
    sources = find_sources(FilmFolders(images=[tmp_path / "films"]), LabelFiles(masks=tmp_path / "masks"))
    build(sources, tmp_path / "out", BuildOptions(image_size=64, folds=2, codec=codec, **options), b"a salt for tests")
    return Shards(tmp_path / "out")


@pytest.mark.parametrize("codec", ["png", "jpeg"])
def test_large_masks_are_warned_of(tmp_path: Path, codec: str) -> None:
    shards = built(tmp_path, codec)
    doubt = "its mask covers more than 60% of the film: is it inverted?"
    assert [shards.warnings(row) for row in range(2)] == [[], [doubt]]
    assert shards.manifest["counts"]["warnings"][doubt] == 1
    assert verify(shards.folder) == []


def test_strict_build_rejects_films_with_warnings(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="1 film"):
        built(tmp_path, "png", strict=True)
    (row,) = read_list(tmp_path / "out" / REJECTED)
    assert row[0] == "film1" and row[2].endswith("is it inverted?; a film with a warning is rejected by --strict")
