"""DICOM films: what is accepted, and how their values become grey levels."""
