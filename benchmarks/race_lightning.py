"""Train as the tutorials of segmentation_models_pytorch do, for benchmarks.race, in race-lightning.txt's environment.

    python -m benchmarks.race_lightning --pictures PICTURES --out FOLDER --seed 0 --cap 10800

Loss, optimizer, learning rate, schedule and metrics are those of the LightningModule in binary_segmentation_intro.ipynb
(P. Iakubovskii, segmentation_models.pytorch, examples/). Network, batch and number of epochs are those of its
binary_segmentation_buildings.py, as the notebook's batch of 64 would be two steps in an epoch. The augmentation is that
of its camvid_segmentation_multiclass.ipynb, but for hue and saturation, which grey films do not have. Unlike theirs,
the network has one input channel and random weights.
"""

import argparse
from pathlib import Path
from typing import Any

import albumentations as A
import cv2
import lightning.pytorch as pl
import numpy as np
import segmentation_models_pytorch as smp
import torch
from torch.utils.data import DataLoader, Dataset

from benchmarks.race_clock import FACTS, Clock, Facts, save_facts, save_maps, versions_of
from benchmarks.race_films import DATASET, fold_keys
from pneumo_dist.scoring.rounding import to_p8
from shards.parent import die_with_parent

ARCHITECTURE, ENCODER = "Unet", "resnet34"
BATCH, EPOCHS, RATE, LEAST_RATE = 8, 200, 2e-4, 1e-5
WORKERS = 2
# Means over ImageNet's three channels.
MEAN, DEVIATION = 0.449, 0.226
Film = dict[str, torch.Tensor]


class Films(Dataset[Film]):
    """Pictures of some films: image (1, side, side) from 0 to 1, and mask (1, side, side) of 0 and 1."""

    def __init__(self, pictures: Path, keys: list[str], transform: A.Compose | None = None) -> None:
        self._folder, self._keys, self._transform = pictures / DATASET, keys, transform

    def __len__(self) -> int:
        return len(self._keys)

    def __getitem__(self, index: int) -> Film:
        key = self._keys[index]
        paths = (self._folder / f"imagesTr/{key}_0000.png", self._folder / f"labelsTr/{key}.png")
        image, mask = (cv2.imread(str(path), cv2.IMREAD_GRAYSCALE) for path in paths)
        if self._transform is not None:
            film = self._transform(image=image, mask=mask)
            image, mask = film["image"], film["mask"]
        return {
            "image": torch.from_numpy(np.array(image, np.float32)[None] / 255),
            "mask": torch.from_numpy(np.array(mask, np.float32)[None]),
        }


def augmentation(side: int) -> A.Compose:
    """Return the training transforms of the CamVid tutorial, at this size."""
    return A.Compose(
        [
            A.HorizontalFlip(p=0.5),
            A.ShiftScaleRotate(scale_limit=0.5, rotate_limit=0, shift_limit=0.1, p=1, border_mode=0),
            A.PadIfNeeded(min_height=side, min_width=side),
            A.RandomCrop(height=side, width=side),
            A.GaussNoise(p=0.2),
            A.Perspective(p=0.5),
            A.OneOf([A.CLAHE(p=1), A.RandomBrightnessContrast(p=1), A.RandomGamma(p=1)], p=0.9),
            A.OneOf([A.Sharpen(p=1), A.Blur(blur_limit=3, p=1), A.MotionBlur(blur_limit=3, p=1)], p=0.9),
            A.RandomBrightnessContrast(p=0.9),
        ]
    )


class Segmentation(pl.LightningModule):  # type: ignore[misc]
    """The tutorials' module: Dice loss, Adam with a cosine schedule, and IoU of each epoch."""

    def __init__(self, steps: int) -> None:
        super().__init__()
        self.model = smp.create_model(
            ARCHITECTURE, encoder_name=ENCODER, encoder_weights=None, in_channels=1, classes=1
        )
        self._loss = smp.losses.DiceLoss(smp.losses.BINARY_MODE, from_logits=True)
        self._steps = steps
        self._counts: dict[str, list[tuple[torch.Tensor, ...]]] = {"train": [], "valid": []}

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.model((image - MEAN) / DEVIATION)
        return logits

    def training_step(self, batch: Film, _: int) -> torch.Tensor:
        return self._step(batch, "train")

    def validation_step(self, batch: Film, _: int) -> torch.Tensor:
        return self._step(batch, "valid")

    def on_train_epoch_end(self) -> None:
        self._log("train")

    def on_validation_epoch_end(self) -> None:
        self._log("valid")

    def configure_optimizers(self) -> dict[str, Any]:
        optimizer = torch.optim.Adam(self.parameters(), lr=RATE)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=self._steps, eta_min=LEAST_RATE)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def _step(self, batch: Film, part: str) -> torch.Tensor:
        logits, mask = self(batch["image"]), batch["mask"]
        predicted = (logits.sigmoid() > 0.5).long()
        self._counts[part].append(smp.metrics.get_stats(predicted, mask.long(), mode="binary"))
        loss: torch.Tensor = self._loss(logits, mask)
        return loss

    def _log(self, part: str) -> None:
        counts = [torch.cat(each) for each in zip(*self._counts[part], strict=True)]
        self._counts[part].clear()
        for name in ("micro-imagewise", "micro"):
            self.log(f"{part}_iou_{name}", smp.metrics.iou_score(*counts, reduction=name), prog_bar=True)


