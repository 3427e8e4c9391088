"""A trace of a few training steps, for perfetto or TensorBoard."""

import warnings
from pathlib import Path

from torch.profiler import profile, schedule

from shards.files import atomic_write
from shards.temporaries import scratch_folder

WAIT, WARM_UP, ACTIVE = 2, 2, 6
# TensorBoard's profiler recognizes a trace by this suffix.
TRACE = "rank0.pt.trace.json"


class StepTrace:
    """Traces steps 5 to 10 after `start` into a file, once. Without a path it does nothing."""

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self._profiler: profile | None = None

    def start(self) -> None:
        """Start to trace, unless a trace was written before."""
        if self._path is None:
            return
        self._profiler = profile(
            schedule=schedule(wait=WAIT, warmup=WARM_UP, active=ACTIVE, repeat=1), on_trace_ready=self._write
        )
        self._profiler.start()

    def step(self) -> None:
        """Tell the profiler that an optimizer step is done."""
        if self._profiler is not None:
            self._profiler.step()
            if self._path is None:
                self._end()

    def stop(self) -> None:
        """Stop the profiler; warn if there were too few steps for a trace."""
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
            # The profiler writes to a path, and the file must appear whole.
            with scratch_folder(path.parent, f"{path.name}.scratch") as folder:
                made = folder / TRACE
                profiler.export_chrome_trace(str(made))
                atomic_write(path, made.read_bytes())
        except OSError as error:
            warnings.warn(f"{path} is not written ({error.strerror}); training continues", stacklevel=2)
