"""Run a training command and record which films each rank has seen in each step, one JSON line a step.

    python tests/tools/chaos/films.py train --config …

The environment names the file: PNEUMO_CHAOS_FILMS.
"""

import json
import os
import sys
from collections.abc import Callable, Iterable
from unittest import mock

if __name__ == "__main__":
    from pneumo_dist.cli.app import app
    from pneumo_dist.data.films import Batch
    from pneumo_dist.train.step import Learner, Step
    from shards import console

    take = Learner.step

    def recorded(self: Learner, batches: Iterable[Batch], count: int, done: int, seed: Callable[[int], None]) -> Step:
        """Take a step and append its films to the file."""
        step = take(self, batches, count, done, seed)
        line = {"stage": self._stage.name, "step": done, "films": step.films}
        with open(os.environ["PNEUMO_CHAOS_FILMS"], "a") as stream:
            stream.write(json.dumps(line) + "\n")
        return step

    mock.patch.object(Learner, "step", recorded).start()
    sys.exit(console.run(app, "python -m pneumo_dist", sys.argv[1:]))
