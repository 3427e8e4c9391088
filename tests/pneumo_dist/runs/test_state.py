"""Intact checkpoint files with values that training never writes."""

import math
import zipfile
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_state import state_of

from pneumo_dist.runs.checkpoint import from_training, load_checkpoint
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder
from pneumo_dist.runs.state import experiment_of
from shards.errors import InputError

HISTORY = [{"step": 2, "score": 0.5}, {"step": 4, "score": 0.25}]


def test_state_of_a_training_is_read(tmp_path: Path) -> None:
    state = state_of(5, HISTORY)
    assert load_checkpoint(CheckpointFolder(tmp_path).save(5, state).path)["history"] == state["history"]


@pytest.mark.parametrize(
    ("place", "value", "reason"),
    [
        ("position.total", -1, "position.total"),
        ("position.total", 3, "its history and its position do not agree"),
        ("position.epoch", 7, "do not agree"),
        ("position.finished", 1, "position.finished"),
        ("position.extra", 1, "position.extra"),
        ("history.0.score", math.nan, "history.0.score"),
        ("history.0.score", 2.0, "history.0.score"),
        ("history.1.step", 1, "do not agree"),
        ("fold", 3, "its lineage ends with another stage or fold"),
        ("lineage", [], "lineage"),
        ("lineage.0.keys_sha256", "x", "lineage.0.keys_sha256"),
        ("amp", "int8", "amp"),
        ("world", 0, "world"),
        ("sums", [math.inf], "sums.0"),
        ("experiment", {}, "experiment.name"),
        ("schedule", {"last_epoch": 9}, "its schedule and its position do not agree"),
        ("model", {}, "not tensors by name"),
        ("model.weight", [1.0], "not tensors by name"),
        ("model.weight", torch.full((4, 4), math.nan), "not finite"),
        ("model.weight", torch.zeros(1).expand(10**6, 10**6), "not a plain array"),
        ("model.weight", torch.ones(4, 4).to_sparse(), "not a plain array"),
        ("averaged", {"weight": "x"}, "not tensors by name"),
        ("optimizer", {"state": {0: {"exp_avg": torch.tensor([math.inf])}}}, "not finite"),
    ],
)
def test_values_that_no_training_writes_are_refused(tmp_path: Path, place: str, value: Any, reason: str) -> None:
    state = deepcopy(state_of(5, HISTORY))
    inner: Any = state
    *outer, last = [int(part) if part.isdigit() else part for part in place.split(".")]
    for part in outer:
        inner = inner[part]
    inner[last] = value
    with pytest.raises(InputError, match=rf"\.pt: .*{reason}"):
        load_checkpoint(CheckpointFolder(tmp_path).save(5, state).path)


@pytest.mark.parametrize("name", sorted(set(state_of(5)) - {"version"}))
def test_state_without_a_key_is_refused(tmp_path: Path, name: str) -> None:
    state = state_of(5, HISTORY)
    del state[name]
    with pytest.raises(InputError, match=r"\.pt: "):
        load_checkpoint(CheckpointFolder(tmp_path).save(5, state).path)


def test_average_is_required_if_the_stage_predicts_with_it(tmp_path: Path) -> None:
    experiment = {"name": "tiny", "model": {}, "stages": [{"name": "main", "optim": {"ema_decay": 0.9}}]}
    state = state_of(5, HISTORY, experiment=experiment)
    with pytest.raises(InputError, match="has no averaged weights"):
        load_checkpoint(CheckpointFolder(tmp_path).save(5, state).path)
    load_checkpoint(CheckpointFolder(tmp_path).save(5, {**state, "averaged": state["model"]}).path)


def test_averaged_weights_are_no_state_of_a_training(tmp_path: Path) -> None:
    state = {name: value for name, value in state_of(5).items() if name not in ("position", "history")}
    path = CheckpointFolder(tmp_path).save(5, {**state, "parts": ["step-1.pt"]}).path
    assert load_checkpoint(path)["parts"] == ["step-1.pt"]
    with pytest.raises(InputError, match="holds averaged weights"):
        from_training(load_checkpoint(path), path)


def test_key_of_no_version_of_an_experiment_is_named(tmp_path: Path) -> None:
    state = state_of(5, experiment={"name": "tiny", "model": {"arch": 5}, "stages": [{"name": "main"}]})
    with pytest.raises(InputError, match=r"this version cannot read its experiment \(model.arch: "):
        experiment_of(state, tmp_path)


def test_compressed_checkpoint_is_refused(tmp_path: Path) -> None:
    path = CheckpointFolder(tmp_path).save(5, state_of(5)).path
    with zipfile.ZipFile(path) as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    with zipfile.ZipFile(tmp_path / "small.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in members.items():
            archive.writestr(name, content)
    with pytest.raises(InputError, match="its members are compressed"):
        load_checkpoint(tmp_path / "small.pt")
