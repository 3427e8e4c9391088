"""Decoding of image files in memory."""

import cv2
import numpy as np
import numpy.typing as npt


def decode(content: bytes, flags: int = cv2.IMREAD_GRAYSCALE) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    assert image is not None and image.dtype == np.uint8
    return np.asarray(image, np.uint8)
