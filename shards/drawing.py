"""Drawing films: mask outlines, contact sheets, and PNG and JPEG files. Pictures are RGB uint8."""

from collections.abc import Sequence

import cv2
import numpy as np
import numpy.typing as npt

from shards.arrays import Image, Mask
from shards.palette import Colour

Picture = Image

Points = npt.NDArray[np.float64]

# Lengths of a dash and of a gap, in widths of the line.
DASH, GAP = 6.0, 4.0
# Fixed-point coordinates of polylines, in 1/16 pixel.
_SHIFT = 4


def encode_image(image: Image, extension: str = ".png", settings: Sequence[int] = ()) -> bytes:
    """Encode a grey (height, width) or RGB (height, width, 3) image. `settings` are OpenCV's write parameters."""
    in_order = image if image.ndim == 2 else cv2.cvtColor(image, cv2.COLOR_RGB2BGR)
    done, encoded = cv2.imencode(extension, in_order, settings)
    assert done
    return bytes(encoded.tobytes())


def fitted(film: Image, side: int) -> Image:
    """Resize a grey film to `side` pixels along its longer edge, by area averaging or cubic interpolation."""
    scale = side / max(film.shape)
    height, width = (max(1, round(edge * scale)) for edge in film.shape)
    kind = cv2.INTER_AREA if scale < 1 else cv2.INTER_CUBIC
    return np.asarray(cv2.resize(film, (width, height), interpolation=kind), np.uint8)


def outline(picture: Picture, mask: Mask, colour: Colour, width: int, is_dashed: bool = False) -> None:
    """Draw the outlines of a mask on a picture of any size, anti-aliased. The mask covers the whole picture.

    Outlines of less than a pixel, which OpenCV would hardly draw, become circles.
    """
    # Contours run through pixel centres.
    factor = np.array([picture.shape[1] / mask.shape[1], picture.shape[0] / mask.shape[0]])
    lines = [(contour[:, 0] + 0.5) * factor - 0.5 for contour in _contours(mask)]
    for dot in (line for line in lines if np.ptp(line, axis=0).max() < 1):
        centre = np.rint(dot.mean(0) * 2**_SHIFT).astype(int).tolist()
        cv2.circle(picture, centre, round((1.5 + width) * 2**_SHIFT), colour, width, cv2.LINE_AA, _SHIFT)
    if is_dashed:
        lines = [dash for line in lines for dash in dashes(line, DASH * width, GAP * width)]
    points = [np.rint(line[:, None] * 2**_SHIFT).astype(np.int32) for line in lines]
    cv2.polylines(picture, points, not is_dashed, colour, width, cv2.LINE_AA, _SHIFT)


def dashes(line: Points, dash: float, gap: float) -> list[Points]:
    """Cut a closed line of points (n, 2) into dashes, each float64 (k, 2) with points at most a pixel apart.

    Gaps are stretched so that the line ends with one. A line too short for two dashes is one dash all around.
    """
    closed = np.concatenate([line, line[:1]])
    along = np.concatenate([[0.0], np.hypot(*np.diff(closed, axis=0).T).cumsum()])
    length = float(along[-1])
    count = int(length // (dash + gap))
    ends = [(0.0, length)] if count < 2 else [(k * length / count, k * length / count + dash) for k in range(count)]
    found = []
    for start, end in ends:
        places = np.linspace(start, end, int(np.ceil(end - start)) + 1)
        found.append(np.stack([np.interp(places, along, closed[:, axis]) for axis in (0, 1)], axis=1))
    return found


def outline_pixels(picture: Picture, mask: Mask, colour: Colour, width: int = 1) -> None:
    """Draw the outlines of a mask on a picture of the same size, in whole pixels."""
    cv2.drawContours(picture, _contours(mask), -1, colour, width)


def _contours(mask: Mask) -> Sequence[npt.NDArray[np.int32]]:
    contours, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_CCOMP, cv2.CHAIN_APPROX_NONE)
    return contours  # type: ignore[return-value]


def below(pictures: Sequence[Picture], strips: Sequence[Picture], background: int) -> list[Picture]:
    """Put a strip of the same width below each picture, and fill the strips up to one height."""
    tallest = max((len(strip) for strip in strips), default=0)
    return [
        np.vstack([picture, strip, np.full((tallest - len(strip), *strip.shape[1:]), background, np.uint8)])
        for picture, strip in zip(pictures, strips, strict=True)
    ]


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
