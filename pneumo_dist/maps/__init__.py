"""Stored probability maps: what prediction writes, and tuning, masks and the report read."""
