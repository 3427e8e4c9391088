"""The judge: it disturbs a command of a small chain, runs it again as documented, and compares every file."""
