"""Builds a dataset from films and labels: sources, shards, splits."""
