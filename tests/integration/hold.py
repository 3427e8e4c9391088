"""Run `python -m pneumo_dist` and hold it at one moment, so that a test can kill it there.

    python tests/integration/hold.py MOMENT MARKER train --config …

One rank touches MARKER at the moment and stops; the others wait for it. Loader workers import this file too, so it
imports nothing slow.
"""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

Hold = Callable[[], None]

RANK, WORLD = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
IS_LAST_RANK = RANK == WORLD - 1


def during_a_write(hold: Hold) -> None:
    """Hold after the first 100 kB of the first epoch's last checkpoint."""
    from pneumo_dist.runs import checkpoint_folder
    from shards.files import NamedLater, atomic_named_later

    @contextmanager
    def held(folder: Path, prefix: str) -> Iterator[NamedLater]:
        with atomic_named_later(folder, prefix) as later:
            stream = later.stream

            def write(content: memoryview) -> int:
                written = stream.write(content)
                if stream.tell() > 100_000:
                    stream.flush()
                    hold()
                return written

            if prefix == "step-00000002":
                later.stream = mock.Mock(wraps=stream, write=write)
            yield later

    mock.patch.object(checkpoint_folder, "atomic_named_later", held).start()


def in_mid_epoch(hold: Hold) -> None:
    """Hold before the second epoch's second step, when the first epoch's last checkpoint exists."""
    from pneumo_dist.train.step import Learner

    step = Learner.step

    def held(self: Learner, batches: Any, accumulation: int, done: int, *others: Any) -> Any:
        if done == 3 and RANK == 0:  # this thread writes the checkpoints, one after the other
            hold()
        return step(self, batches, accumulation, done, *others)

    mock.patch.object(Learner, "step", held).start()


def during_validation(hold: Hold) -> None:
    """Hold when the first film of this process's first validation is scored."""
    from pneumo_dist.train import validation

    def held(*_: Any) -> Any:
        hold()

    if IS_LAST_RANK:
        mock.patch.object(validation, "film_histograms", held).start()


def between_stages(hold: Hold) -> None:
    """Hold before the second stage writes anything."""
    from pneumo_dist.train import fold
    from pneumo_dist.train.stage import train_stage

    def held(run: Any, services: Any, stage: Any, start: Any) -> Any:
        if stage.name == "second" and IS_LAST_RANK:
            hold()
        return train_stage(run, services, stage, start)

    mock.patch.object(fold, "train_stage", held).start()


MOMENTS = {moment.__name__: moment for moment in (during_a_write, in_mid_epoch, during_validation, between_stages)}


def main(moment: str, marker: Path, arguments: list[str]) -> int:
    from pneumo_dist.cli.app import app
    from shards import console

    def hold() -> None:
        marker.touch()
        time.sleep(3600)

    MOMENTS[moment](hold)
    return console.run(app, "python -m pneumo_dist", arguments)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], Path(sys.argv[2]), sys.argv[3:]))
