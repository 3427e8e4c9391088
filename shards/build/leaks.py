"""Finds test films that are known from training: a score on them says nothing about new patients."""

import pyarrow as pa

from shards.dataset.check import LABELLED_SPLITS


def known_test_films(table: pa.Table) -> list[str]:
    """Return the image ids of test films that share a group with a labelled film, in table order.

    The table must be split already. A group is a patient, joined with near-duplicates.
    """
    films = list(zip(*(table[name].to_pylist() for name in ("image_id", "split", "group")), strict=True))
    labelled = {group for _, split, group in films if split in LABELLED_SPLITS}
    return [image_id for image_id, split, group in films if split == "test" and group in labelled]
