"""A plain single-process training loop in the style of recipe C, to compare with: DataLoader, albumentations, float32.

    python -m benchmarks.plain_loop --shards SHARDS --config EXPERIMENT.yaml --goal 0.6 --cap 360 --out FOUND.json

It takes network, image size, batch size, Adam's learning rate and loss weights from the experiment, every film once an
epoch (no sampler), flips and turns them as the recipe does, and validates after each epoch. What it validates by is
the project's: exact Dice on the label grid, at the triplet with the best mean Dice. It stops at the goal or the cap.
"""

import argparse
import json
import os
import sys
import time
from pathlib import Path

# Before any import of albumentations: it would ask the network for a newer version of itself.
os.environ["NO_ALBUMENTATIONS_UPDATE"] = "1"

import albumentations as A
import cv2
import numpy as np
import torch
from albumentations.pytorch import ToTensorV2
from torch.utils.data import DataLoader, Dataset

from pneumo_dist.config.experiment import StageConfig
from pneumo_dist.config.load import load_config
from pneumo_dist.data.plan import Indices, split_fold
from pneumo_dist.network.build import build_model
from pneumo_dist.network.losses import combo_loss
from pneumo_dist.scoring.counts import triplet_counts
from pneumo_dist.scoring.histograms import film_histograms
from pneumo_dist.scoring.masks import label_map, to_p8
from pneumo_dist.scoring.triplet import best_triplet
from shards.dataset.table import Shards

WORKERS = 2


class PlainFilms(Dataset[tuple[torch.Tensor, torch.Tensor, int]]):
    """Films as the recipe makes them: image (3, size, size) normalised, mask (1, size, size), table row."""

    def __init__(self, shards: Shards, rows: Indices, size: int, training: bool) -> None:
        self._shards, self._rows = shards, rows
        moves = [A.HorizontalFlip(p=0.5), A.Rotate(limit=10, p=0.5)] if training else []
        self._transform = A.Compose([*moves, A.Resize(size, size), A.Normalize(), ToTensorV2()])

    def __len__(self) -> int:
        return len(self._rows)

    def __getitem__(self, place: int) -> tuple[torch.Tensor, torch.Tensor, int]:
        row = int(self._rows[place])
        image, mask = (np.frombuffer(self._shards.read(row, member), np.uint8) for member in ("image", "mask"))
        colour, grey = cv2.imdecode(image, cv2.IMREAD_COLOR), cv2.imdecode(mask, cv2.IMREAD_GRAYSCALE)
        made = self._transform(image=colour, mask=grey)
        return made["image"], (made["mask"] > 127).float()[None], row


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--shards", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True, help="experiment of one stage")
    parser.add_argument("--seed", type=int, default=0, help="of weights, order and augmentation (default 0)")
    parser.add_argument("--goal", type=float, default=0.6, help="positive Dice to stop at (default 0.6)")
    parser.add_argument("--cap", type=float, default=360.0, help="seconds to stop after (default 360)")
    parser.add_argument("--out", type=Path, required=True, help="JSON file of the epochs: seconds and positive Dice")
    arguments = parser.parse_args()
    cv2.setNumThreads(0)  # the workers are the parallelism
    experiment = load_config(arguments.config).experiment
    stage = experiment.stages[0]
    shards = Shards(arguments.shards)
    split = split_fold(shards, 0, always_train=False)
    torch.manual_seed(arguments.seed)
    model = build_model(experiment.model, pretrained=False)
    optimizer = torch.optim.Adam(model.parameters(), lr=stage.optim.lr)
    training = DataLoader(
        PlainFilms(shards, split.train, stage.image_size, training=True),
        batch_size=stage.global_batch,
        shuffle=True,
        drop_last=True,
        num_workers=WORKERS,
    )
    films = PlainFilms(shards, split.validation, stage.image_size, training=False)
    evaluation = DataLoader(films, batch_size=2 * stage.global_batch, num_workers=WORKERS)
    epochs: list[tuple[float, float]] = []
    started: float | None = None
    best = -1.0
    while True:
        model.train()
        for images, masks, _ in training:
            optimizer.zero_grad(set_to_none=True)
            torch.autograd.backward(combo_loss(model(images), masks, stage.loss)["loss"])
            optimizer.step()
            started = started or time.monotonic()
        positive_dice, mean_dice = validated(model, evaluation, shards, stage)
        if mean_dice > best:
            best = mean_dice
            torch.save(model.state_dict(), arguments.out.with_suffix(".pt"))
        assert started is not None, "an epoch has no batch"
        epochs.append((time.monotonic() - started, positive_dice))
        if positive_dice >= arguments.goal or epochs[-1][0] > arguments.cap:
            break
    arguments.out.write_text(json.dumps(epochs))
    return 0


@torch.no_grad()
def validated(
    model: torch.nn.Module,
    films: "DataLoader[tuple[torch.Tensor, torch.Tensor, int]]",
    shards: Shards,
    stage: StageConfig,
) -> tuple[float, float]:
    """Return Dice of the positive films and mean Dice at the triplet with the best mean Dice; and compute the loss."""
    model.eval()
    found = []
    for images, masks, rows in films:
        logits = model(images)
        combo_loss(logits, masks, stage.loss)  # the recipe's loop shows it
        for row, p8 in zip(rows.tolist(), to_p8(torch.sigmoid(logits)), strict=True):
            found.append(film_histograms(label_map(p8, shards.grid(row)), shards.label(row)))
    histograms = np.stack(found)
    best = triplet_counts(histograms, best_triplet(histograms)[0]).score()
    return best.positive_dice, best.dice


if __name__ == "__main__":
    sys.exit(main())
