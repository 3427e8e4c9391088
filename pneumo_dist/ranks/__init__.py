"""Ranks: collectives, autocast types, signals and the watchdog."""
