"""Ranks and what they share: collectives, autocast types, signals, the watchdog."""
