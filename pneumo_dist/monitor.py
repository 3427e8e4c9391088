"""What a person watches: TensorBoard, metrics.jsonl, summary.csv and a progress bar. Only rank 0 writes."""

import csv
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import numpy.typing as npt
from torch.utils.tensorboard import SummaryWriter

from pneumo_dist.validation import Overlay
from shards import console
from shards.files import atomic_write

METRICS, SUMMARY, BOARD = "metrics.jsonl", "summary.csv", "tensorboard"
LABEL_COLOUR, PREDICTION_COLOUR = (80, 220, 80), (235, 80, 60)


class Monitor:
    """Writes the logs of one stage; on ranks other than 0 every method does nothing.

    `position` is the length of metrics.jsonl at the checkpoint that training goes on from: what a killed run wrote
    after it is cut off, so that no line stands twice.
    """

    def __init__(self, folder: Path, active: bool, position: int, step: int, first_step: bool) -> None:
        self._folder = folder
        self._active = active
        self._bar: Any = None
        if not active:
            return
        folder.mkdir(parents=True, exist_ok=True)
        self._metrics = (folder / METRICS).open("ab")
        self._metrics.truncate(position)
        self._board = SummaryWriter(folder / BOARD, purge_step=None if first_step else step + 1)

    @property
    def position(self) -> int:
        """Bytes of metrics.jsonl so far, on disk."""
        if not self._active:
            return 0
        self._metrics.flush()
        os.fsync(self._metrics.fileno())
        return self._metrics.seek(0, os.SEEK_END)

    def start_epoch(self, label: str, steps: int, done: int) -> None:
        """Open the epoch's progress bar."""
        if self._active:
            self._bar = console.progress(steps, "step", label)
            self._bar.update(done)

    def step(self, step: int, scalars: Mapping[str, float]) -> None:
        """Note one optimizer step: TensorBoard under train_step/, loss and lr in the bar."""
        if not self._active:
            return
        for name, value in scalars.items():
            self._board.add_scalar(f"train_step/{name}", value, step)
        self._bar.set_postfix(loss=f"{scalars['loss']:.4f}", lr=f"{scalars['lr']:.2e}", refresh=False)
        self._bar.update(1)

    def epoch(self, step: int, record: Mapping[str, Any], overlays: Sequence[Overlay], top: float) -> None:
        """Note a validated epoch: a line of metrics.jsonl, TensorBoard scalars and overlays, one line on stdout."""
        if not self._active:
            return
        self._bar.close()
        self._metrics.write(json.dumps(record).encode() + b"\n")
        for name, value in record.items():
            if isinstance(value, float):
                self._board.add_scalar(f"epoch/{name}", value, step)
        for overlay in overlays:
            self._board.add_image(f"validation/{overlay.key}", draw_overlay(overlay, top), step, dataformats="HWC")
        self._board.flush()
        print(
            f"{record['stage']} epoch {record['epoch'] + 1}: loss {record['loss']:.4f}, score {record['score']:.4f}, "
            f"positive Dice {record['positive_dice']:.4f}, {record['images_per_s']:.1f} images/s",
            flush=True,
        )

    def close(self) -> None:
        """Flush and close everything."""
        if self._active:
            if self._bar is not None:
                self._bar.close()
            self._metrics.close()
            self._board.close()


def write_summary(folder: Path, history: Sequence[Mapping[str, Any]]) -> None:
    """Write summary.csv, one row per validated epoch, from the history that the checkpoint holds."""
    if not history:
        return
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(history[0]), lineterminator="\n")
    writer.writeheader()
    writer.writerows(history)
    atomic_write(folder / SUMMARY, text.getvalue())


def draw_overlay(overlay: Overlay, threshold: float) -> npt.NDArray[np.uint8]:
    """Return an RGB uint8 (size, size, 3) picture: label outlined green, prediction above `threshold` red."""
    picture = np.repeat(overlay.image[:, :, None], 3, axis=2)
    predicted = (overlay.p8 > threshold * 255).astype(np.uint8)
    for mask, colour in ((overlay.label, LABEL_COLOUR), (predicted, PREDICTION_COLOUR)):
        outlines, _ = cv2.findContours(np.ascontiguousarray(mask), cv2.RETR_LIST, cv2.CHAIN_APPROX_NONE)
        cv2.drawContours(picture, outlines, -1, colour, 1)
    return picture
