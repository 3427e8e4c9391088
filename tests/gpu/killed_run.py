"""A run that is killed after some steps, as a machine that fails would.

python -m gpu.killed_run EXPERIMENT.json SHARDS FOLDER DEVICE STEPS
"""

import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.ranks.precision import configure
from pneumo_dist.ranks.ranks import Ranks, pick_device
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.step import Learner
from shards.dataset.table import Shards
from shards.parent import die_with_parent


def main(experiment: Path, shards: Path, folder: Path, device: str, steps: int) -> None:
    die_with_parent()
    step, taken = Learner.step, 0

    def counted(learner: Learner, *arguments: Any) -> Any:
        nonlocal taken
        if taken == steps:
            os.kill(os.getpid(), signal.SIGKILL)
        taken += 1
        return step(learner, *arguments)

    pytest.MonkeyPatch().setattr(Learner, "step", counted)
    parsed = Experiment.model_validate_json(experiment.read_text())
    configure(parsed.runtime)
    ranks = Ranks.alone(pick_device(0, cpu=device == "cpu"))
    train_fold(FoldRun(parsed, 0, Shards(shards), folder, ranks), Experiment.model_dump_json)


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]), Path(sys.argv[3]), sys.argv[4], int(sys.argv[5]))
