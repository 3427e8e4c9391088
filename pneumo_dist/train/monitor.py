"""Logs of a stage: TensorBoard, metrics.jsonl and a progress bar. Only rank 0 writes."""

import json
import os
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from tensorboard.compat.proto.summary_pb2 import Summary
from torch.utils.tensorboard import SummaryWriter
from torch.utils.tensorboard.summary import hparams

from pneumo_dist.config.experiment import Experiment
from pneumo_dist.config.loss import TERMS
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.runs.logs import METRICS, logged_bytes
from pneumo_dist.train.class_validation import ClassValidation
from pneumo_dist.train.validation import Overlay, Validation
from shards import console
from shards import overlay as films
from shards.drawing import Picture, encode_image
from shards.errors import InputError
from shards.stored import open_append

BOARD = "tensorboard"
BEST_SCORE = "best_score"
# Tags of an epoch's figures that are not epoch/NAME, so that related ones are side by side.
TAGS = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "training_dice": "pixel_dice/training",
    "score": "film_dice/score",
    "positive_dice": "film_dice/positives",
    "dice_at_half": "film_dice/at_half",
    "always_empty": "film_dice/always_empty",
}
# Those of a classifier.
CLASS_TAGS = {
    "loss": "loss/training",
    "validation_loss": "loss/validation",
    "training_f1": "film_f1/training",
    "score": "film_roc_auc/score",
    "accuracy_at_half": "film_accuracy/at_half",
}
PIXEL_DICE = "pixel_dice/validation"
# TensorBoard's tab Custom Scalars draws each chart's tags into one picture.
CHARTS = {
    "training and validation": {
        "loss": ["Multiline", ["loss/training", "loss/validation"]],
        "Dice of all pixels at 0.5": ["Multiline", ["pixel_dice/training", "pixel_dice/validation"]],
        "mean Dice over validation films": ["Multiline", list(TAGS.values())[3:]],
    }
}
_LOSSES = CHARTS["training and validation"]["loss"]
CLASS_CHARTS = {"training and validation": {"loss": _LOSSES, "ROC AUC": ["Multiline", [CLASS_TAGS["score"]]]}}
# Keys that identify a record's epoch.
EPOCH_KEYS = ("stage", "epoch", "step")


