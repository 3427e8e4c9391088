"""Preprocessing: turns chest films and run-length labels into WebDataset shards with a sample table.

This package imports neither torch nor `pneumo_dist`, so it runs on archive hosts, and data-loader workers start
quickly.
"""

# One distribution holds both packages, and this one imports nothing of the other.
__version__ = "0.5.0"
