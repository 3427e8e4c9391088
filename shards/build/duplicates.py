"""Near-duplicate films: a perceptual hash, the pairs that are close, and the patients that they join.

The same film comes twice in real archives: sent again, compressed again, exported in another size. Two copies in two
folds are a leak, so their patients become one group before the films are folded.

The default distance was measured. Copies of 12 real chest films saved again as JPEG (quality 50 to 95), at a half or a
quarter of their size, 20 levels brighter or darker, with 20 % more or less contrast or a gamma of 0.8 or 1.25 differ
from them in at most 7 of the 256 bits, two distinct films of the 12 in at least 47 (median 87). Synthetic films are
more alike: of two million pairs none lies within 7 and two lie within 10; their copies stay within 7 too, but for some
that the change clips to white. Copies cropped by 1 % lie about 12 away and copies cropped by 2 % about 20, where
strangers of a large archive lie as well: those are not looked for.
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
# Black frames, calibration plates and lone markers have almost the same few bits set. A chest film has 75 to 130.
FEWEST_BITS = 32
# Coding noise moves an averaged cell by less than half a grey level; a share of the contrast survives a change of it.
NOISE_LEVEL, CONTRAST_SHARE = 0.5, 0.05
# Side from which a film is shrunk by whole pixels first: four times as fast, and the hash's cells stay exact enough.
FIRST_SIDE = 128
# A band is compared as one 64-bit number.
FEWEST_BANDS = BITS // 64

Words = npt.NDArray[np.uint64]


def perceptual_hash(image: Image) -> bytes:
    """Return the 256-bit difference hash (32 bytes) of a film, uint8 of shape (height, width), without its padding.

    The film is averaged into 16 rows of 17 cells; a bit is set where a cell is clearly brighter than its left
    neighbour. JPEG, resizing and small changes of brightness and contrast keep all but a few bits.
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

    Hashes with fewer than 32 bits set, or fewer than 32 unset, show no film to compare and are in no pair. Exact:
    two hashes within the distance are equal in one of `distance` + 1 bands of bits, and only hashes with an equal
    band are compared, so the time grows with the films and with how many are alike, not with all pairs.
    Raises ValueError for a hash of another length or a distance outside 0 to 63.
    """
    if not 0 <= distance < BITS // 4:
        raise ValueError(f"distance {distance}: give 0 to {BITS // 4 - 1} bits")
    if any(len(content) != BITS // 8 for content in hashes):
        raise ValueError(f"a perceptual hash has {BITS // 8} bytes")
    words = np.frombuffer(b"".join(hashes), np.uint64).reshape(-1, BITS // 64)
    ones = np.bitwise_count(words).sum(axis=1, dtype=np.int64)
    shown = np.flatnonzero((ones >= FEWEST_BITS) & (ones <= BITS - FEWEST_BITS))
    found = [(shown[first], shown[second]) for first, second in _close_pairs(words[shown], distance)]
    if not found:
        return []
    left, right = (np.concatenate(side) for side in zip(*found, strict=True))
    return sorted(zip(left.tolist(), right.tolist(), strict=True))


def join_groups(groups: Sequence[str], pairs: Sequence[tuple[int, int]]) -> list[str]:
    """Return a group per film: groups that a pair of films connects, directly or over others, become one.

    A joined group takes the smallest of its names. `pairs` are positions in `groups`.
    """
    names, codes = np.unique(np.asarray(groups, dtype=object), return_inverse=True)
    ends = codes[np.asarray(pairs, np.int64).reshape(-1, 2)]
    edges = coo_array((np.ones(len(ends), bool), (ends[:, 0], ends[:, 1])), shape=(len(names), len(names)))
    _, component = connected_components(edges, directed=False)
    # The names are in order: a component's first is its smallest.
    _, first = np.unique(component, return_index=True)
    return [str(names[first[component[code]]]) for code in codes]


def _close_pairs(words: Words, distance: int) -> Iterator[tuple[Integers, Integers]]:
    """Yield arrays of positions left < right in `words` (films, 4); every close pair once."""
    keys = _band_keys(words, max(distance + 1, FEWEST_BANDS))
    for band, key in enumerate(keys):
        order = np.argsort(key, kind="stable")  # films with one key stay in order: left < right
        start = np.arange(len(order) - 1)
        step = 1
        # Equal keys stand side by side: compare each film with its next, second next, ... while the key is the same.
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
    """Cut each hash's bits into bands; return their values, shape (bands, films)."""
    # Neighbouring cells of chest films agree: bits from all over the film tell more films apart than a strip of it.
    bit_order = np.random.default_rng(0).permutation(BITS)
    content = words.view(np.uint8).reshape(len(words), BITS // 8)
    keys = np.zeros((bands, len(words)), np.uint64)
    for key, bits in zip(keys, np.array_split(bit_order, bands), strict=True):
        for bit in bits.tolist():
            key[:] = (key << np.uint64(1)) | ((content[:, bit // 8] >> (bit % 8)) & 1)
    return keys
