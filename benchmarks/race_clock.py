"""What every side of benchmarks.race uses, also in other environments: the clock, and the maps that it stores.

The clock counts seconds of training from the end of the first step. What a side does by itself counts, such as its
validation and its checkpoints. The clock stops while a side predicts maps for the race, which are scored later.
"""

import io
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from shards.files import atomic_write

# The file of `Facts` in a side's folder, written last.
FACTS = "facts.json"
Maps = npt.NDArray[np.uint8]


class Clock:
    """Counts seconds of training. `before` are those of an interrupted run that goes on."""

    def __init__(self, before: float = 0.0, now: Callable[[], float] = time.monotonic) -> None:
        self._before, self._now = before, now
        self._since: float | None = None

    def start(self) -> None:
        """Start the clock, unless it runs; call it at the end of every step."""
        if self._since is None:
            self._since = self._now()

    @property
    def seconds(self) -> float:
        return self._before + (0.0 if self._since is None else self._now() - self._since)

    @contextmanager
    def paused(self) -> Iterator[None]:
        """Stop the clock for what the race does."""
        self._before, self._since = self.seconds, None
        try:
            yield
        finally:
            self._since = self._now()


@dataclass(frozen=True)
class Facts:
    """What a side reports at its end: its settings, versions, seconds of training, and films trained on in them."""

    settings: Mapping[str, str]
    versions: Mapping[str, str]
    seconds: float
    films: int


def save_maps(path: Path, seconds: float, keys: Sequence[str], maps: Maps) -> None:
    """Store p8 maps of the validation films, uint8 (n, side, side), after some seconds of training."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, seconds=seconds, keys=np.array(keys), maps=maps)
    atomic_write(path, buffer.getvalue())


def load_maps(path: Path) -> tuple[float, list[str], Maps]:
    """Return seconds, keys and maps of a file that `save_maps` wrote."""
    with np.load(path) as stored:
        return float(stored["seconds"]), stored["keys"].tolist(), stored["maps"]


def save_facts(path: Path, facts: Facts) -> None:
    atomic_write(path, json.dumps(asdict(facts), indent=1).encode())


def load_facts(path: Path) -> Facts:
    return Facts(**json.loads(path.read_text()))


def versions_of(*packages: str) -> dict[str, str]:
    """Return the installed versions of some packages."""
    return {name: version(name) for name in packages}
