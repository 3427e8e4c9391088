"""Relative run-length encoding of masks, as defined by the SIIM-ACR competition.

A string contains pairs `skip length`: skip pixels after the previous run, then set a run of length pixels. The mask is
flattened column-major (top to bottom, then left to right). `-1` is an empty mask.
"""

import re
from collections.abc import Iterable

import cv2
import numpy as np

from shards.arrays import Integers, Mask, Numbers
from shards.errors import InputError

EMPTY = "-1"
_NUMBER = re.compile(r"[+-]?[0-9]{1,18}")


def parse(rle: str) -> Integers:
    """Return the run boundaries of a string as int64 of shape (runs, 2): start and end (exclusive), flattened.

    Raises InputError for an odd count, a token that is not a whole number, a negative skip, and a length below 1.
    """
    text = rle.strip()
    if text == EMPTY:
        return np.zeros((0, 2), np.int64)
    tokens = text.split()
    if not tokens:
        raise InputError("empty RLE string: write -1 for a film without a mask")
    wrong = next((token for token in tokens if not _NUMBER.fullmatch(token)), None)
    if wrong is not None:
        raise InputError(f"RLE token {wrong[:40]!r} is not a whole number below 10^18")
    numbers = np.array(tokens, dtype=np.int64)
    if len(numbers) % 2:
        raise InputError(f"RLE has an odd count of numbers ({len(numbers)}): pairs 'skip length' are expected")
    if (numbers[0::2] < 0).any():
        raise InputError(f"RLE has a negative skip ({numbers[0::2].min()})")
    if (numbers[1::2] < 1).any():
        raise InputError(f"RLE has a run length below 1 ({numbers[1::2].min()})")
    if numbers.astype(np.float64).sum() >= 2**62:
        raise InputError("RLE numbers add up past any image")
    return np.cumsum(numbers).reshape(-1, 2)


def decode(rle: str, height: int, width: int) -> Mask:
    """Return the mask (height, width) of a string.

    Raises InputError as `parse` does, and for a run that ends after the last pixel.
    """
    return decode_union([rle], height, width)


def decode_union(rles: Iterable[str], height: int, width: int) -> Mask:
    """Return the union of several strings as a mask (height, width). Raises InputError as `decode` does."""
    runs = [run for rle in rles for run in parse(rle).tolist()]
    if not runs:  # most films have no mask: no pixel is touched
        return np.zeros((height, width), np.uint8)
    flat = np.zeros(height * width, np.uint8)
    for start, end in runs:
        if end > flat.size:
            raise InputError(f"RLE runs to pixel {end} of a {height}x{width} grid with {flat.size} pixels")
        flat[start:end] = 1
    return np.asarray(cv2.transpose(flat.reshape(width, height)), np.uint8)


def encode(mask: Numbers) -> str:
    """Return the string of a mask (height, width). Pixels other than 0 are set."""
    if mask.ndim != 2:
        raise InputError(f"a mask has two dimensions, not shape {mask.shape}")
    if not mask.any():
        return EMPTY
    flat = cv2.transpose((mask != 0).view(np.uint8)).reshape(-1)
    edges = np.flatnonzero(flat[1:] != flat[:-1]) + 1
    first = [0] if flat.size and flat[0] else []
    last = [flat.size] if flat.size and flat[-1] else []
    bounds = np.concatenate([first, edges, last]).astype(np.int64)
    return " ".join(map(str, np.diff(bounds, prepend=0).tolist()))
