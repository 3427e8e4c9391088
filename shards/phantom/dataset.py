"""Writes synthetic chest radiographs in the layout of the SIIM-ACR data set: DICOM folders and a label CSV.

They replace the competition's films in demonstrations, tests and benchmarks, and contain no patient data.
"""

import hashlib
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import cv2
import numpy as np
from pydicom import config
from pydicom.dataelem import DataElement
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.filewriter import dcmwrite
from pydicom.uid import UID, JPEGBaseline8Bit, SecondaryCaptureImageStorage

from shards.arrays import Image
from shards.dataset import rle
from shards.drawing import encode_image
from shards.errors import InputError
from shards.files import atomic_write, named_errors
from shards.phantom.film import Film, render_film

__all__ = ["Film", "PictureSummary", "SynthSummary", "render_film", "synthesize", "synthesize_pictures"]

SMALLEST_SIZE = 64
JPEG_QUALITY = 92
CSV_HEADER = "ImageId, EncodedPixels"
UID_ROOT = "1.2.826.0.1.3680043.8.498"
UID_DIGITS = 30
RETURN_SHARE = 0.15
FILMS_PER_PATIENT = 3


@dataclass(frozen=True)
class SynthSummary:
    """Output of `synthesize`: numbers of films, positive films, patients and CSV rows, and paths."""

    films: int
    positives: int
    patients: int
    rle_rows: int
    dicom_dir: Path
    labels_csv: Path


@dataclass(frozen=True)
class PictureSummary:
    """Numbers of films, positive films and patients that `synthesize_pictures` wrote."""

    films: int
    positives: int
    patients: int


@dataclass(frozen=True)
class Patient:
    """A synthetic patient: UUID-like pseudonym, age in years without a unit (as in SIIM-ACR), sex M or F."""

    pseudonym: str
    age: str
    sex: str


def synthesize(
    out: Path,
    *,
    images: int,
    size: int,
    positive_rate: float,
    seed: int,
    on_film: Callable[[], None] | None = None,
) -> SynthSummary:
    """Write `images` films of size x size pixels under OUT/dicom-images and their masks to OUT/train-rle.csv.

    Exactly round(images * positive_rate) films are positive. Equal arguments give equal bytes; the pixels of a film
    depend only on seed, index, size and whether it is positive. The CSV is written last, so it marks a complete set.
    `on_film` is called after each film. Raises InputError for an OUT that is not a new or empty folder, images < 1,
    size < 64, a positive_rate outside [0, 1], and a negative seed.
    """
    _check(out, images, size, positive_rate, seed)
    owners = _owners(images, seed)
    dicom_dir, labels_csv = out / "dicom-images", out / "train-rle.csv"
    rows: list[str] = []
    for index, film in enumerate(_films(images, size, positive_rate, seed)):
        study, series, instance = (_uid(kind, seed, index) for kind in ("study", "series", "instance"))
        folder = dicom_dir / study / series
        patient = _patient(seed, owners[index])
        dataset = _dataset(film.image, patient, (study, series, instance), _view(seed, index))
        path = folder / f"{instance}.dcm"
        with named_errors(path):
            folder.mkdir(parents=True)
            dcmwrite(path, dataset, enforce_file_format=True)
        rows += [f"{instance}, {rle.encode(row)}" for row in film.label_rows] or [f"{instance}, {rle.EMPTY}"]
        if on_film is not None:
            on_film()
    atomic_write(labels_csv, "\n".join([CSV_HEADER, *rows]) + "\n")
    return SynthSummary(images, round(images * positive_rate), len(set(owners)), len(rows), dicom_dir, labels_csv)


def synthesize_pictures(
    out: Path,
    *,
    images: int,
    size: int,
    positive_rate: float,
    seed: int,
    on_film: Callable[[], None] | None = None,
) -> PictureSummary:
    """Write the films of `synthesize` as PNGs: OUT/images, a mask of the same name in OUT/masks, OUT/patients.csv.

    The masks have the values 0 and 255. The CSV lists each film's patient, and is written last. Raises InputError like
    `synthesize`.
    """
    _check(out, images, size, positive_rate, seed)
    owners = _owners(images, seed)
    rows = []
    for index, film in enumerate(_films(images, size, positive_rate, seed)):
        name = f"film-{index + 1:0{len(str(images))}d}"
        for folder, pixels in (("images", film.image), ("masks", film.mask * np.uint8(255))):
            (out / folder).mkdir(parents=True, exist_ok=True)
            atomic_write(out / folder / f"{name}.png", encode_image(pixels))
        rows.append(f"{name},{_patient(seed, owners[index]).pseudonym}")
        if on_film is not None:
            on_film()
    atomic_write(out / "patients.csv", "\n".join(["image_id,group", *rows]) + "\n")
    return PictureSummary(images, round(images * positive_rate), len(set(owners)))


