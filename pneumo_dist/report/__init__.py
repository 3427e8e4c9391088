"""The report: its page, figures and pictures."""
