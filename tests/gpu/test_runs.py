"""Whole runs on each device: resumed with the same bits, moved to the CPU, used for prediction."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tiny_runs
import torch
from builders import experiment_of
from gpu.learners import ROOT, child_environment
from tools.equality import run_differences

from pneumo_dist.config.experiment import Experiment, RuntimeConfig
from pneumo_dist.maps.store import Predictions
from pneumo_dist.network.build import split_outputs
from pneumo_dist.predict.predict import PredictOptions, predict
from pneumo_dist.ranks.precision import configure
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.ranks.stop import Preempted
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.train.fold import train_fold
from pneumo_dist.train.step import Learner
from shards.dataset.table import Shards

pytestmark = pytest.mark.slow

CPU = Ranks.alone()


def recipe_of(loader: str, amp: str) -> Experiment:
    model = {"encoder": "resnet18", "in_channels": 1, "decoder_channels": (16, 16, 8, 8, 8)}
    given = {"image_size": 64, "global_batch": 2, "micro_batch": 1, "eval_batch": 4, "top_k": 9, "epochs": 2}
    optim = {"name": "adam", "lr": 1e-3, "clip_norm": 1.0, "ema_decay": 0.9}
    stage = {"name": "main", "optim": optim, "augment": {"distortion": {"p": 0.5}}, **given}
    runtime = {"deterministic": True, "tf32": False, "fused": True}
    return experiment_of(stage, amp=amp, model=model, data={"loader": loader}, runtime=runtime)


def train(experiment: Experiment, films: Shards, folder: Path, ranks: Ranks) -> Path:
    configure(experiment.runtime)
    train_fold(FoldRun(experiment, 0, films, folder, ranks), Experiment.model_dump_json)
    return folder


def stopped(experiment: Experiment, films: Shards, folder: Path, ranks: Ranks, steps: int) -> None:
    """Train until a signal after some steps."""
    step, taken = Learner.step, 0

    def counted(learner: Learner, *arguments: Any) -> Any:
        nonlocal taken
        taken += 1
        if taken == steps:
            os.kill(os.getpid(), signal.SIGUSR1)
        return step(learner, *arguments)

    with pytest.MonkeyPatch.context() as patch, pytest.raises(Preempted):
        patch.setattr(Learner, "step", counted)
        train(experiment, films, folder, ranks)


@pytest.mark.parametrize("loader", ["synthetic", "dali"])
@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_resumed_run_ends_with_the_same_bits(
    films: dict[str, Shards], ranks: Ranks, tmp_path: Path, loader: str, amp: str
) -> None:
    experiment = recipe_of(loader, amp)
    straight = train(experiment, films["png"], tmp_path / "straight", ranks)
    for steps in (2, 2):  # in the first epoch, and in the second
        stopped(experiment, films["png"], tmp_path / "resumed", ranks, steps)
    resumed = train(experiment, films["png"], tmp_path / "resumed", ranks)
    assert run_differences(straight, resumed) == []
    records = [json.loads(line) for line in (resumed / "main/metrics.jsonl").read_text().splitlines()]
    assert [record["epoch"] for record in records] == [0, 1]
    assert all(("peak_gpu_memory_mb" in record) == (ranks.device.type == "cuda") for record in records)


def test_killed_run_ends_with_the_same_bits(films: dict[str, Shards], ranks: Ranks, tmp_path: Path) -> None:
    """It continues from the last checkpoint, which is one step old."""
    experiment = recipe_of("dali", "bf16")
    experiment = experiment.model_copy(update={"stages": [experiment.stages[0].model_copy(update={"save_every": 1})]})
    straight = train(experiment, films["png"], tmp_path / "straight", ranks)
    (tmp_path / "experiment.json").write_text(experiment.model_dump_json())
    given = (tmp_path / "experiment.json", films["png"].folder, tmp_path / "killed", ranks.device.type, 3)
    command = [sys.executable, "-m", "gpu.killed_run", *map(str, given)]
    done = subprocess.run(command, cwd=ROOT, env=child_environment(), capture_output=True, text=True, timeout=300)
    assert done.returncode == -signal.SIGKILL, done.stderr[-3000:]
    killed = train(experiment, films["png"], tmp_path / "killed", ranks)
    assert run_differences(straight, killed) == []


def test_run_from_a_device_resumes_on_the_cpu(films: dict[str, Shards], ranks: Ranks, tmp_path: Path) -> None:
    experiment = recipe_of("dali", "float32")
    stopped(experiment, films["png"], tmp_path, ranks, 4)
    train(experiment, films["png"], tmp_path, CPU)
    state = torch.load(tmp_path / "main/checkpoints/last", weights_only=True)
    assert state["position"]["finished"] and len(state["history"]) == 2
    assert all(value.device.type == "cpu" and bool(value.isfinite().all()) for value in state["model"].values())


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory) -> tiny_runs.Trained:
    configure(RuntimeConfig(tf32=False))
    return tiny_runs.make(tmp_path_factory.mktemp("trained"))


@pytest.mark.parametrize("loader", ["torch", "dali"])
def test_prediction_equals_plain_forward_passes_on_the_cpu(
    trained: tiny_runs.Trained, ranks: Ranks, tmp_path: Path, loader: str
) -> None:
    """No pixel differs by more than two of 255, with the TF32 that torch lets convolutions use by default."""
    torch.backends.cudnn.allow_tf32 = True
    members = [{"experiment": "plain", "top_k": 1}, {"experiment": "head", "top_k": 1}]
    ensemble = trained.ensemble(members=members, tta={"hflip": False}, loader=loader)
    predict(ensemble, trained.shards, tmp_path, ranks, PredictOptions("test"))
    predictions = Predictions(tmp_path)
    assert len(predictions) == 5
    keys = trained.shards.column("key")
    levels = set()
    for row, p8 in predictions:
        film = tiny_runs.image(trained.shards, int(np.flatnonzero(keys == row["key"])[0]))
        found = []
        for network in ensemble.networks:
            with torch.no_grad():
                logits, _ = split_outputs(network.read().build(network.name)(film))
            assert logits is not None
            found.append(torch.sigmoid(logits)[0, 0].numpy() * 255)
        assert np.abs(p8 - np.mean(found, axis=0)).max() <= 2
        levels |= set(np.unique(p8).tolist())
    assert len(levels) > 5, "the maps are flat"
