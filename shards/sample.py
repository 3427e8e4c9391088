"""One film and its label become a table row and the members of a WebDataset sample."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt

from shards import dicom, rle
from shards.errors import InputError, RejectedFilm
from shards.grid import fit_square, mask_to_square, to_square
from shards.keys import patient_group
from shards.sources import Source

_PNG = (cv2.IMWRITE_PNG_COMPRESSION, 3)


def build_sample(
    source: Source, image_size: int, label_size: int | None, salt: bytes
) -> tuple[dict[str, Any], dict[str, bytes]]:
    """Return a table row (without shard and offsets) and the encoded members `image`, `mask` (if any) and `json`.

    Raises RejectedFilm for a film that cannot be read, InputError for a label that does not fit it.
    """
    film = dicom.read_film(source.path) if source.is_dicom else dicom.Film(_read_grey(source.path), dicom.FilmInfo())
    height, width = film.image.shape
    padding = fit_square(height, width, image_size)
    mask: npt.NDArray[np.uint8] | None = None
    if source.mask_path is not None:
        mask = _read_mask(source.mask_path)
        if abs(mask.shape[0] * width - mask.shape[1] * height) > max(height, width):
            raise RejectedFilm(f"its mask is {mask.shape[1]}x{mask.shape[0]}, the film {width}x{height}: not one shape")
        height, width = mask.shape
    elif label_size is not None:
        height = width = label_size
    if source.labels is not None:
        mask = _decode_labels(source, height, width)
    info = film.info
    facts = {
        "label_height": height,
        "label_width": width,
        **{f"pad_{side}": value for side, value in asdict(padding).items()},
        "view": info.view,
        "sex": info.sex,
        "age": info.age,
        "spacing_row": info.spacing_row,
        "spacing_column": info.spacing_column,
        "spacing_tag": info.spacing_tag,
    }
    text = None if mask is None else rle.encode(mask)
    label = {"has_mask": None if mask is None else bool(mask.any()), "rle": text}
    members = {
        "image": _png(to_square(film.image, image_size)),
        "json": json.dumps({"key": source.key, "image_id": source.image_id, **label, **facts}, sort_keys=True).encode(),
    }
    if mask is not None:
        members["mask"] = _png(mask_to_square(mask, image_size))
    row = {
        "key": source.key,
        "image_id": source.image_id,
        # Without a patient id every film is a group of its own.
        "group": patient_group(info.patient_id or f"film {source.image_id}", salt),
        "split": source.split,
        **label,
        "mask_area": None if mask is None else int(mask.sum()),
        "image_height": image_size,
        "image_width": image_size,
        **facts,
    }
    return row, members


def _decode_labels(source: Source, height: int, width: int) -> npt.NDArray[np.uint8]:
    assert source.labels is not None
    for row in source.labels:
        bounds = rle.parse(row.rle)
        if len(bounds) and bounds[-1, 1] > height * width:
            raise InputError(
                f"{row.path or 'label CSV'} line {row.line} ({source.image_id}): the mask runs to pixel "
                f"{bounds[-1, 1]}, past the end of a {width}x{height} grid; "
                "correct the row, or give the labels' grid with --label-size"
            )
    return rle.decode_union([row.rle for row in source.labels], height, width)


def _read_mask(path: Path) -> npt.NDArray[np.uint8]:
    """Return a 0/1 mask: files hold 0 and 1, or 0 and 255 with grey edges (set from 128 on)."""
    values = _read_grey(path)
    brightest = int(values.max())
    if 1 < brightest < 128:
        raise RejectedFilm(f"its mask {path.name} has a largest value of {brightest}; masks hold 0 and 1, or 0 and 255")
    return (values >= (1 if brightest == 1 else 128)).astype(np.uint8)


def _read_grey(path: Path) -> npt.NDArray[np.uint8]:
    try:
        image = cv2.imdecode(np.frombuffer(path.read_bytes(), np.uint8), cv2.IMREAD_GRAYSCALE)
    except (OSError, cv2.error) as error:
        raise RejectedFilm(f"unreadable image ({error})") from None
    if image is None:
        raise RejectedFilm("not a readable PNG or JPEG image")
    return np.asarray(image, np.uint8)


def _png(image: npt.NDArray[np.uint8]) -> bytes:
    done, content = cv2.imencode(".png", image, _PNG)
    assert done
    return content.tobytes()
