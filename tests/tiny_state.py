"""The smallest states of a checkpoint."""

from pathlib import Path
from typing import Any

import torch

from pneumo_dist.runs.checkpoint import CheckpointFile
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder

STATE: dict[str, Any] = {
    "version": "0.2.0",
    "experiment": {"name": "tiny", "model": {}, "stages": [{"name": "main"}]},
    "stage": "main",
    "fold": 0,
    "world": 1,
    "lineage": [{"experiment": "tiny", "stage": "main", "fold": 0, "always_train": False, "keys_sha256": "0" * 64}],
    "sums": [],
    "amp": "float32",
    "averaged": None,
    "optimizer": {},
    "schedule": {},
    "scaler": {},
}


def state_of(step: int, history: list[dict[str, Any]] | None = None, **given: Any) -> dict[str, Any]:
    """Return the state that a stage saves after `step` steps and these validated epochs."""
    epochs = [{"epoch": number, **record} for number, record in enumerate(history or [])]
    position = {"epoch": len(epochs), "step": 0, "total": step, "finished": False, "bad_steps": 0}
    model = {"weight": torch.full((4, 4), float(step))}
    return {**STATE, "model": model, "history": epochs, "position": position, **given}


def save(folder: Path, *steps: int) -> list[CheckpointFile]:
    """Save a checkpoint after each of these steps."""
    folder.mkdir(parents=True, exist_ok=True)
    return [CheckpointFolder(folder).save(step, state_of(step)) for step in steps]
