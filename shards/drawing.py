"""Drawing films: mask outlines, contact sheets, colours, and PNG and JPEG files. Pictures are RGB uint8."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from shards.arrays import Image, Mask

Picture = Image
Colour = tuple[int, int, int]

LABEL_COLOUR, PREDICTION_COLOUR = (80, 220, 80), (235, 80, 60)
OUTLINE_COLOUR, TEXT_COLOUR = (255, 200, 0), (225, 225, 225)
BACKGROUND = 24
# Fixed-point coordinates of polylines, in 1/16 pixel.
_SHIFT = 4


def encode_image(image: Image, extension: str = ".png", settings: Sequence[int] = ()) -> bytes:
    """Encode a grey (height, width) or RGB (height, width, 3) image. `settings` are OpenCV's write parameters."""
    in_order = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(extension, in_order, settings)
    assert done
    return bytes(encoded.tobytes())


def fitted(film: Image, width: int, height: int) -> Picture:
    """Resize a grey film to a picture: by area averaging to shrink it, by cubic interpolation to enlarge it."""
    kind = cv2.INTER_AREA if film.shape[0] > height else cv2.INTER_CUBIC
    grey = cv2.resize(film, (width, height), interpolation=kind)
    return np.asarray(cv2.cvtColor(grey, cv2.COLOR_GRAY2RGB), np.uint8)


def outline(picture: Picture, mask: Mask, colour: Colour, width: int) -> None:
    """Draw the outlines of a mask on a picture of any size, anti-aliased. The mask covers the whole picture."""
    # Contours run through pixel centres.
    factor = np.array([picture.shape[1] / mask.shape[1], picture.shape[0] / mask.shape[0]])
    points = [np.rint(((contour + 0.5) * factor - 0.5) * 2**_SHIFT).astype(np.int32) for contour in _contours(mask)]
    cv2.polylines(picture, points, True, colour, width, cv2.LINE_AA, _SHIFT)


def outline_pixels(picture: Picture, mask: Mask, colour: Colour, width: int = 1) -> None:
    """Draw the outlines of a mask on a picture of the same size, in whole pixels."""
    cv2.drawContours(picture, _contours(mask), -1, colour, width)


def _contours(mask: Mask) -> Sequence[npt.NDArray[np.int32]]:
    contours, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return contours  # type: ignore[return-value]


def centred(picture: Picture, side: int, background: int) -> Picture:
    """Centre a picture in a square of `side` pixels."""
    square = np.full((side, side, 3), background, np.uint8)
    top, left = (side - picture.shape[0]) // 2, (side - picture.shape[1]) // 2
    square[top : top + picture.shape[0], left : left + picture.shape[1]] = picture
    return square


def tiled(cells: Sequence[Picture], columns: int, gap: int, background: int) -> Picture:
    """Arrange cells of equal size in rows of `columns`, with a gap of `gap` pixels around each."""
    height, width = cells[0].shape[0] + gap, cells[0].shape[1] + gap
    rows = -(-len(cells) // columns)
    sheet = np.full((rows * height + gap, columns * width + gap, 3), background, np.uint8)
    for index, cell in enumerate(cells):
        top, left = gap + index // columns * height, gap + index % columns * width
        sheet[top : top + cell.shape[0], left : left + cell.shape[1]] = cell
    return sheet
