"""An epoch's sums and speed, compared with a plain loop, on one rank and on several."""

import math
import time
from collections.abc import Iterator

import numpy as np
import numpy.typing as npt
import pytest
import torch

from pneumo_dist.data.films import Batch
from pneumo_dist.ranks.ranks import Ranks
from pneumo_dist.train.epoch_log import EpochLog
from pneumo_dist.train.step import Step

ALONE = Ranks.alone()
BATCH = Batch(torch.empty(0), torch.empty(0), np.arange(2))


class Told(Ranks):
    """A rank whose other ranks' sums are known."""

    others: npt.NDArray[np.float64]

    def sum(self, values: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        return np.asarray(self.others + values)


def step_of(loss: float, overlap: float, pixels: float, norm: float, **values: bool) -> Step:
    return Step((loss, loss / 2), overlap, pixels, norm, 0.1, 1.0, (0, 1), **values)


STEPS = [step_of(3.0, 10, 30, 0.5), step_of(1.0, 0, 10, 1.5), step_of(0.5, 20, 60, 4.0)]
BAD = step_of(math.nan, 5, 5, math.nan, is_bad=True)
OVERFLOWED = step_of(2.0, 5, 5, math.inf, overflowed=True)


def log_of(*steps: Step, ranks: Ranks = ALONE) -> EpochLog:
    log = EpochLog(("loss", "bce"), 4, ranks)
    for step in steps:
        log.add(step)
    return log


def test_means_are_over_the_steps_made() -> None:
    found = log_of(STEPS[0], BAD, STEPS[1], OVERFLOWED, STEPS[2], OVERFLOWED).means()
    expected = {"loss": 1.5, "bce": 0.75, "training_dice": 2 * 30 / 100, "grad_norm": 2.0}
    assert found == pytest.approx({**expected, "overflowed_steps": 2, "bad_steps": 1})


def test_epoch_without_a_step_has_no_losses_and_empty_masks_agree() -> None:
    assert log_of().means() == {**dict.fromkeys(("loss", "bce", "grad_norm", "overflowed_steps", "bad_steps"), 0.0)} | {
        "training_dice": 1.0
    }


def test_next_epoch_starts_at_zero() -> None:
    log = log_of(*STEPS, BAD)
    log.clear()
    log.add(STEPS[1])
    assert log.means() == log_of(STEPS[1]).means()


def test_sums_before_a_resume_are_on_rank_0_only() -> None:
    before = log_of(*STEPS, BAD).totals()
    expected = log_of(*STEPS, BAD, STEPS[0]).means()
    ranks = [Told(rank, 2, rank, torch.device("cpu")) for rank in range(2)]
    logs = [EpochLog(("loss", "bce"), 4, each) for each in ranks]
    for log in logs:
        log.restore(before)
        log.add(STEPS[0])  # both ranks: the mean of the run equals that of one
    for log, other, each in zip(logs, reversed(logs), ranks, strict=True):
        object.__setattr__(each, "others", other._sums)
        assert log.means() == pytest.approx(expected)


def test_speed_counts_the_steps_since_the_start() -> None:
    log = log_of(*STEPS)

    def batches() -> Iterator[Batch]:
        for _ in range(3):
            time.sleep(0.1)
            yield BATCH

    timed = log.timed(batches())
    next(timed)
    log.start()
    began = time.perf_counter()
    for _ in timed:
        time.sleep(0.1)
        log.add(STEPS[0])
    log.stop()
    taken = time.perf_counter() - began
    found = log.speed()
    assert found["images_per_s"] == pytest.approx(2 * 4 / taken, rel=0.05)
    assert 0.2 / taken <= found["data_wait_share"] <= 1 - 0.2 / taken
    assert found["peak_memory_mb"] > 50 and "peak_gpu_memory_mb" not in found
