"""Preprocessing: chest films and run-length labels into WebDataset shards with a sample table.

This package imports neither torch nor `pneumo_dist`, so that it runs on archive hosts and that data-loader
worker processes start quickly.
"""
