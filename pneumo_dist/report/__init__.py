"""The report page with its figures and pictures."""
