"""Exact scores: histograms, Dice, the search for the best triplet, and the only path from a map to a mask."""