class Monitor:
    """Writes the logs of one stage. If it is not `active`, every method does nothing.

    Training resumes after `step` optimizer steps and `epochs` validated epochs. Lines that a killed run wrote to
    metrics.jsonl after that are cut off, so that no line appears twice.

    A thread draws the pictures of an epoch while the next one trains. Its errors are raised by the next `epoch` or by
    `close`. A killed run may lose the pictures of its last epoch, and nothing else.
    """

    def __init__(self, folder: Path, active: bool, step: int, epochs: int, first_step: bool) -> None:
        self._folder = folder
        self._active = active
        self._bar: Any = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        if (folder / BOARD).is_symlink():
            raise InputError(f"{folder / BOARD}: is a symbolic link, which could point to any file; remove it")
        self._metrics = open_append(folder / METRICS)
        self._metrics.truncate(logged_bytes(folder / METRICS, step, epochs))
        self._board = SummaryWriter(folder / BOARD, purge_step=None if first_step else step + 1)
        self._painter = ThreadPoolExecutor(1, "pictures")
        self._pictures: Future[None] | None = None

    def sync(self) -> None:
        """Flush metrics.jsonl to disk. Call it before saving a checkpoint, so that no line of its epochs is lost."""
        if self._active:
            self._metrics.flush()
            os.fsync(self._metrics.fileno())

    def describe(
        self, config: str, settings: Mapping[str, str | float | bool], charts: Mapping[str, Any] = CHARTS
    ) -> None:
        """Log the resolved config as text, the charts, and the settings for TensorBoard's table of runs (HPARAMS).

        The table shows the scalar `best_score` of every run, also while it trains.
        """
        if self._active:
            self._board.add_text("config", f"```\n{config}\n```", 0)
            self._board.add_custom_scalars(charts)
            experiment, start, _ = hparams(dict(settings), {BEST_SCORE: 0.0})
            self._add(experiment)
            self._add(start)

    def outcome(self) -> None:
        """Log that the stage has reached its end, for the same table."""
        if self._active:
            self._add(hparams({}, {})[2])

    def _add(self, summary: Any, step: int | None = None) -> None:
        # SummaryWriter.add_hparams would open a second events file.
        self._board._get_file_writer().add_summary(summary, step)

    def start_epoch(self, label: str, steps: int, done: int) -> None:
        """Open the epoch's progress bar."""
        if self._active:
            self._bar = console.progress(steps, "step", label)
            self._bar.update(done)

    def step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Log an optimizer step: scalars under train_step/ in TensorBoard, loss and lr in the progress bar."""
        if not self._active:
            return
        for name, value in scalars.items():
            self._board.add_scalar(f"train_step/{_loss_name(name)}", value, step)
        self._bar.set_postfix(loss=f"{scalars['loss']:.4f}", lr=f"{scalars['lr']:.2e}", refresh=False)
        self._bar.update(1)

    def bad_step(self, stage: str, epoch: int, step: int, films: Sequence[str]) -> None:
        """Log a step that was skipped because of a non-finite gradient, with the keys of its films."""
        if not self._active:
            return
        record = {"stage": stage, "epoch": epoch, "step": step, "bad_step_films": list(films)}
        self._metrics.write(json.dumps(record).encode() + b"\n")
        self._board.add_scalar("train_step/bad", 1.0, step)
        self._bar.write(f"step {step} of {stage} is skipped: its gradient is not finite; films {', '.join(films)}")

    def epoch(self, step: int, record: Mapping[str, Any], result: Validation | ClassValidation, best: float) -> None:
        """Log a validated epoch: a line in metrics.jsonl and on stdout, scalars and pictures in TensorBoard.

        `best` is the best score of the stage so far.
        """
        if not self._active:
            return
        self._bar.close()
        self._metrics.write(json.dumps(record).encode() + b"\n")
        is_classifier = isinstance(result, ClassValidation)
        for name, value in record.items():
            if name not in EPOCH_KEYS:
                self._board.add_scalar(epoch_tag(name, is_classifier), value, step)
        self._board.add_scalar(BEST_SCORE, best, step)
        if isinstance(result, ClassValidation):
            score = f"ROC AUC {result.score:.4f}, accuracy {result.accuracy:.4f}"
        else:
            score = f"score {record['score']:.4f}, positive Dice {record['positive_dice']:.4f}"
            self._maps(result, step)
        self._board.flush()
        console.say(
            f"{record['stage']} epoch {record['epoch'] + 1}: loss {record['loss']:.4f}, {score}, "
            f"{record['images_per_s']:.1f} images/s"
        )

    def _maps(self, result: Validation, step: int) -> None:
        """Log what only a segmenter has: the Dice of all pixels, pictures, and the precision-recall curve of pixels."""
        self._board.add_scalar(PIXEL_DICE, pixel_dice(result.pixels), step)
        self._finish_pictures()
        self._pictures = self._painter.submit(self._draw, result, step)
        true, false, rest, miss, precision, recall = (values[::2][:127] for values in pr_curve(result.pixels))
        # TensorBoard draws at most 127 thresholds.
        self._board.add_pr_curve_raw("validation/pixels", true, false, rest, miss, precision, recall, step, 127)

    def _draw(self, result: Validation, step: int) -> None:
        """Log the overlays of an epoch. OpenCV encodes them without Python's lock, which SummaryWriter would hold."""
        for overlay in result.overlays:
            picture = draw_overlay(overlay, result.triplet.bottom)
            height, width, _ = picture.shape
            image = Summary.Image(height=height, width=width, colorspace=3, encoded_image_string=encode_image(picture))
            summary = Summary(value=[Summary.Value(tag=overlay_tag(overlay), image=image)])
            self._add(summary, step)
        self._board.flush()

    def _finish_pictures(self) -> None:
        """Wait for the pictures of the last epoch. Raises their error."""
        pictures, self._pictures = self._pictures, None
        if pictures is not None:
            pictures.result()

    def close(self) -> None:
        """Finish the pictures, flush and close everything."""
        if not self._active:
            return
        try:
            self._finish_pictures()
        finally:
            self._painter.shutdown()
            if self._bar is not None:
                self._bar.close()
            self._metrics.close()
            self._board.close()


def pr_curve(pixels: npt.NDArray[np.int64]) -> tuple[npt.NDArray[np.float64], ...]:
    """Return true and false positives, true and false negatives, precision and recall, each float64 (256,).

    `pixels`, int64 (2, 256), counts p8 values over all pixels and over those with a pneumothorax. At threshold t / 256,
    a pixel is positive if p8 >= t.
    """
    called, hit = (counts[::-1].cumsum()[::-1].astype(np.float64) for counts in pixels)
    everything, truth = called[0], hit[0]
    miss, false = truth - hit, called - hit
    precision = np.divide(hit, called, out=np.ones_like(hit), where=called > 0)
    recall = np.divide(hit, truth, out=np.ones_like(hit), where=truth > 0)
    return hit, false, everything - called - miss, miss, precision, recall


