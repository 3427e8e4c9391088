"""Benchmarks of speed, memory and time to quality. Run each from the root of the repository."""

import os
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
# The demo's config before it was tuned on the demo's films.
BASELINE = ROOT / "benchmarks/baseline.yaml"
# albumentations looks for a newer version of itself on the network when it is imported.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"
