"""Array types that several modules share. A docstring says the shape where the name does not."""

from typing import Any

import numpy as np
import numpy.typing as npt

# Grey (height, width) or RGB (height, width, 3).
Image = npt.NDArray[np.uint8]
# (height, width) of 0 and 1.
Mask = npt.NDArray[np.uint8]
# Stored values of a film, of whatever integer type its file has.
PixelValues = npt.NDArray[Any]

Floats = npt.NDArray[np.float64]
Integers = npt.NDArray[np.int64]
Booleans = npt.NDArray[np.bool_]
Texts = npt.NDArray[np.object_]
Numbers = npt.NDArray[np.generic]
