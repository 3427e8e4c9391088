"""DICOM films of any shape and content, for tests."""

from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
import pydicom
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComputedRadiographyImageStorage, ExplicitVRLittleEndian, generate_uid

Pixels = npt.NDArray[Any]
PATIENT_ID, PATIENT_NAME = "MRN-4711", "Doe^Jane"


def film_dataset(pixels: Pixels, **attributes: Any) -> Dataset:
    """Return an uncompressed frontal CR film of a patient; attributes override or add elements, None removes one."""
    film = Dataset()
    film.file_meta = FileMetaDataset()
    film.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    film.SOPClassUID, film.SOPInstanceUID = ComputedRadiographyImageStorage, generate_uid()
    film.file_meta.MediaStorageSOPClassUID = film.SOPClassUID
    film.file_meta.MediaStorageSOPInstanceUID = film.SOPInstanceUID
    film.StudyInstanceUID, film.SeriesInstanceUID = generate_uid(), generate_uid()
    film.PatientID, film.PatientName, film.PatientBirthDate, film.PatientSex = PATIENT_ID, PATIENT_NAME, "19500102", "F"
    film.StudyID, film.StudyDate, film.StudyTime = "S1", "20200304", "101112"
    film.AccessionNumber, film.ReferringPhysicianName = "A1", "Who^Doctor"
    film.Modality, film.ViewPosition, film.BodyPartExamined = "CR", "PA", "CHEST"
    film.SamplesPerPixel, film.PhotometricInterpretation = 1, "MONOCHROME2"
    film.Rows, film.Columns = pixels.shape
    film.BitsAllocated = film.BitsStored = pixels.dtype.itemsize * 8
    film.HighBit, film.PixelRepresentation = film.BitsStored - 1, 0
    film.PixelData = pixels.tobytes() + b"\0" * (pixels.nbytes % 2)
    for name, value in attributes.items():
        if value is None:
            delattr(film, name)
        else:
            setattr(film, name, value)
    return film


def write_film(path: Path, pixels: Pixels, **attributes: Any) -> Path:
    """Write such a film and return its path."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pydicom.dcmwrite(path, film_dataset(pixels, **attributes), enforce_file_format=True)
    return path


def coarse_noise(seed: int, side: int = 64, cells: int = 17) -> npt.NDArray[np.uint8]:
    """Return a square of grey clouds, which differ between seeds even as thumbnails."""
    coarse = np.random.default_rng(seed).integers(0, 256, (cells, cells), np.uint8)
    return np.asarray(cv2.resize(coarse, (side, side), interpolation=cv2.INTER_CUBIC), np.uint8)


def noise(rows: int, columns: int, seed: int = 0) -> npt.NDArray[np.uint8]:
    """Return random grey pixels."""
    return np.random.default_rng(seed).integers(0, 256, (rows, columns), np.uint8)