class Scoring(pl.Callback):  # type: ignore[misc]
    """Runs the clock, stores maps after each epoch while it stops, and ends training at the cap."""

    def __init__(self, films: "DataLoader[Film]", keys: list[str], out: Path, cap: float) -> None:
        self._films, self._keys, self._out, self._cap = films, keys, out, cap
        self.clock, self.trained = Clock(), 0

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Film, number: int) -> None:
        self.clock.start()
        self.trained += len(batch["image"])

    def on_train_epoch_end(self, trainer: Any, module: Any) -> None:
        with self.clock.paused(), torch.no_grad():
            module.eval()
            maps = [to_p8(module(batch["image"]).sigmoid()) for batch in self._films]
            module.train()
            path = self._out / f"maps/{trainer.current_epoch + 1:06d}.npz"
            save_maps(path, self.clock.seconds, self._keys, np.concatenate(maps))
        trainer.should_stop |= self.clock.seconds >= self._cap


def settings_of(module: Segmentation, side: int, epochs: int) -> dict[str, str]:
    count = sum(weights.numel() for weights in module.parameters())
    return {
        "network": f"{ARCHITECTURE}, {ENCODER}, the decoder's default",
        "parameters": f"{count / 1e6:.1f} million",
        "image size": f"{side} x {side}",
        "batch": str(BATCH),
        "optimizer": "Adam",
        "learning rate": f"{RATE:g}",
        "schedule": f"cosine to {LEAST_RATE:g} over {epochs} epochs",
        "loss": "Dice (over the batch)",
        "augmentation": "flip, scale ±50 %, shift 10 %, noise, perspective, CLAHE or brightness or gamma, "
        "sharpening or blur, brightness and contrast",
        "films drawn": "each once in an epoch",
        "length": f"{epochs} epochs",
        "precision": "float32",
        "start": "random weights",
    }


def main() -> None:
    die_with_parent()
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pictures", type=Path, required=True, help="folder of the exported dataset")
    parser.add_argument("--out", type=Path, required=True, help="folder for maps and facts")
    parser.add_argument("--seed", type=int, default=0, help="seed of weights, order and augmentation")
    parser.add_argument("--cap", type=float, default=10_800.0, help="seconds of training at most")
    parser.add_argument("--epochs", type=int, default=EPOCHS, help=f"epochs of training at most (default {EPOCHS})")
    arguments = parser.parse_args()
    pl.seed_everything(arguments.seed, workers=True)
    torch.set_num_threads(WORKERS)
    training, validation = fold_keys(arguments.pictures)
    films = Films(arguments.pictures, validation)
    side = films[0]["image"].shape[-1]
    loader = DataLoader(
        Films(arguments.pictures, training, augmentation(side)), BATCH, shuffle=True, num_workers=WORKERS
    )
    module = Segmentation(arguments.epochs * len(loader))
    scoring = Scoring(DataLoader(films, BATCH), validation, arguments.out, arguments.cap)
    trainer = pl.Trainer(
        max_epochs=arguments.epochs,
        accelerator="cpu",
        default_root_dir=arguments.out,
        log_every_n_steps=1,
        callbacks=[scoring],
    )
    trainer.fit(module, loader, DataLoader(films, BATCH, num_workers=WORKERS))
    versions = versions_of("lightning", "segmentation_models_pytorch", "albumentations", "torch")
    settings = settings_of(module, side, arguments.epochs)
    save_facts(arguments.out / FACTS, Facts(settings, versions, scoring.clock.seconds, scoring.trained))


if __name__ == "__main__":
    main()
