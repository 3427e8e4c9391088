"""Finds near-duplicate films by a perceptual hash, and joins the groups of their patients.

Real archives contain films twice: sent again, compressed again, exported in another size. Two copies in different
folds are a leak, so their patients become one group before the films are split into folds.

The default distance was measured on 12 real chest films. Their copies were saved as JPEG (quality 50 to 95), resized
to a half or a quarter, made 20 levels brighter or darker, given 20 % more or less contrast, or a gamma of 0.8 or 1.25.
A copy differs from its film in at most 7 of the 256 bits; two distinct films differ in at least 47 (median 87).
Synthetic films are more similar: of two million pairs, none is within 7 bits and two are within 10. Their copies stay
within 7 too, except some that the change clips to white. Copies cropped by 1 % differ in about 12 bits, copies cropped
by 2 % in about 20. So do strangers in a large archive, which is why cropped copies are not searched for.
"""

from collections.abc import Iterator, Sequence

import cv2
import numpy as np
import numpy.typing as npt
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

from shards.arrays import Image, Integers

ROWS, COLUMNS = 16, 16
BITS = ROWS * COLUMNS
NEAR = 7
# Black frames, calibration plates and lone markers set almost the same few bits. A chest film sets 75 to 130.
FEWEST_BITS = 32
# Coding noise moves an averaged cell by less than half a grey level. A share of the contrast scales with it.
NOISE_LEVEL, CONTRAST_SHARE = 0.5, 0.05
# Larger films are first shrunk by a whole factor to about this side: four times as fast, and exact enough for the hash.
FIRST_SIDE = 128
# A band is compared as one 64-bit number.
FEWEST_BANDS = BITS // 64

Words = npt.NDArray[np.uint64]


def perceptual_hash(image: Image) -> bytes:
    """Return the 256-bit difference hash (32 bytes) of a film (height, width) without padding.

    The film is averaged into 16 rows of 17 cells. A bit is set if a cell is clearly brighter than its left neighbour.
    JPEG, resizing and small changes of brightness and contrast change only a few bits.
    """
    factor = min(image.shape) // FIRST_SIDE
    if factor > 1:
        smaller = (image.shape[1] // factor, image.shape[0] // factor)
        image = np.asarray(cv2.resize(image, smaller, interpolation=cv2.INTER_AREA), np.uint8)
    cells = cv2.resize(image.astype(np.float32), (COLUMNS + 1, ROWS), interpolation=cv2.INTER_AREA)
    threshold = max(NOISE_LEVEL, CONTRAST_SHARE * float(cells.std()))
    return np.packbits(np.diff(cells, axis=1) > threshold).tobytes()


def near_duplicates(hashes: Sequence[bytes], distance: int = NEAR) -> list[tuple[int, int]]:
    """Return all pairs (i, j), i < j and sorted, of hashes that differ in at most `distance` bits.

    Hashes with fewer than 32 bits set, or fewer than 32 unset, are not of chest films, and are in no pair.

    The search is exact. Two hashes within the distance are equal in at least one of `distance` + 1 bands of bits, and
    only hashes with an equal band are compared. So the time grows with the number of films and of similar films, not
    with the number of pairs.

    Raises ValueError for a hash of another length and for a distance outside 0 to 63.
    """
    if not 0 <= distance < BITS // 4:
        raise ValueError(f"distance {distance}: give 0 to {BITS // 4 - 1} bits")
    if any(len(content) != BITS // 8 for content in hashes):
        raise ValueError(f"a perceptual hash has {BITS // 8} bytes")
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, BITS // 64)
    ones = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
    films = np.flatnonzero((ones >= FEWEST_BITS) & (ones <= BITS - FEWEST_BITS))
    pairs = [(films[first], films[second]) for first, second in _close_pairs(words[films], distance)]
    if not pairs:
        return []
    left, right = (np.concatenate(side) for side in zip(*pairs, strict=True))
    return sorted(zip(left.tolist(), right.tolist(), strict=True))


def join_groups(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Join groups that pairs of films connect, directly or through other groups; return a group for each film.

    A joined group takes the smallest of its names. `pairs` are positions in `groups`.
    """
    names, codes = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    ends = codes[np.asarray(pairs, np.int64).reshape(-1, 2)]
    edges = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    _, component = connected_components(edges, directed=False)
    # The names are sorted, so the first name of a component is its smallest.
    _, first = np.unique(component, return_index=True)
    return [str(names[first[component[code]]]) for code in codes]


def _close_pairs(words: Words, distance: int) -> Iterator[tuple[Integers, Integers]]:
    """Yield arrays of positions left < right in `words` (films, 4). Each close pair is yielded once."""
    keys = _band_keys(words, max(distance + 1, FEWEST_BANDS))
    for band, key in enumerate(keys):
        order = np.argsort(key, kind="stable")  # films with one key stay in order: left < right
        start = np.arange(len(order) - 1)
        step = 1
        # Equal keys are adjacent: compare each film with the next, the second next, ... while the key is the same.
        while len(start):
            start = start[key[order[start]] == key[order[start + step]]]
            left, right = order[start], order[start + step]
            close = np.bitwise_count(words[left] ^ words[right]).sum(axis=1, dtype=np.int64) <= distance
            left, right = left[close], right[close]
            new = ~(keys[:band, left] == keys[:band, right]).any(axis=0)
            if new.any():
                yield left[new], right[new]
            step += 1
            start = start[start + step < len(order)]


def _band_keys(words: Words, bands: int) -> Words:
    """Split the bits of each hash into bands; return the value of each, shape (bands, films)."""
    # Neighbouring cells of chest films agree, so bits from all over a film distinguish more films than a strip does.
    bit_order = np.random.default_rng(0).permutation(BITS)
    content = words.view(np.uint8).reshape(len(words), BITS // 8)
    keys = np.zeros((bands, len(words)), np.uint64)
    for key, bits in zip(keys, np.array_split(bit_order, bands), strict=True):
        for bit in bits.tolist():
            key[:] = (key << np.uint64(1)) | ((content[:, bit // 8] >> (bit % 8)) & 1)
    return keys
