"""Train with a plain single-process loop in the style of recipe C: DataLoader, albumentations, float32.

    python -m benchmarks.plain_loop --shards SHARDS --config EXPERIMENT.yaml --goal 0.6 --cap 360 --out FOUND.json

Network, image size, batch size, Adam's learning rate and loss weights come from the experiment. Each epoch uses every
film once (no sampler), flips and rotates films as the recipe does, and ends with a validation by the project's measure:
exact Dice on the label grid, at the triplet with the best mean Dice. The loop stops at the cap, or once it has reached
the goal and run --epochs epochs.
"""

import argparse
import json
import sys
import time
from pathlib import Path

import numpy as np
import torch
from torch.utils.data import DataLoader

from benchmarks.common import single_threaded
from benchmarks.race_score import best_score
from benchmarks.reference_films import ReferenceFilms, recipe_c
from pneumo_dist.config.load import load_config
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.plan import split_fold
from pneumo_dist.network.build import build_model
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import label_map
from pneumo_dist.scoring.rounding import to_p8
from shards.dataset.table import Shards

WORKERS = 2


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="experiment with one stage")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation (default 0)")
    parser.add_argument("--goal", type=float, default=0.6, help="positive Dice at which to stop (default 0.6)")
    parser.add_argument("--cap", type=float, default=360.0, help="maximum duration in seconds (default 360)")
    parser.add_argument("--epochs", type=int, default=1, help="least number of epochs, within the cap (default 1)")
    parser.add_argument(
        "--out", type=Path, required=True, help="JSON file for each epoch's seconds, positive and mean Dice"
    )
    arguments = parser.parse_args()
    single_threaded()
    experiment = load_config(arguments.config).experiment
    stage, channels = experiment.stages[0], experiment.model.in_channels
    shards = Shards(arguments.shards)
    split = split_fold(shards, 0, always_train=False)
    torch.manual_seed(arguments.seed)
    model = build_model(experiment.model, pretrained=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=stage.optim.lr)
    training = DataLoader(
        ReferenceFilms(shards, split.train, stage.image_size, recipe_c()),
        batch_size=stage.global_batch,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
    )
    films = ReferenceFilms(shards, split.validation, stage.image_size)
    evaluation = DataLoader(films, batch_size=2 * stage.global_batch, num_workers=WORKERS)
    epochs: list[tuple[float, float, float]] = []
    started: float | None = None
    best = -1.0
    while True:
        model.train()
        for images, masks, _ in training:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(combo_loss(model(images[:, :channels]), masks, stage.loss)["loss"])
            optimizer.step()
            started = started or time.monotonic()
        positive_dice, mean_dice = validated(model, evaluation, shards, stage, channels)
        if mean_dice > best:
            best = mean_dice
            torch.save(model.state_dict(), arguments.out.with_suffix(".pt"))
        assert started is not None, "an epoch has no batch"
        epochs.append((time.monotonic() - started, positive_dice, mean_dice))
        has_goal = max(each[1] for each in epochs) >= arguments.goal
        if (has_goal and len(epochs) >= arguments.epochs) or epochs[-1][0] > arguments.cap:
            break
    arguments.out.write_text(json.dumps(epochs))
    return 0


@torch.no_grad()
def validated(
    model: torch.nn.Module,
    films: "DataLoader[tuple[torch.Tensor, torch.Tensor, int]]",
    shards: Shards,
    stage: StageConfig,
    channels: int,
) -> tuple[float, float]:
    """Return Dice of the positive films and mean Dice at the triplet with the best mean Dice."""
    model.eval()
    films_histograms = []
    for images, masks, rows in films:
        logits = model(images[:, :channels])
        combo_loss(logits, masks, stage.loss)  # the recipe's loop reports it, so its cost counts
        for row, p8 in zip(rows.tolist(), to_p8(torch.sigmoid(logits)), strict=True):
            films_histograms.append(film_histograms(label_map(p8, shards.grid(row)), shards.label(row)))
    return best_score(np.stack(films_histograms))


if __name__ == "__main__":
    sys.exit(main())
