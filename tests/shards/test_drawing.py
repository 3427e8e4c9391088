"""Drawing, against the pixels that it must cover."""

import cv2
import numpy as np
import pytest
from images import decode

from shards.drawing import below, centred, dashes, encode_image, fitted, outline, outline_pixels, tiled

RED = (255, 0, 0)


def ring() -> np.ndarray:
    mask = np.zeros((20, 30), np.uint8)
    mask[4:16, 6:24] = 1
    mask[8:12, 10:20] = 0
    return mask


def test_colours_are_rgb_in_the_file() -> None:
    picture = np.full((3, 5, 3), RED, np.uint8)
    read = decode(encode_image(picture), cv2.IMREAD_COLOR_RGB)
    assert np.array_equal(read, picture)


def test_grey_images_and_settings_are_kept() -> None:
    grey = np.arange(12, dtype=np.uint8).reshape(3, 4)
    small = encode_image(grey, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, 5))
    assert np.array_equal(decode(encode_image(grey), cv2.IMREAD_UNCHANGED), grey)
    assert small[:2] == b"\xff\xd8" and len(small) < len(encode_image(grey, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, 100)))


def test_outline_in_pixels_runs_along_components_and_holes() -> None:
    mask, picture = ring(), np.zeros((20, 30, 3), np.uint8)
    outline_pixels(picture, mask, RED)
    drawn = picture[..., 0] > 0
    inside = cv2.erode(mask, cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3)), borderValue=0) == 1
    assert drawn[(mask == 1) & ~inside].all(), "every pixel of the mask that has a neighbour outside"
    assert not drawn[inside].any()
    assert not drawn[:4].any() and not drawn[9:11, 11:19].any()


@pytest.mark.parametrize("scale", [0.5, 1, 3])
def test_outline_covers_the_picture_whatever_its_size(scale: float) -> None:
    mask = ring()
    picture = np.zeros((round(20 * scale), round(30 * scale), 3), np.uint8)
    outline(picture, mask, RED, 1)
    rows, columns = np.nonzero(picture[..., 0] > 128)
    edges = ((rows + 0.5).min() / scale, (rows + 0.5).max() / scale, (columns + 0.5).min() / scale)
    assert edges == pytest.approx((4.5, 15.5, 6.5), abs=0.5 + 0.5 / scale)
    assert picture[..., 1:].max() == 0


@pytest.mark.parametrize("side", [4.0, 40.0, 333.3])
def test_dashes_lie_on_the_line_and_have_equal_gaps(side: float) -> None:
    corners = np.array([[0.0, 0.0], [side, 0.0], [side, side], [0.0, side]])
    found = dashes(corners, 6.0, 4.0)
    count = int(4 * side // 10)
    assert len(found) == (count if count > 1 else 1)
    for number, dash in enumerate(found):
        steps = np.hypot(*np.diff(dash, axis=0).T)
        assert steps.max() <= 1 + 1e-9
        assert ((np.abs(dash) < 1e-9) | (np.abs(dash - side) < 1e-9)).any(1).all(), "on the square"
        start = number * 4 * side / count
        along = [start % side, 0.0] if start < side else None
        assert along is None or dash[0] == pytest.approx(along, abs=1e-9)
    total = 4 * side if count < 2 else 6.0 * count
    assert sum(len(dash) - 1 for dash in found) == pytest.approx(total, abs=len(found))


@pytest.mark.parametrize("is_dashed", [True, False])
def test_a_mask_of_one_pixel_is_seen(is_dashed: bool) -> None:
    mask, picture = np.zeros((90, 90), np.uint8), np.zeros((30, 30, 3), np.uint8)
    mask[46, 52] = 1
    outline(picture, mask, RED, 1, is_dashed)
    rows, columns = np.nonzero(picture[..., 0] > 100)
    assert len(rows) >= 8 and (rows.mean(), columns.mean()) == pytest.approx((15, 17), abs=0.7)


def test_films_are_resized_to_grey_pictures() -> None:
    film = 2 * np.arange(64, dtype=np.uint8).reshape(8, 8)
    small, same, large = fitted(film, 4), fitted(film, 8), fitted(film[:, :4], 16)
    assert np.array_equal(small, film.reshape(4, 2, 4, 2).mean((1, 3)))
    assert np.array_equal(same, film)
    assert large.shape == (16, 8)


def test_strips_are_below_their_pictures_and_of_one_height() -> None:
    pictures = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20)]
    strips = [np.full((height, 3, 3), 90, np.uint8) for height in (1, 3)]
    first, second = below(pictures, strips, 7)
    assert first[:, 0, 0].tolist() == [10, 10, 90, 7, 7] and second[:, 0, 0].tolist() == [20, 20, 90, 90, 90]


def test_cells_are_in_rows_with_gaps() -> None:
    cells = [np.full((2, 3, 3), value, np.uint8) for value in (10, 20, 30)]
    sheet = tiled(cells, columns=2, gap=1, background=7)[..., 0]
    assert sheet.tolist() == [
        [7] * 9,
        *[[7, 10, 10, 10, 7, 20, 20, 20, 7]] * 2,
        [7] * 9,
        *[[7, 30, 30, 30, 7, 7, 7, 7, 7]] * 2,
        [7] * 9,
    ]


def test_picture_is_centred() -> None:
    found = centred(np.full((1, 3, 3), 9, np.uint8), 4, 0)[..., 0]
    assert found.tolist() == [[0] * 4, [9, 9, 9, 0], [0] * 4, [0] * 4]
