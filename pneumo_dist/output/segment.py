"""Writes what was found on a new film: mask, RLE, overlay, DICOM Segmentation object, and findings as JSON."""

from collections.abc import Callable
from dataclasses import dataclass
from datetime import date
from functools import partial
from pathlib import Path
from typing import Any, BinaryIO

import pydicom
from pydicom.dataset import Dataset

from pneumo_dist.output.dicom_seg import Algorithm, length_warnings, segmentation_object
from pneumo_dist.output.formats import DEFAULT_FORMATS
from pneumo_dist.output.found import Area, Found
from pneumo_dist.output.overlay import draw_film
from pneumo_dist.output.segmenter import SegmentedFile
from pneumo_dist.predict.new_films import MASK, OVERLAY, SEGMENTATION
from shards.build.folders import is_image
from shards.caught import caught_warnings
from shards.dataset import rle
from shards.drawing import encode_image
from shards.errors import InputError
from shards.files import atomic_open, write_json

RLE, FINDINGS = ".rle.txt", ".findings.json"

Write = Callable[[BinaryIO], Any]


@dataclass(frozen=True)
class Outputs:
    """Where and how results are written.

    Attributes:
        folder: Folder to write to. It is created.
        algorithm: Name and version of the model.
        day: Day of the segmentation, for overlays and findings.
        formats: What to write besides the findings, of `FORMATS`. A PNG or JPEG gets no `seg`.
    """

    folder: Path
    algorithm: Algorithm
    day: date
    formats: frozenset[str] = DEFAULT_FORMATS


def write_results(segmented: SegmentedFile, outputs: Outputs) -> dict[str, Any]:
    """Write the files of one film, and return its findings as JSON types.

    The findings and the pictures name the film and its SOP instance UID, but never the patient. The segmentation object
    belongs to the patient's study and names the patient. The findings come last, so they say that a film is complete.

    Raises InputError if a segmentation object cannot refer to the film. Nothing is written then.
    """
    source, found = segmented.source, segmented.found
    header = None if is_image(source.path) else _read_header(source.path)
    warnings, writers, files = list(found.warnings), list[tuple[Path, Write]](), dict[str, str]()

    def add(kind: str, suffix: str, write: Write) -> None:
        files[kind] = f"{source.name}{suffix}"
        writers.append((outputs.folder / files[kind], write))

    if "mask" in outputs.formats:
        add("mask", MASK, partial(_write_bytes, encode_image(found.mask * found.mask.dtype.type(255))))
    if "overlay" in outputs.formats:
        lines = [f"film: {source.name}", *caption(found, outputs)]
        picture = draw_film(segmented.film.image, found.mask, found.warnings, lines)
        add("overlay", OVERLAY, partial(_write_bytes, encode_image(picture)))
    if "rle" in outputs.formats:
        add("rle", RLE, partial(_write_bytes, f"{rle.encode(found.mask)}\n".encode()))
    if "seg" in outputs.formats and header is not None:
        spacing = found.area.spacing_mm if found.area.mm2 is not None else None
        segmentation = segmentation_object(header, found.mask, outputs.algorithm, found.score, spacing)
        warnings += length_warnings(header)
        add("segmentation", SEGMENTATION, segmentation.save_as)
    files["findings"] = f"{source.name}{FINDINGS}"
    findings = {
        "film": source.file,
        "sop_instance_uid": None if header is None else str(header.get("SOPInstanceUID", "")) or None,
        "called": found.called,
        "image_score": found.score,
        "class_probability": found.class_probability,
        "warnings": warnings,
        **_area_fields(found.area),
        "model": outputs.algorithm.name,
        "version": outputs.algorithm.version,
        "date": outputs.day.isoformat(),
        "files": files,
        "for_research_use_only": True,
    }
    (outputs.folder / source.name).parent.mkdir(parents=True, exist_ok=True)
    for path, write in writers:
        with atomic_open(path) as stream:
            write(stream)
    write_json(outputs.folder / files["findings"], findings)
    return findings


def caption(found: Found, outputs: Outputs) -> list[str]:
    """Return the lines under an overlay: area, score, model and day."""
    area = found.area
    size = f"not known in mm2, as {area.missing_because}" if area.mm2 is None else f"{area.mm2:,.0f} mm2"
    name = outputs.algorithm.name.encode("ascii", "replace").decode()
    return [
        f"area: {area.pixels:,} px, {size}",
        f"score: {found.score:.3f}",
        f"model: {name}, pneumo_dist {outputs.algorithm.version}, {outputs.day.isoformat()}",
    ]


def check_formats(paths: list[Path], formats: frozenset[str]) -> None:
    """Raise InputError, naming the first picture, if a segmentation object is asked for and there are pictures."""
    picture = next((path for path in paths if is_image(path)), None)
    if "seg" in formats and picture is not None:
        raise InputError(
            f"{picture}: a PNG or JPEG has no study that a DICOM Segmentation object could belong to; give the DICOM "
            "file, or leave seg out of --format"
        )


def _area_fields(area: Area) -> dict[str, Any]:
    return {
        "area_px": area.pixels,
        "area_mm2": area.mm2,
        "area_mm2_missing_because": area.missing_because,
        "spacing_mm": None if area.spacing_mm is None else list(area.spacing_mm),
        "spacing_tag": area.spacing_tag,
    }


def _write_bytes(content: bytes, stream: BinaryIO) -> None:
    stream.write(content)


def _read_header(path: Path) -> Dataset:
    with caught_warnings():
        # The build also accepts films without file meta information.
        return pydicom.dcmread(path, stop_before_pixels=True, force=True)
