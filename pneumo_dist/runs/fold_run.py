"""A fold's run: the experiment, the fold and its films, the folder it writes into, and the ranks that train it."""

from dataclasses import dataclass
from pathlib import Path

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from shards.dataset.table import Shards


@dataclass(frozen=True)
class FoldRun:
    """What stays the same while the stages of one fold are trained."""

    experiment: Experiment
    fold: int
    shards: Shards
    folder: Path
    ranks: Ranks

    def checkpoints(self, stage: str) -> CheckpointFolder:
        """Return the checkpoints of a stage, by its name."""
        return checkpoints_of(self.folder, stage)


def checkpoints_of(fold: Path, stage: str) -> CheckpointFolder:
    """Return the checkpoints of a stage in a fold's folder; neither has to exist."""
    return CheckpointFolder(fold / stage / "checkpoints")
