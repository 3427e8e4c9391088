"""Results for use outside: masks, DICOM Segmentation objects and submissions."""
