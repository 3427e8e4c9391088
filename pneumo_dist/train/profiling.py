"""A trace of a few training steps, for perfetto or TensorBoard."""

import warnings
from pathlib import Path
from tempfile import TemporaryDirectory

from torch.profiler import profile, schedule

from shards.files import atomic_write

WAIT, WARM_UP, ACTIVE = 2, 2, 6
# TensorBoard's profiler knows a trace by this ending.
TRACE = "rank0.pt.trace.json"


class StepTrace:
    """Traces steps 5 to 10 after `start` into a file, once; without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._profiler: profile | None = None

    def start(self) -> None:
        """Begin, unless that has been done before."""
        if self._path is None:
            return
        self._profiler = profile(
            schedule=schedule(wait=WAIT, warmup=WARM_UP, active=ACTIVE, repeat=1), on_trace_ready=self._write
        )
        self._profiler.start()

    def step(self) -> None:
        """Note that an optimizer step is done."""
        if self._profiler is not None:
            self._profiler.step()
            if self._path is None:
                self._end()

    def stop(self) -> None:
        """End with the steps there were; warn where they were too few for a trace."""
        if self._profiler is None:
            return
        self._end()
        if self._path is not None:
            warnings.warn(f"{self._path} is not written: an epoch needs more than {WAIT + WARM_UP} steps", stacklevel=2)
            self._path = None

    def _end(self) -> None:
        profiler, self._profiler = self._profiler, None
        assert profiler is not None
        profiler.stop()

    def _write(self, profiler: profile) -> None:
        assert self._path is not None
        path, self._path = self._path, None
        try:
            # The profiler wants a name to write to, and what it writes must appear whole.
            with TemporaryDirectory() as folder:
                made = Path(folder) / TRACE
                profiler.export_chrome_trace(str(made))
                atomic_write(path, made.read_bytes())
        except OSError as error:
            warnings.warn(f"{path} is not written ({error.strerror}); training goes on", stacklevel=2)
