"""Checks of what a node needs for training, each finding with its fix."""
