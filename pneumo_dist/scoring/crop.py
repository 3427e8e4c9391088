"""The part of a mask that is worth looking at: most masks are empty, and the others cover a small part of the film."""

import cv2

from pneumo_dist.scoring.arrays import Map


def occupied(mask: Map) -> tuple[slice, slice] | None:
    """Return the rows and columns that hold all pixels of a mask other than 0; None for an empty mask.

    Components of these rows and columns alone have the numbers that they have in the whole mask.
    """
    left, top, width, height = cv2.boundingRect(mask)
    if not width:
        return None
    # OpenCV numbers components by the first of their blocks of 2 x 2 pixels.
    return slice(top & ~1, top + height), slice(left & ~1, left + width)
