"""Estimate, on paper, the rate, the memory and the GPU hours of every shipped experiment on one GPU.

    python -m benchmarks.recipes
    python -m benchmarks.recipes --markdown

Nothing here is measured, except the three constants below. docs/reproduce.md contains the table that --markdown prints.

A step takes the longest of three times. The GPU needs the eager roofline's time (benchmarks/gpu_roofline.py), divided
by the share of it that real steps reach. The host needs a constant time to launch each operator. The loader reads the
films.
"""

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from benchmarks import ROOT
from benchmarks.gpu_cards import CARDS, Card
from benchmarks.gpu_roofline import roofline_seconds, trace
from benchmarks.tables import table
from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.load import load_config
from pneumo_dist.config.stage import StageConfig, accumulation
from pneumo_dist.data.plan import EpochPlan, FoldSplit
from pneumo_dist.network.build import build_model, split_outputs
from pneumo_dist.network.losses import combo_loss

CARD = "NVIDIA H100 80GB HBM3"
# Measured on an H200 (docs/performance.md): SE-ResNeXt-50 at 512 px, channels last, 48 films.
ROOFLINE_SHARE = 0.351
# Measured on an H200: a step of heavy_se_resnext50 with 2 films of 768 px takes 71.4 ms, in which the GPU is idle for
# 73 %. The trace of that step has 4,224 operators.
HOST_S = 71.4e-3 / 4_224
# Measured on the same machine with 16 cores: DALI with recipe A's augmentation, from PNG films of 1024 px to 512 px.
LOADER_RATE = 669.1
# The competition's labelled films, of which a fifth validates, and those that the second stage adds.
FILMS, POSITIVES, FOLDS = 10_675, 2_379, 5
MORE_FILMS, MORE_POSITIVES = 1_372, 290
# A validated film costs a forward pass, about a third of a training step, and more if training takes crops.
FORWARD_SHARE = 1 / 3
CONFIGS = ROOT / "configs"


@dataclass(frozen=True)
class StepCost:
    """A traced forward and backward pass: seconds on the GPU and on the host, and bytes of the most memory."""

    gpu_s: float
    host_s: float
    bytes: int

    @property
    def seconds(self) -> float:
        return max(self.gpu_s, self.host_s)


@dataclass(frozen=True)
class Estimate:
    """A stage of an experiment on one GPU: films per second, bytes, and hours of a fold if no epoch is saved."""

    stage: str
    rate: float
    bytes: int
    hours: float


def step_cost(experiment: Experiment, stage: StageConfig, card: Card) -> StepCost:
    """Trace a micro-batch of a stage and its optimizer step in bf16, without a GPU and without memory for tensors."""
    saved: dict[int, torch.UntypedStorage] = {}  # what the backward pass needs; holding it keeps the keys unique

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        saved[storage._cdata] = storage
        return tensor

    with FakeTensorMode():
        model = build_model(experiment.model, pretrained=False).train()
        size, channels = stage.image_size, experiment.model.in_channels
        optimizer = torch.optim.Adam(model.parameters())
        images = torch.randn(stage.micro_batch, channels, size, size)
        masks = torch.zeros(stage.micro_batch, 1, size, size)

        def step() -> None:
            with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
                with torch.autocast("cpu", dtype=torch.bfloat16):
                    logits, classes = split_outputs(model(images))
                losses = combo_loss(logits, masks, stage.loss, classes)
            losses["loss"].backward()
            optimizer.step()

        step()  # creates the optimizer's state
        saved.clear()
        operators = trace(step)
        weights = sum(parameter.numel() for parameter in model.parameters())
    # Weights, gradients, two moments and, if there is one, the average, in float32.
    state = 4 * weights * (4 + (stage.optim.ema_decay is not None))
    activations = sum(storage.nbytes() for storage in saved.values())
    gpu_s = roofline_seconds(operators, card) / ROOFLINE_SHARE
    return StepCost(gpu_s, len(operators) * HOST_S, state + activations)


def split_of(stage: StageConfig) -> FoldSplit:
    """Return a fold of the competition's films for a stage. Only the numbers of films matter."""
    count, positives = FILMS * (FOLDS - 1) // FOLDS, POSITIVES * (FOLDS - 1) // FOLDS
    if stage.always_train:
        count, positives = count + MORE_FILMS, positives + MORE_POSITIVES
    rows = np.arange(count)
    areas = np.full(positives, 1000)
    return FoldSplit(rows, rows[:positives], rows[positives:], np.arange(count, count + FILMS // FOLDS), areas)


def estimates(experiment: Experiment, card: Card) -> list[Estimate]:
    """Return the estimate of each stage on one GPU, with all epochs and without repetitions."""
    costs: dict[tuple[Any, ...], StepCost] = {}
    lines = []
    for stage in experiment.stages:
        key = (stage.image_size, stage.micro_batch, stage.loss, stage.optim.ema_decay is None)
        if key not in costs:
            costs[key] = step_cost(experiment, stage, card)
        cost, plan = costs[key], EpochPlan(split_of(stage), stage, experiment.seed, 1)
        rate = min(stage.micro_batch / cost.seconds, LOADER_RATE)
        assert accumulation(stage, 1) * stage.micro_batch == stage.global_batch
        larger = (stage.film_size / stage.image_size) ** 2
        validated = stage.epochs * len(plan.split.validation) * FORWARD_SHARE * larger
        films = plan.total_steps * stage.global_batch + validated
        lines.append(Estimate(stage.name, rate, cost.bytes, films / rate / 3600))
    return lines


def shipped_experiments() -> list[Path]:
    """Return the configs of experiments that a user trains, without those that others build on."""
    bases = {"base", "recipe_a", "recipe_e", "demo"}
    return [path for path in sorted(CONFIGS.glob("*.yaml")) if path.stem not in bases]


def lines_of(paths: Sequence[Path], card: Card) -> list[list[str]]:
    """Return the table: a line per experiment, below its head."""
    lines = [["experiment", "films/s", "memory", "hours per fold", "hours for five folds"]]
    for path in paths:
        stages = estimates(load_config(path).experiment, card)
        rates = sorted(stage.rate for stage in stages)
        hours = sum(stage.hours for stage in stages)
        span = f"{rates[0]:.0f}" if rates[-1] - rates[0] < 1 else f"{rates[0]:.0f} to {rates[-1]:.0f}"
        memory = max(stage.bytes for stage in stages) / 1e9
        lines.append([f"`{path.stem}`", span, f"{memory:.0f} GB", f"{hours:.1f}", f"{FOLDS * hours:.1f}"])
    return lines


def markdown() -> str:
    """Return the table of docs/reproduce.md."""
    lines = lines_of(shipped_experiments(), CARDS[CARD])
    return table(lines[0], lines[1:])


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, action="append", help="config of an experiment (default: all shipped)")
    parser.add_argument("--markdown", action="store_true", help="print the table of docs/reproduce.md")
    arguments = parser.parse_args()
    if arguments.markdown:
        print(markdown(), end="")
        return 0
    print(f"Estimated on one {CARD}, with all epochs and without repetitions. Nothing here is measured.")
    for path in arguments.config or shipped_experiments():
        for each in estimates(load_config(path).experiment, CARDS[CARD]):
            memory = f"{each.bytes / 1e9:.1f} GB"
            print(f"{path.stem} {each.stage}: {each.rate:.1f} films/s, {memory}, {each.hours:.1f} h per fold")
    return 0


if __name__ == "__main__":
    sys.exit(main())
