"""Stored probability maps: what prediction writes, and what training, tuning, masks and the report read."""
