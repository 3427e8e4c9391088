"""Films and labels into a dataset: sources, splits, shards."""
