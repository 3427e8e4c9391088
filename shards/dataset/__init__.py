"""A dataset on disk: tars, sample table, run-length labels, and code to read, check and show them."""
