"""Which checkpoints of a run neither a prediction nor a resume needs, and their removal."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from pneumo_dist.config.ensemble import MemberConfig, alone
from pneumo_dist.predict.ensemble import TrainedFold, fold_numbers
from pneumo_dist.predict.trained import trained_experiment
from pneumo_dist.runs.checkpoint import CheckpointFile
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.heartbeat import hold_idle_folder
from pneumo_dist.runs.repetitions import best_repetition
from shards.errors import InputError


@dataclass(frozen=True)
class Pruning:
    """The checkpoints of a fold: those that stay, and those to remove with their sizes in bytes."""

    folder: Path
    kept: tuple[CheckpointFile, ...]
    removed: tuple[tuple[CheckpointFile, int], ...]

    @property
    def size(self) -> int:
        """Bytes of the files to remove."""
        return sum(size for _, size in self.removed)


def run_folders(path: Path) -> list[Path]:
    """Return the folders of the trained folds of an experiment, or of all experiments in a folder of runs.

    Raises InputError for a folder that is neither.
    """
    experiments = [path] if fold_numbers(path) else sorted(each for each in path.glob("*") if fold_numbers(each))
    if not experiments:
        raise InputError(
            f"{path}: is no run folder; give the --runs of 'train', or the folder of an experiment in it, with fold0"
        )
    return [experiment / f"fold{number}" for experiment in experiments for number in fold_numbers(experiment)]


def plan_pruning(folder: Path, members: Sequence[MemberConfig] = ()) -> Pruning:
    """Return what stays of a fold's checkpoints and what can go. Nothing is removed.

    These stay: the files that the fold's own config predicts with, and members of ensembles; of each stage the newest,
    which holds its history and position, and the best, from which another stage may start.

    Args:
        folder: The fold's folder.
        members: Members of ensembles. Those of other experiments and folds are passed over.

    Raises:
        InputError: Somebody trains the fold, its config cannot be read, or a file that must stay is damaged: one that
            could go may be its only replacement.
    """
    with hold_idle_folder(folder):
        pass
    stages = [CheckpointFolder(path) for path in sorted(folder.glob("*/checkpoints"))]
    kept = {file for stage in stages for file in _continuing(stage)}
    own = alone(trained_experiment(folder, None)[0], None, None, True).members
    kept |= {file for member in (*own, *_of_fold(members, folder)) for file in _predicting(folder, member)}
    found = [file for stage in stages for file in stage.files()]
    for stage in stages:
        stage.check_whole(file for file in stage.files() if file in kept)
    removed = tuple((file, file.path.stat().st_size) for file in found if file not in kept)
    return Pruning(folder, tuple(file for file in found if file in kept), removed)


def prune(pruning: Pruning) -> None:
    """Remove the files of a plan. Raises InputError, before any is removed, if the fold has changed since."""
    with hold_idle_folder(pruning.folder):
        present = {file for path in pruning.folder.glob("*/checkpoints") for file in CheckpointFolder(path).files()}
        if present != {*pruning.kept, *(file for file, _ in pruning.removed)}:
            raise InputError(f"{pruning.folder}: its checkpoints have changed meanwhile; run the command again")
        for file, _ in pruning.removed:
            file.path.unlink()


def _of_fold(members: Sequence[MemberConfig], folder: Path) -> Iterator[MemberConfig]:
    names, number = {folder.parent.name, folder.parent.resolve().name}, _number(folder)
    for member in members:
        if member.experiment in names and (member.folds is None or number in member.folds):
            yield member


def _predicting(folder: Path, member: MemberConfig) -> list[CheckpointFile]:
    """Return the files of a fold that a member predicts with; none if its stage has no validated epoch yet."""
    experiment, stage = trained_experiment(folder, member.stage)
    checkpoints = best_repetition(stage, folder)
    if not checkpoints.files() or not checkpoints.header()["history"]:
        return []
    return TrainedFold(experiment, stage, _number(folder), folder).files(member)


def _continuing(checkpoints: CheckpointFolder) -> list[CheckpointFile]:
    """Return the newest file of a stage, and its best if it has a validated epoch."""
    checkpoints.check_newest()
    newest = checkpoints.newest()
    if newest is None:
        return []
    history = checkpoints.header()["history"]
    return [newest, *(checkpoints.best(history, 1) if history else ())]


def _number(folder: Path) -> int:
    return int(folder.name.removeprefix("fold"))
