"""Decoding of image files in memory, and the texts that are drawn into images."""

from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pytest


def decode(content: bytes, flags: int = cv2.IMREAD_GRAYSCALE) -> npt.NDArray[np.uint8]:
    image = cv2.imdecode(np.frombuffer(content, np.uint8), flags)
    assert image is not None and image.dtype == np.uint8
    return np.asarray(image, np.uint8)


def drawn_texts(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list that gets every text that OpenCV draws from now on."""
    texts: list[str] = []
    draw = cv2.putText

    def noted(strip: Any, text: str, *more: Any) -> Any:
        texts.append(text)
        return draw(strip, text, *more)

    monkeypatch.setattr(cv2, "putText", noted)
    return texts
