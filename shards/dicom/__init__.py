"""Reads DICOM films: which ones are accepted, and how their values become grey levels."""
