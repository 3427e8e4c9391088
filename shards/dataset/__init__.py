"""A dataset on disk: tars, sample table, labels as RLE, and reading, checking and showing them."""
