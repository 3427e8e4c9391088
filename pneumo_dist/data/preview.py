"""A picture of the network's actual input: films from the loader, several epochs of each side by side."""

from collections.abc import Iterator

import cv2
import numpy as np

from pneumo_dist.config.experiment import DataConfig, Experiment
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.data.films import Batch, FilmReader, FilmRequest, InputSpec
from pneumo_dist.data.loader import make_batches
from pneumo_dist.data.plan import Indices, split_fold
from shards.dataset.table import Shards
from shards.drawing import Picture, outline_pixels
from shards.errors import InputError
from shards.palette import BACKGROUND, LABEL, TEXT

GAP, CAPTION = 4, 16


def show_batch(
    experiment: Experiment, stage: StageConfig, shards: Shards, fold: int, films: int, epochs: int, seed: int = 0
) -> Picture:
    """Return an RGB picture with a row for each training film: first without augmentation, then epoch by epoch.

    Without augmentation the whole film is shown. With it, a stage that trains on crops shows crops.
    Half of the films have a mask, if the fold has enough. Raises InputError for fewer than one film or epoch.
    """
    if films < 1 or epochs < 1:
        raise InputError(f"--films {films}, --epochs {epochs}: give at least 1 of each")
    split = split_fold(shards, fold, stage.always_train)
    rows = _choose(split.positives, split.negatives, films, seed)
    input_spec = InputSpec(stage.image_size, experiment.model.in_channels, experiment.data)
    reader = FilmReader(shards, input_spec, True, stage.augment, experiment.seed, stage.eval_image_size)
    # A request without an epoch is not augmented.
    requests = [
        [FilmRequest(int(row), epoch, 0 if epoch is not None else None) for row in rows]
        for epoch in (None, *range(epochs))
    ]
    columns = [_column(batch, input_spec.data) for batch in make_batches(reader, iter(requests), len(rows))]
    captions = ["not augmented", *(f"epoch {epoch + 1}" for epoch in range(epochs))]
    return np.concatenate([_captioned(column, text) for column, text in zip(columns, captions, strict=True)], axis=1)


def _choose(positives: Indices, negatives: Indices, films: int, seed: int) -> Indices:
    random = np.random.default_rng(seed)
    shuffled = [random.permutation(rows) for rows in (positives, negatives)]
    with_mask = max((films + 1) // 2, films - len(negatives))
    return np.concatenate([shuffled[0][:with_mask], shuffled[1][: films - min(with_mask, len(positives))]])


def _column(batch: Batch, data: DataConfig) -> Iterator[Picture]:
    images, masks = batch.images[:, 0].float().cpu().numpy(), batch.masks[:, 0].cpu().numpy()
    for image, mask in zip(images, masks, strict=True):
        grey = np.clip(np.rint((image * data.std[0] + data.mean[0]) * 255.0), 0, 255).astype(np.uint8)
        picture = np.repeat(grey[:, :, None], 3, axis=2)
        outline_pixels(picture, (mask > 0.5).astype(np.uint8), LABEL, max(1, len(grey) // 256))
        yield picture


def _captioned(column: Iterator[Picture], text: str) -> Picture:
    framed = [cv2.copyMakeBorder(p, GAP, 0, GAP, 0, cv2.BORDER_CONSTANT, value=(BACKGROUND,) * 3) for p in column]
    strip = np.full((CAPTION, framed[0].shape[1], 3), BACKGROUND, np.uint8)
    cv2.putText(strip, text, (GAP, CAPTION - 4), cv2.FONT_HERSHEY_SIMPLEX, 0.4, TEXT, 1, cv2.LINE_AA)
    return np.concatenate([strip, *(np.asarray(picture, np.uint8) for picture in framed)])
