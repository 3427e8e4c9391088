"""What a training or a prediction will write, against what is free on the disk."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.doctor.findings import ROOM, Finding, error, ok, readable_size, warning
from pneumo_dist.network.fit import checkpoint_bytes
from pneumo_dist.runs.checkpoint_folder import NEWEST_KEPT
from pneumo_dist.runs.fold_run import checkpoints_of
from pneumo_dist.train.optim import make_optimizer
from shards.console import counted

_FREE = "free some space (python -m pneumo_dist prune removes checkpoints that are no longer needed)"
TRAINING_FIX = f"{_FREE}, lower top_k, or give another --runs"
PREDICTION_FIX = f"{_FREE}, or give another --runs"
# Stages that a message names one by one.
_NAMED = 4


@dataclass(frozen=True)
class StageFiles:
    """The checkpoints that a fold keeps of a stage: at most `count`, each of `size` bytes.

    A stage that repeats keeps as many of each repetition.
    """

    stage: str
    count: int
    size: int
    repeats: bool = False


def state_bytes(model: torch.nn.Module, stage: StageConfig) -> int:
    """Return the bytes of all tensors in a checkpoint of a stage, in the middle of its training.

    The optimizer is the stage's own. It takes a step on the meta device, which makes its state without values. A frozen
    encoder has no optimizer state yet, and a mean of the last epochs begins late, so a file may be smaller.

    Args:
        model: The network, as `meta_model` builds it.
        stage: The stage.
    """
    optimizer = make_optimizer(model.parameters(), stage)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    tensors = [each for state in optimizer.state.values() for each in state.values() if isinstance(each, torch.Tensor)]
    is_averaged = stage.optim.ema_decay is not None or stage.optim.swa_epochs is not None
    weights = checkpoint_bytes(model, 2 if is_averaged else 1)
    return weights + sum(each.numel() * each.element_size() for each in tensors)


def stage_files(model: torch.nn.Module, experiment: Experiment) -> list[StageFiles]:
    """Return the checkpoints that a fold keeps of each stage: the top-k and the newest ones.

    `model` is the network, as `meta_model` builds it.
    """
    return [
        StageFiles(stage.name, stage.top_k + NEWEST_KEPT, state_bytes(model, stage), stage.repeat is not None)
        for stage in experiment.stages
    ]


def check_training_room(files: Sequence[StageFiles], runs: Path, folders: Sequence[Path], free: int) -> list[Finding]:
    """Check that the disk has room for the checkpoints of a training, and say how many of which size it keeps.

    Args:
        files: What a fold keeps of each stage.
        runs: Folder of all runs.
        folders: Folders of the folds to train, empty for one new fold. What they hold already counts.
        free: Free bytes on the disk.
    """
    one = max(each.size for each in files)
    folds = max(1, len(folders))
    # While a checkpoint is written, one more exists. Folds may train side by side.
    needed = folds * (one + sum(each.count * each.size for each in files)) - sum(_held(files, each) for each in folders)
    room = f"{readable_size(free)} free at {runs}"
    least = "at least " if any(each.repeats for each in files) else ""
    message = f"{room}, checkpoints need {least}{readable_size(needed)} ({_described(files, folds)})"
    if free < one:
        return [error(ROOM, f"{room}, one checkpoint needs {readable_size(one)}", TRAINING_FIX)]
    return [warning(ROOM, message, TRAINING_FIX)] if free < needed else [ok(ROOM, message)]


def check_prediction_room(maps: int, weights: int, runs: Path, free: int) -> list[Finding]:
    """Check that the disk has room for the maps of a prediction, and for averaged weights.

    Args:
        maps: Most bytes of the maps.
        weights: Bytes of the checkpoints of averaged weights.
        runs: Folder of all runs.
        free: Free bytes on the disk.
    """
    room = f"{readable_size(free)} free at {runs}"
    averaged = f", averaged weights {readable_size(weights)}" if weights else ""
    message = f"{room}, predictions need at most {readable_size(maps)}{averaged}"
    return [warning(ROOM, message, PREDICTION_FIX)] if free < maps + weights else [ok(ROOM, message)]


def map_bytes(films: int, side: int) -> int:
    """Return the most bytes of the stored maps of some films: a byte per pixel. As PNG, most are far smaller."""
    return films * side * side


def _held(files: Sequence[StageFiles], folder: Path) -> int:
    """Return the bytes of a fold's checkpoints that are there already, of each stage at most those that it keeps."""
    stages = [(each, checkpoints_of(folder, each.stage).files()) for each in files]
    return sum(min(each.count * each.size, sum(file.path.stat().st_size for file in held)) for each, held in stages)


def _described(files: Sequence[StageFiles], folds: int) -> str:
    """Describe what is kept, such as `2 folds of 5 x 143 MiB in each of the stages early, main`."""
    alike: dict[tuple[int, int], list[str]] = {}
    for each in files:
        alike.setdefault((each.count, each.size), []).append(each.stage)
    parts = [f"{count} x {readable_size(size)} {_in_stages(names)}" for (count, size), names in alike.items()]
    shown = [*parts[:_NAMED], *(["..."] if len(parts) > _NAMED else [])]
    return f"{counted(folds, 'fold')} of {', '.join(shown)}"


def _in_stages(names: Sequence[str]) -> str:
    if len(names) == 1:
        return f"in stage {names[0]}"
    listed = ", ".join(names) if len(names) <= _NAMED else f"{', '.join(names[:_NAMED])} and others"
    return f"in each of {len(names)} stages ({listed})"
