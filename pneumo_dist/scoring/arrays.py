"""Names for the arrays that scores are computed from, by what their elements mean."""

import numpy as np
import numpy.typing as npt

Counts = npt.NDArray[np.int64]
Flags = npt.NDArray[np.bool_]
Names = npt.NDArray[np.str_]
# A probability map in levels of 1/255, or a mask of 0 and 1.
Map = npt.NDArray[np.uint8]
