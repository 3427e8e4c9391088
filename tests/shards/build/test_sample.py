"""Films with pixels that are not square: stored with square pixels, labelled and predicted on the file's grid."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
from film_files import write_film
from images import decode

from pneumo_dist.scoring.masks import label_map
from shards.build.build import build
from shards.build.films import FilmFolders, LabelFiles
from shards.build.options import BuildOptions
from shards.build.sources import find_sources
from shards.dataset import rle
from shards.dataset.show import stored_content
from shards.dataset.table import Shards
from shards.dataset.verify import verify

ROWS, COLUMNS = 120, 200
WARNING = "its pixels are not square: resampled to square ones"


def ellipse(rows: int, columns: int) -> Any:
    """The same ellipse on any grid: in the centre, half as high and a third as wide as the film."""
    y, x = np.mgrid[:rows, :columns]
    y, x = (y + 0.5) / rows - 0.5, (x + 0.5) / columns - 0.5
    return ((y / 0.25) ** 2 + (x / 0.17) ** 2 <= 1).astype(np.uint8)


def built(folder: Path, codec: str, **tags: Any) -> Shards:
    """A film of 120 x 200 pixels, an ellipse on a slope, with the ellipse as its label."""
    mask = ellipse(ROWS, COLUMNS)
    slope = np.linspace(20, 90, ROWS * COLUMNS).reshape(ROWS, COLUMNS).astype(np.uint8)
    for number in range(2):
        write_film(
            folder / f"films/{number}.dcm", slope + mask * np.uint8(100 + 9 * number), PatientID=f"P{number}", **tags
        )
    (folder / "labels.csv").write_text("".join(f"{number},{rle.encode(mask)}\n" for number in range(2)))
    sources = find_sources(FilmFolders(dicom=[folder / "films"]), LabelFiles(folder / "labels.csv"))
    options = BuildOptions(image_size=256, folds=2, codec=codec, duplicate_distance=None)
    build(sources, folder / "out", options, b"a salt for the tests only")
    return Shards(folder / "out")


@pytest.mark.parametrize("codec", ["png", "jpeg"])
@pytest.mark.parametrize(
    ("tags", "shape"),
    [
        ({"PixelSpacing": [0.4, 0.2]}, (240, 200)),
        ({"ImagerPixelSpacing": [0.1, 0.2]}, (120, 400)),
        ({"PixelAspectRatio": [3, 2]}, (180, 200)),
        ({"PixelAspectRatio": [1, 1]}, (120, 200)),
    ],
)
def test_film_is_stored_as_it_looks_and_its_label_and_maps_keep_their_grid(
    tmp_path: Path, codec: str, tags: dict[str, Any], shape: tuple[int, int]
) -> None:
    shards = built(tmp_path, codec, **tags)
    assert verify(shards.folder) == []
    is_square = shape == (ROWS, COLUMNS)
    assert shards.warnings(0) == ([] if is_square else [WARNING])
    grid = shards.grid(0)
    assert (grid.height, grid.width) == (ROWS, COLUMNS)
    content = stored_content(shards, 0)
    scale = 1 if codec == "jpeg" else 256 / max(shape)
    assert content.shape == tuple(round(side * scale) for side in shape)
    looks = ellipse(*content.shape)
    edge = np.ones((9, 9), np.uint8)
    assert content[cv2.erode(looks, edge) == 1].min() > content[cv2.dilate(looks, edge) == 0].max()
    mask = decode(shards.read(0, "mask"))
    inside = mask if codec == "jpeg" else mask[grid.padding.top : 256 - grid.padding.bottom]
    inside = inside if codec == "jpeg" else inside[:, grid.padding.left : 256 - grid.padding.right]
    assert np.mean((inside > 0) != looks) < 0.01
    side = 256
    square = np.zeros((side, side), np.uint8)
    fitted = 256 / max(shape)
    rows, columns = (round(edge * fitted) for edge in shape)
    top, left = (side - rows) // 2, (side - columns) // 2
    square[top : top + rows, left : left + columns] = 255 * ellipse(rows, columns)
    assert np.mean((label_map(square, grid) > 127) != ellipse(ROWS, COLUMNS)) < 0.01
