"""Small learners on any device, and their batches."""

import io
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from builders import experiment_of

from pneumo_dist.data.films import Batch
from pneumo_dist.network.build import build_model
from pneumo_dist.ranks.precision import Resolved
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.step import Learner, Step

ROOT = Path(__file__).parents[2]
SIZE = 64
FCN_NORM = {"arch": "fcn", "in_channels": 1, "fcn": {"widths": (4, 8, 16), "norm": True}}
UNET = {"arch": "unet", "encoder": "resnet18", "in_channels": 1, "decoder_channels": (16, 16, 8, 8, 8)}
# Grouped convolutions, squeeze and excitation: the parts of the heavy encoders.
HEAVY = {**UNET, "encoder": "se_resnext50_32x4d", "decoder_channels": (32, 32, 16, 16, 16)}
HEAVY["decoder_attention_type"] = "scse"
MODELS = {"fcn": FCN_NORM, "unet": UNET, "heavy": HEAVY}
SGD = {"name": "sgd", "lr": 0.05, "momentum": 0.9}


def cases(cpu: Sequence[str], gpu: Sequence[str] = tuple(MODELS)) -> list[Any]:
    """Return devices and models. A CPU gets fewer, because it takes a minute for some."""
    on_gpu = [pytest.param("cuda", name, marks=pytest.mark.gpu) for name in gpu]
    return [*(pytest.param("cpu", name) for name in cpu), *on_gpu]


def learner_of(
    ranks: Ranks,
    model: dict[str, Any],
    amp: Resolved = "float32",
    seed: int = 0,
    data: dict[str, Any] | None = None,
    runtime: dict[str, Any] | None = None,
    **stage: Any,
) -> Learner:
    """Return a learner of one stage, in its first epoch."""
    given = {"image_size": SIZE, "global_batch": 4, "micro_batch": 4, "epochs": 6, "optim": SGD, **stage}
    experiment = experiment_of(given, model=model, data=data or {}, runtime=runtime or {})
    torch.manual_seed(seed)
    made = Learner(experiment, experiment.stages[0], ranks, amp, build_model(experiment.model, pretrained=False))
    made.start_epoch(0)
    return made


def batch_of(count: int, seed: int = 0) -> Batch:
    """Return films of noise on the CPU, each with a brighter rectangle that is its mask."""
    chance = np.random.default_rng(seed)
    images = torch.from_numpy(chance.normal(0.5, 1, (count, 1, SIZE, SIZE)).astype(np.float32))
    masks = torch.zeros(count, 1, SIZE, SIZE, dtype=torch.uint8)
    for film in range(count):
        top, left, height, width = chance.integers(4, SIZE // 2, 4).tolist()
        masks[film, 0, top : top + height, left : left + width] = 1
    return Batch(images + 2 * masks, masks, np.arange(count))


def parts_of(batch: Batch, size: int) -> list[Batch]:
    """Return a batch in micro-batches."""
    return [
        Batch(batch.images[start:][:size], batch.masks[start:][:size], batch.indices[start:][:size])
        for start in range(0, len(batch.indices), size)
    ]


def take(learner: Learner, batches: Sequence[Batch], done: int = 0) -> Step:
    """Make a step. Its number decides its random numbers."""
    return learner.step(iter(batches), len(batches), done, lambda micro: void(torch.manual_seed(10 * done + micro)))


def child_environment() -> dict[str, str]:
    """Return the environment of a process that imports the tests' modules."""
    # First on the path, because some packages are only there.
    path = [str(ROOT), str(ROOT / "tests"), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(path), "OMP_NUM_THREADS": "1"}


def void(_: object) -> None:
    """Drop a value."""


def copied(state: Any) -> Any:
    """Return a state as read from a checkpoint, on the CPU."""
    buffer = io.BytesIO()
    torch.save(state, buffer)
    return torch.load(io.BytesIO(buffer.getvalue()), weights_only=True, map_location="cpu")


def weights(learner: Learner) -> dict[str, torch.Tensor]:
    """Return a learner's weights and buffers, copied to the CPU, in float64."""
    return {name: value.detach().cpu().double() for name, value in learner.model.state_dict().items()}
