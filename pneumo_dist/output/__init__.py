"""Masks for others: submission, segmented films, DICOM SEG."""
