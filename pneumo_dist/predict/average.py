"""Average the weights of a fold's checkpoints: one network instead of several.

After Izmailov and others, "Averaging Weights Leads to Wider Optima and Better Generalization", UAI 2018, but over the
best epochs instead of the last.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from pneumo_dist import __version__
from pneumo_dist.config.ensemble import MemberConfig
from pneumo_dist.data.films import InputSpec
from pneumo_dist.data.loader import eval_loader
from pneumo_dist.data.plan import split_fold
from pneumo_dist.network.batch_norm import recompute_statistics
from pneumo_dist.network.build import build_model
from pneumo_dist.network.tensors import load_weights
from pneumo_dist.predict.ensemble import TrainedFold, agreed_files
from pneumo_dist.ranks.ranks import Ranks, on_rank_0
from pneumo_dist.runs.checkpoint import CheckpointFile, from_training, load_checkpoint, read_header, weights_of
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.lineage import check_unseen
from pneumo_dist.runs.state import experiment_of
from shards.dataset.table import Shards
from shards.errors import InputError

State = dict[str, Any]


def average_weights(weights: Sequence[State]) -> State:
    """Return the mean of state dicts: floating-point tensors averaged in float64, all others copied from the first.

    The mean of counters and other integers would be meaningless.
    """
    first = weights[0]
    assert all(state.keys() == first.keys() for state in weights)

    def mean(name: str) -> torch.Tensor:
        value: torch.Tensor = first[name]
        if not value.is_floating_point():
            return value.clone()
        return (torch.stack([state[name].double() for state in weights]).sum(0) / len(weights)).to(value.dtype)

    return {name: mean(name) for name in first}


def averaged_checkpoint(
    member: MemberConfig, trained_fold: TrainedFold, folder: Path, shards: Shards | None, ranks: Ranks
) -> Path:
    """Return the checkpoint of a fold's averaged weights in `folder`; create it if it does not exist yet.

    Its batch-norm statistics are those of all films that the stage trained on, without augmentation, in fixed batches
    in table order, unless the stage froze them. Its `parts` are the names of the averaged checkpoints. All ranks take
    part and get the same path. Raises InputError if `shards` are missing, or are not those of the training.
    """
    files = agreed_files(trained_fold, member, ranks)
    parts = [path.name for path in files]
    existing = on_rank_0(ranks, lambda: _existing(folder, parts))
    if existing is not None:
        return Path(existing)
    states = [from_training(load_checkpoint(path), path) for path in files]
    state, name = states[0], f"{trained_fold.folder.parent.name}/{trained_fold.folder.name}/{files[0].name}"
    if shards is None or not len(shards.indices("train")):
        raise InputError(
            f"the weights of {name} are not averaged yet, which takes its training films; run 'python -m pneumo_dist "
            "average' with their --shards"
        )
    check_unseen(state["lineage"], name, shards, trained_fold.number)
    experiment = experiment_of(state, files[0])
    model = build_model(experiment.model, pretrained=False)
    for each, path in zip(states, files, strict=True):
        load_weights(model, weights_of(each), path)  # one by one, so that an error names the file
    model.load_state_dict(average_weights([weights_of(each) for each in states]))
    model.to(ranks.device)
    # The stage as it was trained: the config may have changed since.
    stage = experiment.stage(trained_fold.stage.name)
    input_spec = InputSpec(stage.film_size, experiment.model.in_channels, trained_fold.experiment.data, ranks.device_id)
    films = split_fold(shards, trained_fold.number, stage.always_train).train
    loader = eval_loader(shards, films, stage, input_spec, ranks.rank, ranks.world, with_mask=False)
    if not stage.freeze_batch_norm:  # frozen, the statistics of all checkpoints are equal
        recompute_statistics(model, loader, ranks, state["amp"])
    copied = ("experiment", "stage", "fold", "lineage", "amp")
    content = {
        "version": __version__,
        **{key: state[key] for key in copied},
        "model": {key: value.cpu() for key, value in model.state_dict().items()},
        "averaged": None,
        "parts": parts,
    }
    step = int(state["position"]["total"])
    return Path(on_rank_0(ranks, lambda: str(_save(folder, step, content).path)))


def _existing(folder: Path, parts: list[str]) -> str | None:
    """Return the checkpoint in a folder that is the mean of these parts."""
    newest = CheckpointFolder(folder).newest()
    if newest is None or read_header(newest.path).get("parts") != parts:
        return None
    return str(newest.path)


def _save(folder: Path, step: int, content: State) -> CheckpointFile:
    folder.mkdir(parents=True, exist_ok=True)
    checkpoints = CheckpointFolder(folder)
    checkpoints.remove_temporaries()
    saved = checkpoints.save(step, content)
    for other in checkpoints.files():
        if other.path != saved.path:
            other.path.unlink(missing_ok=True)
    return saved
