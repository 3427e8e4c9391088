"""Checkpoints written by a thread, so that training does not wait for the disk."""

import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch

from pneumo_dist.runs.checkpoint import State
from pneumo_dist.runs.checkpoint_folder import CheckpointFolder


class CheckpointWriter:
    """Writes checkpoints from threads, one at a time and in order.

    While one is written, the next one waits with its copy of the state, and the one after that waits at the call. So
    memory never holds more than two copies, and none is left out: each could be the best.

    A failed save, for example on a full disk, becomes a warning and leaves existing files alone; `wait` returns the
    error of the last save.
    """

    def __init__(self, folder: CheckpointFolder) -> None:
        self._folder = folder
        self._written: threading.Thread | None = None
        self._newest: threading.Thread | None = None
        self._error: Exception | None = None

    def save(self, step: int, state: State, after: Callable[[], None]) -> None:
        """Copy a state, then write it in a thread, which calls `after` once the file exists."""
        if self._written is not None:
            self._written.join()
        self._raise_fault()
        self._written = self._newest
        arguments = (self._written, step, _copied(state), after)
        self._newest = threading.Thread(target=self._write, args=arguments, name="checkpoint")
        self._newest.start()

    def wait(self) -> OSError | None:
        """Wait for the last save and return its error, None on success. Raises anything that is not an OSError."""
        if self._newest is not None:
            self._newest.join()
            self._written = self._newest = None
        self._raise_fault()
        assert self._error is None or isinstance(self._error, OSError)
        return self._error

    def _raise_fault(self) -> None:
        if self._error is not None and not isinstance(self._error, OSError):
            raise self._error

    def _write(self, before: threading.Thread | None, step: int, state: State, after: Callable[[], None]) -> None:
        if before is not None:
            before.join()
        if self._error is not None and not isinstance(self._error, OSError):
            return  # a fault of the program, which the next call raises
        self._error = None
        outcome = "is not saved"
        try:
            self._folder.save(step, state)
            outcome = "is saved, but its links and logs are not updated"
            after()
        except OSError as error:
            self._error = error
            warnings.warn(
                f"{self._folder}: the checkpoint of step {step} {outcome} ({error.strerror}); training continues, the "
                "previous one is kept",
                stacklevel=2,
            )
        except Exception as error:  # `wait` raises it: nobody would see it in this thread
            self._error = error


def _copied(value: Any) -> Any:
    """Return a nested state with all tensors copied to the CPU.

    Equal strings become one object: pickle writes an object once, and a loaded state has its own strings, so the file
    of a resumed run would otherwise have other bytes.
    """
    if isinstance(value, torch.Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, str):
        return sys.intern(value)
    if isinstance(value, dict):
        return {_copied(key): _copied(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(_copied(item) for item in value)
    return value
