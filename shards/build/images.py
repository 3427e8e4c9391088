"""Reads PNG and JPEG files as films and masks. Values are checked as stored, and never converted silently.

Films are grey or colour, with 8 or 16 bits. A mask is one region: 0 and the largest value, or an alpha channel.
"""

import io
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from PIL.JpegImagePlugin import JpegImageFile
from PIL.PngImagePlugin import PngImageFile
from pydicom.dataset import Dataset

from shards.arrays import Image, PixelValues
from shards.dicom.grey import luma, to_grey8
from shards.dicom.jpeg import check_jpeg
from shards.errors import RejectedFilm

# Maximum chroma of a grey JPEG.
_GREY_TOLERANCE = 8
# A mask with more values has codec noise or blur; areas below this share of a mask are chance.
_FEW_VALUES = 16
_LABEL_SHARE = 0.01
_EXPECTED = "masks hold 0 and 1, or 0 and 255"
_EXIF_ORIENTATION = 0x112
_JPEG_START = b"\xff\xd8"
# The last chunk of a PNG, with its checksum.
_PNG_END = b"IEND\xaeB`\x82"
TURNED = "its EXIF orientation is not applied: film and mask are taken as they are stored"


@dataclass(frozen=True)
class ImageFile:
    """Decoded pixels, uint8 or uint16: grey (height, width) or RGB (height, width, 3); alpha (height, width) if any.

    A constant alpha channel is left out.
    """

    pixels: PixelValues
    alpha: PixelValues | None
    warnings: tuple[str, ...]

    @property
    def is_grey(self) -> bool:
        return self.pixels.ndim == 2


def read_image_film(path: Path, max_pixels: int) -> tuple[Image, tuple[str, ...]]:
    """Return a film (height, width) from an image file, and its warnings.

    8-bit values are kept; 16-bit values are scaled by their range. Raises RejectedFilm for an image that is not a film.
    """
    return _film_of(_read(path, max_pixels))


def film_of_array(values: PixelValues, max_pixels: int) -> tuple[Image, tuple[str, ...]]:
    """Return a film (height, width) from an array in memory, and its warnings, as from an image file of these pixels.

    Args:
        values: uint8 or uint16, (height, width) or (height, width, channels) with 1, 3 (RGB) or 4 (RGBA) channels.
        max_pixels: Largest number of values.

    Raises:
        RejectedFilm: The array has another shape or type, or is not a film.
    """
    if values.dtype not in (np.uint8, np.uint16):
        raise RejectedFilm(f"its values are {values.dtype}; give grey values as uint8 or uint16")
    if values.ndim == 3 and values.shape[2] == 1:
        values = values[..., 0]
    if values.size == 0 or not (values.ndim == 2 or (values.ndim == 3 and values.shape[2] in (3, 4))):
        raise RejectedFilm(f"its shape is {values.shape}; give (height, width), or (height, width, 3 or 4) for colours")
    if values.size > max_pixels:
        raise RejectedFilm(f"its {values.size} values are more than {max_pixels}; allow more with max_pixels")
    if values.ndim == 2:
        return _film_of(ImageFile(values, None, ()))
    return _film_of(_image_of(np.ascontiguousarray(values[..., [2, 1, 0, 3][: values.shape[2]]]), ()))


def _film_of(image: ImageFile) -> tuple[Image, tuple[str, ...]]:
    if image.alpha is not None:
        raise RejectedFilm("its alpha channel varies; save it as a grey image without transparency")
    warnings = list(image.warnings)
    grey = image.pixels
    if not image.is_grey:
        grey = np.asarray(luma(image.pixels))
        warnings.append("a colour image: its brightness is taken")
    if grey.min() == grey.max():
        raise RejectedFilm("all its pixels have one value; export it again")
    film, _, _ = to_grey8(grey, Dataset())
    if _value_count(film) == 2:
        warnings.append("a film of two greys: is it a mask?")
    return film, tuple(warnings)


def read_image_mask(path: Path, max_pixels: int) -> tuple[Image, tuple[str, ...]]:
    """Return a mask (height, width) of 0 and 1 from an image file, and its warnings.

    The region has at least half of the largest value (1, or the end of the 8- or 16-bit scale), in the grey values or
    in an alpha channel over one colour. Raises RejectedFilm for an image that is not a mask of one region.
    """
    image = _read(path, max_pixels)
    values, warnings = image.pixels, image.warnings
    if image.alpha is not None:
        if values.reshape(-1, 1 if image.is_grey else 3).std(axis=0).any():
            raise RejectedFilm("its mask varies in colour and in alpha; save it with the values 0 and 255 only")
        values = image.alpha
    elif not image.is_grey:
        raise RejectedFilm("its mask is in colours; save it with the values 0 and 255 only")
    return _region(values), warnings


