"""Checks the rows of a sample table, so that readers need not check a value again."""

from collections.abc import Collection, Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from shards.arrays import Booleans, Integers
from shards.console import is_one_line
from shards.dataset.keys import LONGEST_KEY

# A "duplicate" is a film without a label that looks like another film of the dataset; nothing reads it.
SPLITS = ("train", "always_train", "holdout", "test", "unlabelled", "duplicate")
LABELLED_SPLITS = ("train", "always_train", "holdout")
LABELS = ("has_mask", "mask_area", "rle", "mask_offset", "mask_size", "mask_crc32")
LONGEST_SIDE = 65_535
MOST_PIXELS = 2**30
MOST_FOLDS = 10_000
_TEXTS = ("image_id", "group", "film_group", "view", "sex", "spacing_tag")
LONGEST_TEXT = 1000
# Maximum size of a member, and of a tar.
MOST_BYTES, LARGEST_TAR = 2**31, 2**60
_RANGES = {
    **{f"{what}_{side}": (1, LONGEST_SIDE) for what in ("label", "image") for side in ("height", "width")},
    **{f"pad_{side}": (0, LONGEST_SIDE) for side in ("top", "bottom", "left", "right")},
    **{f"{member}_offset": (0, LARGEST_TAR) for member in ("image", "mask", "json")},
    **{f"{member}_size": (1, MOST_BYTES) for member in ("image", "mask", "json")},
    **{f"{member}_crc32": (0, 2**32 - 1) for member in ("image", "mask", "json")},
    "fold": (0, MOST_FOLDS - 1),
    "mask_area": (0, MOST_PIXELS),
}


def table_faults(table: pa.Table, tars: Collection[str], optional: Collection[str]) -> Iterator[str]:
    """Yield a line for each kind of fault, with the first row that has it. `tars` are those in the manifest."""
    for name in table.schema.names:
        if name not in optional and table[name].null_count:
            yield f"{name} is missing in {table[name].null_count} rows"
            return
    keys = table["key"].to_pylist()
    for key in keys:
        if not is_safe_key(key):
            yield f"{key!r} is not a safe key (letters, digits, _ and - only)"
    if len(set(keys)) != len(keys):
        yield "a key occurs twice"
    for name in _TEXTS:
        # `unique`: few different values, except for ids
        if not all(text is None or is_plain(text) for text in pc.unique(table[name]).to_pylist()):
            yield f"{name} has a line break, a control character or more than {LONGEST_TEXT} characters"
    if pc.all(pc.match_substring_regex(table["perceptual_hash"], "^[0-9a-f]{64}$")).as_py() is False:
        yield "a perceptual_hash does not have 64 hexadecimal digits"
    for name, (least, most) in _RANGES.items():
        bounds = pc.min_max(table[name]).as_py()
        if bounds["min"] is not None and not least <= bounds["min"] <= bounds["max"] <= most:
            yield f"{name} is outside {least} to {most}"
            return
    for name in ("spacing_row", "spacing_column"):
        if pc.all(pc.is_finite(table[name])).as_py() is False:
            yield f"{name} is not a number"
    yield from _first(keys, _faulty_rows(table, tars))


def is_safe_key(key: str) -> bool:
    """Return whether a key can name the files of a sample: letters, digits, _ and - only."""
    return key.isascii() and 0 < len(key) <= LONGEST_KEY and key.replace("_", "a").replace("-", "a").isalnum()


def is_plain(text: str) -> bool:
    """Return whether a text can be printed and written to a table: one line of limited length."""
    return len(text) <= LONGEST_TEXT and is_one_line(text)


def _faulty_rows(table: pa.Table, tars: Collection[str]) -> Iterator[tuple[Booleans, str]]:
    """Yield the rows that have a fault, as truths, and its description."""

    def integers(name: str) -> Integers:
        return np.asarray(table[name].fill_null(-1).to_numpy(), np.int64)

    splits = np.array(table["split"].to_pylist(), object)
    yield ~np.isin(splits, SPLITS), f"a split other than {', '.join(SPLITS)}"
    yield ~np.isin(np.array(table["shard"].to_pylist(), object), list(tars)), "a shard that the manifest does not list"
    yield (
        (splits == "train") != (integers("fold") >= 0),
        "a fold outside split train, or split train without a fold",
    )
    labelled = np.isin(splits, LABELLED_SPLITS)
    for name in ("group", *LABELS):
        known = np.asarray(table[name].is_valid().to_numpy())
        yield labelled & ~known, f"no {name}"
    pixels = integers("label_height") * integers("label_width")
    yield pixels > MOST_PIXELS, f"a label grid of more than {MOST_PIXELS} pixels"
    area = integers("mask_area")
    yield labelled & (area > pixels), "a mask larger than its grid"
    positive = np.asarray(table["has_mask"].fill_null(False).to_numpy(zero_copy_only=False))
    yield labelled & (positive != (area > 0)), "a has_mask that contradicts its mask_area"
    empty = np.asarray(pc.equal(table["rle"], "-1").fill_null(True).to_numpy())
    yield labelled & (empty != (area == 0)), "an RLE that contradicts its mask_area"
    yield (
        integers("image_height") * integers("image_width") > MOST_PIXELS,
        f"an image of more than {MOST_PIXELS} pixels",
    )
    side = np.maximum(integers("image_height"), integers("image_width"))
    for first, second in (("top", "bottom"), ("left", "right")):
        padding = integers(f"pad_{first}") + integers(f"pad_{second}")
        yield padding >= side, "no pixel between its paddings"


def _first(keys: Sequence[str], faults: Iterator[tuple[Booleans, str]]) -> Iterator[str]:
    for rows, text in faults:
        if rows.any():
            yield f"{keys[int(rows.argmax())]} has {text}"
