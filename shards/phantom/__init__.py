"""Synthetic films with a pneumothorax and their labels."""
