"""The input pipeline: which sample, when, on which rank; its augmentation; the DALI graph."""
