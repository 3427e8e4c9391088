"""Distances between the boundaries of label and prediction: HD95 and the normalised surface distance.

The conventions are those of L. Maier-Hein, A. Reinke et al., "Metrics reloaded", Nature Methods 2024, and of its code.
"""

import cv2
import numpy as np
from scipy.spatial import KDTree

from pneumo_dist.scoring.arrays import Map
from pneumo_dist.scoring.crop import occupied
from shards.arrays import Floats

# A tolerance of the normalised surface distance, in mm.
TOLERANCE_MM = 2.0
_CROSS = cv2.getStructuringElement(cv2.MORPH_CROSS, (3, 3))


def boundary(mask: Map) -> Map:
    """Return the pixels of a 0/1 mask with one of their four neighbours outside the mask or the array, as 0/1."""
    return mask & ~np.asarray(cv2.erode(mask, _CROSS, borderType=cv2.BORDER_CONSTANT, borderValue=0), np.uint8)


def boundary_distances(truth: Map, mask: Map, spacing: Floats) -> tuple[Floats, Floats]:
    """Return the distances in mm of each boundary pixel of one 0/1 mask from the nearest one of the other, both ways.

    Neither mask may be empty. `spacing` is the distance of rows and of columns in mm.
    """
    one, other = occupied(truth), occupied(mask)
    assert one is not None and other is not None, "an empty mask has no boundary"
    rows, columns = (slice(min(a.start, b.start), max(a.stop, b.stop)) for a, b in zip(one, other, strict=True))
    # All pixels outside the box are outside both masks, so the boundaries in the box are those on the film.
    edges = [boundary(np.ascontiguousarray(each[rows, columns])) for each in (truth, mask)]
    points = [np.argwhere(edge) * spacing for edge in edges]
    # These are the values of scipy's Euclidean distance transform at the boundaries, in a quarter of its time.
    return KDTree(points[1]).query(points[0])[0], KDTree(points[0]).query(points[1])[0]


def boundary_scores(truth: Map, mask: Map, spacing: Floats) -> tuple[float, float]:
    """Return HD95 in mm, and the normalised surface distance at TOLERANCE_MM, of two 0/1 masks with pixels.

    HD95 is the larger of the two directed distances' 95th percentiles. The normalised surface distance of S. Nikolov et
    al., Journal of Medical Internet Research 2021, is the share of all boundary pixels within the tolerance.
    """
    there, back = boundary_distances(truth, mask, spacing)
    near = sum(int(np.count_nonzero(each <= TOLERANCE_MM)) for each in (there, back))
    return float(max(np.percentile(there, 95), np.percentile(back, 95))), near / (len(there) + len(back))
