"""The shipped heavy networks: the same maps on each device, and steps in bf16 and fp16 at their own size and batch."""

from pathlib import Path

import pytest
import torch

from benchmarks.gpu_shipped import synthetic_batch
from benchmarks.gpu_steps import seed_torch
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import load_config
from pneumo_dist.network.build import build_model, split_outputs
from pneumo_dist.ranks.precision import Resolved
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.step import Learner

CONFIGS = Path(__file__).parents[2] / "configs"
ON_CPU = [pytest.param("cpu", "heavy_se_resnext50")]
ON_GPU = [
    pytest.param("cuda", f"heavy_{name}", marks=pytest.mark.gpu)
    for name in ("se_resnext50", "se_resnext101", "senet154")
]
SMALL = 64
# A new scaler halves its scale until gradients fit fp16.
MOST_OVERFLOWS = 16

pytestmark = [pytest.mark.slow, pytest.mark.parametrize(("ranks", "name"), [*ON_CPU, *ON_GPU], indirect=["ranks"])]


def experiment_of(name: str, size: int | None = None) -> Experiment:
    """Return a shipped experiment without pretrained weights, by default at its own size."""
    overrides = ["model.encoder_weights=null", *([f"image_size={size}"] if size else [])]
    return load_config(CONFIGS / f"{name}.yaml", overrides).experiment


def test_network_gives_the_maps_of_the_cpu(ranks: Ranks, name: str) -> None:
    torch.manual_seed(0)
    config = experiment_of(name).model
    model = build_model(config, pretrained=False).eval()
    images = torch.randn(2, config.in_channels, 2 * SMALL, 2 * SMALL)
    with torch.no_grad():
        expected, _ = split_outputs(model(images))
        found, _ = split_outputs(model.to(ranks.device)(images.to(ranks.device)))
    assert expected is not None and found is not None
    torch.testing.assert_close(found.cpu(), expected, rtol=1e-3, atol=1e-3 * float(expected.abs().max()))


@pytest.mark.parametrize("amp", ["bf16", "fp16"])
def test_network_takes_steps(ranks: Ranks, name: str, amp: Resolved) -> None:
    experiment = experiment_of(name, None if ranks.device.type == "cuda" else SMALL)
    stage = experiment.stages[0].model_copy(update={"micro_batch": 2, "global_batch": 2})
    torch.manual_seed(0)
    learner = Learner(experiment, stage, ranks, amp, build_model(experiment.model, pretrained=False))
    learner.start_epoch(0)
    batch = synthetic_batch(experiment, stage, ranks.device)
    before = [parameter.detach().clone() for parameter in learner.model.parameters()]
    taken = 0
    for done in range(MOST_OVERFLOWS):
        step = learner.step([batch], 1, done, seed_torch)
        assert not step.is_bad and all(torch.tensor(step.losses).isfinite())
        taken += not step.overflowed
        if taken == 2:
            break
    assert taken == 2
    pairs = zip(before, learner.model.parameters(), strict=True)
    moved = [not torch.equal(old, new) for old, new in pairs if new.requires_grad]
    assert sum(moved) > 0.9 * len(moved)