def pixel_dice(pixels: npt.NDArray[np.int64]) -> float:
    """Return the Dice of all pixels at 0.5, for counts as in `pr_curve`; 1 if there are none in masks or labels."""
    called, hit, truth = int(pixels[0, 128:].sum()), int(pixels[1, 128:].sum()), int(pixels[1].sum())
    return 2 * hit / (called + truth) if called + truth else 1.0


def overlay_tag(overlay: Overlay) -> str:
    """Return the tag of an overlay, with its Dice to a tenth: with more digits, every epoch would have its own tag."""
    return f"validation/{overlay.name} Dice {overlay.dice:.1f}"


def epoch_tag(name: str, is_classifier: bool = False) -> str:
    """Return the tag of an epoch's figure of metrics.jsonl."""
    return (CLASS_TAGS if is_classifier else TAGS).get(name, f"epoch/{_loss_name(name)}")


def charts(is_classifier: bool) -> Mapping[str, Any]:
    """Return the charts of the tab Custom Scalars."""
    return CLASS_CHARTS if is_classifier else CHARTS


def _loss_name(name: str) -> str:
    """Return a figure's name, in which a term of the loss says that it is one: the Dice loss is no Dice."""
    return f"{name}_loss" if name in TERMS else name


def settings(experiment: Experiment, stage: StageConfig, fold: int) -> dict[str, str | float | bool]:
    """Return what people vary between runs, by the keys of the config, for TensorBoard's table of runs."""
    model, optim = experiment.model, stage.optim
    return {
        "experiment": experiment.name,
        "stage": stage.name,
        "fold": fold,
        "seed": experiment.seed,
        "amp": experiment.amp,
        "model.arch": model.arch,
        "model.encoder": model.encoder if model.arch != "fcn" else "none",
        "model.encoder_weights": model.encoder_weights or ("file" if model.encoder_weights_file else "none"),
        "model.norm": model.norm,
        "model.norm_groups": model.norm_groups if model.norm == "group_ws" else 0,
        "image_size": stage.image_size,
        "eval_image_size": stage.film_size,
        "epochs": stage.epochs,
        "global_batch": stage.global_batch,
        "sample_rate": stage.sample_rate or 0.0,
        "freeze_batch_norm": stage.freeze_batch_norm,
        **_soft_labels(stage),
        "optim.name": optim.name,
        "optim.lr": optim.lr,
        "optim.weight_decay": optim.weight_decay,
        "optim.ema_decay": optim.ema_decay or 0.0,
        "schedule.name": stage.schedule.name,
        **{f"loss.{name}": float(getattr(stage.loss, name)) for name in TERMS},
        "loss.bce_positive_weight": stage.loss.bce_positive_weight,
        "loss.dice_over": stage.loss.dice_over,
        "loss.dice_films": stage.loss.dice_films,
        "loss.dice_form": stage.loss.dice_form,
    }


def draw_overlay(overlay: Overlay, threshold: float) -> Picture:
    """Return an RGB uint8 (size + margin, size, 3) picture with label, prediction, legend and caption.

    Pixels above `threshold`, from 0 to 1, are predicted on a film that is called positive.
    """
    predicted = ((overlay.p8 > threshold * 255) & overlay.called).astype(np.uint8)
    label, call = ("positive" if each else "negative" for each in (overlay.label.any(), overlay.called))
    caption = [overlay.key, f"Dice {overlay.best_dice:.2f}, label {label}, call {call}"]
    return films.draw_overlay(overlay.image, overlay.label, predicted, caption)


def _soft_labels(stage: StageConfig) -> dict[str, str | float]:
    distillation, learns = stage.distillation, stage.unlabelled
    teacher = learns.mean_teacher if learns else None
    return {
        "distillation.from": distillation.source if distillation else "none",
        "distillation.share": distillation.share if distillation else 0.0,
        "unlabelled.from": (learns.source if learns else None) or "none",
        "unlabelled.share": learns.share if learns else 0.0,
        "unlabelled.mean_teacher.weight": teacher.weight if teacher else 0.0,
    }
