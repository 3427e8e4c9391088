"""Reusable memory for the batches of a loader."""

import contextlib
import mmap
import weakref

import numpy as np
import torch


class BufferPool:
    """Memory for tensors. A buffer is reused once its tensor and all views of it are gone.

    Each buffer has its own pages: a heap that allocates and frees batches fragments. They are reused because the kernel
    has to clear new pages first.
    """

    def __init__(self) -> None:
        self._free: dict[int, list[mmap.mmap]] = {}

    def take(self, size: int, dtype: torch.dtype) -> torch.Tensor:
        """Return a flat, uninitialised tensor of `size` bytes."""
        free = self._free.setdefault(size, [])
        memory = free.pop() if free else _mapped(size)
        # Only the tensor's storage refers to this array, so both are released together.
        array = np.frombuffer(memory, np.uint8)
        weakref.finalize(array, free.append, memory)
        return torch.frombuffer(array, dtype=dtype)


def _mapped(size: int) -> mmap.mmap:
    memory = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
    with contextlib.suppress(OSError):  # a kernel without huge pages
        memory.madvise(mmap.MADV_HUGEPAGE)
    return memory