def _films(images: int, size: int, positive_rate: float, seed: int) -> Iterator[Film]:
    """Render the films one by one. Exactly round(images * positive_rate) of them are positive."""
    order = np.random.default_rng([seed, 0, 1]).permutation(images)
    positive = set(order[: round(images * positive_rate)].tolist())
    for index in range(images):
        yield render_film(np.random.default_rng([seed, index]), size, index in positive)


def _check(out: Path, images: int, size: int, positive_rate: float, seed: int) -> None:
    if images < 1:
        raise InputError(f"images is {images}: give at least 1")
    if size < SMALLEST_SIZE:
        raise InputError(f"size is {size}: give at least {SMALLEST_SIZE} pixels")
    if not 0 <= positive_rate <= 1:
        raise InputError(f"positive_rate is {positive_rate}: give a share from 0 to 1")
    if seed < 0:
        raise InputError(f"seed is {seed}: give 0 or more")
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise InputError(f"{out} exists and is not an empty folder: give a new folder, or empty this one")


def _owners(images: int, seed: int) -> list[int]:
    """Return the patient number of each film. About RETURN_SHARE of the films are of a patient with an earlier film."""
    rng = np.random.default_rng([seed, 0, 2])
    owners: list[int] = []
    for index in range(images):
        owner = index
        if owners and rng.random() < RETURN_SHARE:
            earlier = owners[int(rng.integers(len(owners)))]
            owner = earlier if owners.count(earlier) < FILMS_PER_PATIENT else index
        owners.append(owner)
    return owners


def _patient(seed: int, number: int) -> Patient:
    rng = np.random.default_rng([seed, number, 3])
    age = int(np.clip(rng.normal(48, 17), 3, 92))
    return Patient(
        str(uuid.UUID(bytes=_digest("patient", seed, number)[:16], version=4)), str(age), "MF"[rng.integers(2)]
    )


def _view(seed: int, index: int) -> str:
    return "PA" if np.random.default_rng([seed, index, 4]).random() < 0.6 else "AP"


def _uid(kind: str, seed: int, index: int) -> UID:
    """Return a UID of at most 64 characters that depends only on the arguments."""
    # A leading 1 keeps the component free of leading zeros, which DICOM forbids.
    number = int.from_bytes(_digest(kind, seed, index), "big") % 10**UID_DIGITS
    return UID(f"{UID_ROOT}.1{number:0{UID_DIGITS}d}")


def _digest(kind: str, seed: int, index: int) -> bytes:
    return hashlib.sha256(f"pneumo_dist phantom {kind} {seed} {index}".encode()).digest()


def _dataset(image: Image, patient: Patient, uids: tuple[UID, UID, UID], view: str) -> Dataset:
    """Return a film as a JPEG Baseline DICOM data set with the attributes of SIIM-ACR's files."""
    jpeg = encode_image(image, ".jpg", (cv2.IMWRITE_JPEG_QUALITY, JPEG_QUALITY))
    study, series, instance = uids
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = SecondaryCaptureImageStorage
    meta.MediaStorageSOPInstanceUID = instance
    meta.TransferSyntaxUID = JPEGBaseline8Bit
    film = Dataset()
    film.file_meta = meta
    film.SpecificCharacterSet = "ISO_IR 100"
    film.SOPClassUID = SecondaryCaptureImageStorage
    film.SOPInstanceUID = instance
    film.StudyInstanceUID, film.SeriesInstanceUID = study, series
    film.StudyDate, film.StudyTime = "19010101", "000000.00"
    film.AccessionNumber, film.StudyID, film.ReferringPhysicianName = "", "", ""
    film.Modality, film.ConversionType = "CR", "WSD"
    film.SeriesDescription = f"view: {view}"
    film.PatientName = film.PatientID = patient.pseudonym
    film.PatientBirthDate, film.PatientSex = "", patient.sex
    # SIIM-ACR's files have bare years instead of DICOM's '038Y'. pydicom must not warn about that.
    film.add(DataElement(0x00101010, "AS", patient.age, validation_mode=config.IGNORE))
    film.BodyPartExamined, film.ViewPosition = "CHEST", view
    film.SeriesNumber, film.InstanceNumber, film.PatientOrientation = "1", "1", ""
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.Rows, film.Columns = image.shape
    spacing = f"{0.143 * 1024 / image.shape[0]:.6g}"
    film.PixelSpacing = [spacing, spacing]
    film.BitsAllocated = film.BitsStored = 8
    film.HighBit, film.PixelRepresentation = 7, 0
    film.LossyImageCompression, film.LossyImageCompressionMethod = "01", "ISO_10918_1"
    film.PixelData = encapsulate([jpeg])
    film["PixelData"].is_undefined_length = True
    return film
