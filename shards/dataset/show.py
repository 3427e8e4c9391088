"""Contact sheets of a dataset: films with their masks outlined."""

from collections.abc import Sequence

import cv2
import numpy as np

from shards.arrays import Image
from shards.dataset.table import Shards
from shards.drawing import Picture, below, centred, fitted, tiled
from shards.errors import InputError
from shards.overlay import LABEL_LINE, margin, outlined
from shards.palette import BACKGROUND

GAP = 4
SMALLEST_CELL, SMALLEST_WITH_ID = 32, 128


def stored_content(shards: Shards, index: int) -> Image:
    """Return the stored film without its padding, uint8 of shape (height, width).

    A PNG member is a padded square. A JPEG member is the film only; its padding in the table is that of a square around
    it. Raises CorruptSample for damaged bytes, and InputError for bytes that are not an image of the table's size.
    """
    encoded = np.frombuffer(shards.read(index, "image"), np.uint8)
    image = cv2.imdecode(encoded, cv2.IMREAD_GRAYSCALE | cv2.IMREAD_IGNORE_ORIENTATION)
    expected = (int(shards.column("image_height")[index]), int(shards.column("image_width")[index]))
    if image is None or image.shape != expected:
        where = f"{shards.folder / str(shards.column('shard')[index])}: {shards.column('key')[index]}"
        raise InputError(f"{where} is not an image of {expected[1]}x{expected[0]} pixels; build the shards again")
    grid = shards.grid(index)
    if image.shape == (grid.stored, grid.stored):
        pad = grid.padding
        image = image[pad.top : grid.stored - pad.bottom, pad.left : grid.stored - pad.right]
    return np.asarray(image, np.uint8)


def choose(shards: Shards, count: int, seed: int, positives_only: bool = False) -> list[int]:
    """Return up to `count` rows, spread over the folds (and other splits) and over films with and without a mask.

    It is a pure function of its arguments, and keeps the films of a fold together. Raises InputError if there is
    nothing to show.
    """
    if count < 1:
        raise InputError(f"count {count}: give at least 1 film to show")
    splits, folds = shards.column("split"), shards.column("fold")
    has_mask = shards.column("has_mask").astype(bool)
    parts = sorted(set(zip(splits.tolist(), folds.tolist(), strict=True)), key=lambda part: (part[0] != "train", *part))
    rng = np.random.default_rng(seed)
    first: list[list[int]] = []
    second: list[list[int]] = []
    for number, (split, fold) in enumerate(parts):
        inside = (splits == split) & (folds == fold)
        classes = [np.flatnonzero(inside & has_mask), np.flatnonzero(inside & ~has_mask & (not positives_only))]
        # The first class alternates, so that even few films show every fold and both classes.
        leading = [films for films in (classes if number % 2 == 0 else classes[::-1]) if len(films)]
        for queues, films in zip((first, second), leading, strict=False):
            queues.append(rng.permutation(films)[:count].tolist())
    if not first:
        raise InputError(f"{shards.folder}: no {'positive ' if positives_only else ''}films to show")
    dealt = [queue[turn] for turn in range(count) for queue in (*first, *second) if turn < len(queue)]
    order = {part: number for number, part in enumerate(parts)}
    return sorted(dealt[:count], key=lambda film: (order[splits[film], folds[film]], not has_mask[film], film))


def contact_sheet(shards: Shards, indices: Sequence[int], columns: int = 6, cell: int = 256) -> Picture:
    """Return a picture of films in rows of `columns`, each with the outline of its label and a caption.

    A film is centred in a cell of `cell` pixels, without padding and with its aspect ratio. The caption has its image
    id (in cells of at least 128 pixels), its fold or split, its view, and the mask area in label-grid pixels. Raises
    InputError for no films, fewer than one column, and cells below 32 pixels.
    """
    if not len(indices):
        raise InputError(f"{shards.folder}: no films to show")
    if columns < 1:
        raise InputError(f"columns {columns}: give at least 1")
    if cell < SMALLEST_CELL:
        raise InputError(f"cell {cell}: give at least {SMALLEST_CELL} pixels")
    pictures = [centred(_outlined(shards, index, cell), cell, BACKGROUND) for index in indices]
    strips = [_strip(shards, index, cell) for index in indices]
    return tiled(below(pictures, strips, BACKGROUND), min(columns, len(indices)), GAP, BACKGROUND)


def caption(shards: Shards, index: int) -> str:
    """Return a caption such as `fold 2  PA  8,630 px`, with an exclamation mark if the film has warnings."""
    split = str(shards.column("split")[index])
    area = int(shards.column("mask_area")[index])
    subset = f"fold {shards.column('fold')[index]}" if split == "train" else split.replace("_", " ")
    label = "no label" if area < 0 else f"{area:,} px" if area else "no mask"
    mark = "!" if shards.warnings(index) else ""
    return "  ".join(part for part in (subset, str(shards.column("view")[index]), label, mark) if part)


def _outlined(shards: Shards, index: int, cell: int) -> Picture:
    label = shards.label(index) if shards.column("rle")[index] is not None else None
    return outlined(fitted(stored_content(shards, index), cell), label, None)


def _strip(shards: Shards, index: int, cell: int) -> Picture:
    ids = [shards.text(index, "image_id")] if cell >= SMALLEST_WITH_ID else []
    legend = [LABEL_LINE] if shards.column("mask_area")[index] > 0 else []
    return margin(cell, [*ids, caption(shards, index)], legend)