def _region(values: PixelValues) -> Image:
    """Return which pixels of a mask are set. Raises RejectedFilm for other scales, and for several labels."""
    top = int(values.max())
    if top == 0:
        return np.zeros(values.shape, np.uint8)
    scale = next((scale for scale in (1, 255, 65535) if (scale + 1) // 2 <= top <= scale), 0)
    if not scale:
        raise RejectedFilm(f"its mask has a largest value of {top}; {_EXPECTED}")
    labels = _labels_between(values, top)
    if labels:
        listed = ", ".join(map(str, labels[:4])) + (" …" if len(labels) > 4 else "")
        raise RejectedFilm(f"its mask holds areas of {listed} besides {top}; {_EXPECTED}")
    return (values >= (scale + 1) // 2).astype(np.uint8)


def _labels_between(values: PixelValues, top: int) -> list[int]:
    """Return the values between 0 and the largest that fill areas: labels fill areas, the greys of an edge do not.

    A mask of many values is noise of a lossy codec, or a blur, and has no labels.
    """
    between = (values > 0) & (values < top)
    if not between.any():
        return []
    kernel = np.ones((3, 3), np.uint8)
    is_flat = cv2.dilate(values, kernel) == cv2.erode(values, kernel)
    areas = values[between & is_flat]
    if areas.size < _LABEL_SHARE * np.count_nonzero(values) or len(np.unique(values)) > _FEW_VALUES:
        return []
    return [int(value) for value in np.unique(areas)]


def _read(path: Path, max_pixels: int) -> ImageFile:
    try:
        content = path.read_bytes()
    except OSError as error:
        # Only strerror, as the text of the error contains the path.
        raise RejectedFilm(f"its image file cannot be read ({error.strerror})") from None
    warnings = _screened(content, max_pixels)
    if content.startswith(_JPEG_START):
        warnings = (*warnings, *check_jpeg(content))
    try:
        image = cv2.imdecode(np.frombuffer(content, np.uint8), cv2.IMREAD_UNCHANGED)
    except cv2.error:  # its text contains paths of the machine that built OpenCV
        image = None
    if image is None:
        raise RejectedFilm("damaged image file; export it again")
    if image.dtype not in (np.uint8, np.uint16):
        raise RejectedFilm(f"its pixels are {image.dtype}; save 8 or 16 bits of grey")
    return _image_of(np.asarray(image), warnings)


def _image_of(image: PixelValues, warnings: tuple[str, ...]) -> ImageFile:
    """Split grey, BGR or BGRA pixels as OpenCV decodes them into grey or RGB pixels and an alpha channel."""
    alpha: PixelValues | None = None
    if image.ndim == 3 and image.shape[2] == 4:
        varies = image[..., 3].min() != image[..., 3].max()
        alpha = np.asarray(image[..., 3]) if varies else None
    pixels = np.asarray(image if image.ndim == 2 else _grey_where_equal(image[..., :3]))
    return ImageFile(pixels, alpha, warnings)


def _screened(content: bytes, max_pixels: int) -> tuple[str, ...]:
    """Check the header of a file, before its pixels take memory, and return warnings."""
    if not content:
        raise RejectedFilm("the image file is empty; export it again")
    # Image.open has another limit of pixels.
    reader = JpegImageFile if content.startswith(_JPEG_START) else PngImageFile
    try:
        image = reader(io.BytesIO(content))
        (width, height), channels = image.size, len(image.getbands())
        # Without this entry, getexif would decode a PNG.
        turned = "exif" in image.info and image.getexif().get(_EXIF_ORIENTATION, 1) != 1
    except Exception:  # Pillow's readers raise many kinds
        raise RejectedFilm("not a readable PNG or JPEG image; export it again") from None
    if width * height * channels > max_pixels:
        size = f"{width}x{height}" + (f" pixels of {channels} channels" if channels > 1 else " pixels")
        raise RejectedFilm(f"its {size} are more than {max_pixels}; pass --max-pixels to accept it")
    if isinstance(image, PngImageFile):
        _check_png(image, content)
    return (TURNED,) if turned else ()


def _check_png(image: PngImageFile, content: bytes) -> None:
    """Refuse a PNG that stops early or has a wrong checksum. OpenCV would too, with lines of its own on stderr."""
    try:
        image.verify()
        is_whole = _PNG_END in content
    except Exception:  # SyntaxError, OSError, struct.error …
        is_whole = False
    if not is_whole:
        raise RejectedFilm("damaged image file; export it again")


def _grey_where_equal(bgr: PixelValues) -> PixelValues:
    """Return one channel if all three agree, else RGB."""
    blue, green, red = cv2.split(bgr)
    distance = max(int(cv2.absdiff(green, other).max()) for other in (blue, red))
    if distance == 0:
        return np.asarray(green)
    rgb = np.asarray(cv2.merge([red, green, blue]))
    tolerance = _GREY_TOLERANCE if bgr.dtype == np.uint8 else _GREY_TOLERANCE * 257
    return np.asarray(luma(rgb)) if distance <= tolerance else rgb


def _value_count(film: Image) -> int:
    """Return the number of greys in a film. A sample of the pixels suffices unless the film may be a mask."""
    few = np.count_nonzero(np.bincount(film[::8, ::8].ravel(), minlength=256))
    return int(few) if few > 2 else len(np.unique(film))
