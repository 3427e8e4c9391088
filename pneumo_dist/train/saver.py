"""Saving a stage: its checkpoints, and the files that follow from its history."""

import time
from collections.abc import Sequence

from pneumo_dist import __version__
from pneumo_dist.config.stage import StageConfig
from pneumo_dist.ranks.watchdog import SAVE
from pneumo_dist.runs.checkpoint import State, top_steps
from pneumo_dist.runs.checkpoint_writer import CheckpointWriter
from pneumo_dist.runs.fold_run import FoldRun
from pneumo_dist.runs.lineage import Lineage
from pneumo_dist.runs.logs import write_summary
from pneumo_dist.source import source_digest
from pneumo_dist.train.epoch_log import EpochLog
from pneumo_dist.train.monitor import Monitor
from pneumo_dist.train.start import Position
from pneumo_dist.train.step import Learner


class Saver:
    """Writes the checkpoints of one stage. All ranks call `save`; rank 0 writes."""

    def __init__(self, run: FoldRun, stage: StageConfig, lineage: Lineage) -> None:
        self._run, self._stage = run, stage
        self._writer = CheckpointWriter(run.checkpoints(stage.name))
        self._saved_at = time.monotonic()
        self._facts = {
            "version": __version__,
            "source": source_digest(),
            "experiment": run.experiment.model_dump(mode="json"),
            "stage": stage.name,
            "fold": run.fold,
            "world": run.ranks.world,
            "lineage": lineage.to_plain(),
        }

    def is_due(self) -> bool:
        """Return whether `save_minutes` have passed on rank 0; always False on other ranks, which learn it from 0."""
        return self._run.ranks.is_main and time.monotonic() - self._saved_at > self._stage.save_minutes * 60.0

    def save(
        self, position: Position, history: Sequence[State], learner: Learner, log: EpochLog, monitor: Monitor
    ) -> None:
        """Start to write a checkpoint. The ranks share their buffers and the sums of the epoch first."""
        self._run.ranks.beat(SAVE)
        learner.share_buffers()
        self._saved_at = time.monotonic()
        sums = log.totals()
        if not self._run.ranks.is_main:
            return
        monitor.sync()
        saved = list(history)
        state = {
            **self._facts,
            "position": dict(vars(position)),
            "history": saved,
            "sums": sums,
            **learner.state(),
        }
        self._writer.save(position.total, state, after=lambda: tidy(self._run, self._stage, saved))

    def wait(self) -> None:
        """Wait for the last save, whether it succeeds or not."""
        self._writer.wait()

    def finish(self) -> None:
        """Wait for the last save. Raises OSError if it failed."""
        self._run.ranks.beat(SAVE)
        error = self._writer.wait()
        if error is not None:
            raise error


def tidy(run: FoldRun, stage: StageConfig, history: Sequence[State]) -> None:
    """Update everything that follows from a stage's history: which checkpoints are kept, links, summary.csv."""
    if run.ranks.is_main:
        run.checkpoints(stage.name).keep(top_steps(history, stage.top_k))
        write_summary(run.folder / stage.name, len(history))
