"""Exact scores: histograms, Dice, the triplet search, and the one path from a map to a mask."""
