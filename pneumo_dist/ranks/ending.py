"""How a process ends: in order, or at once if other ranks may wait for it in a collective. Imports no torch."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from pneumo_dist.ranks.processes import end_workers
from shards import console

# Ranks without a message wait this long, so that torchrun sees the rank that failed first, and its exit code.
_LAST_SECONDS = 5.0


class FailedElsewhere(Exception):
    """Raised instead of an error on every rank but the first that failed. That rank prints the reason."""


def end_after(work: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code.

    After an error the process group is not destroyed: that would wait for ranks that wait for this one, for half an
    hour on NCCL.
    """
    code = console.EXIT_FAULT
    try:
        code = work()
    except FailedElsewhere:
        time.sleep(_LAST_SECONDS)
    except Exception:
        traceback.print_exc()
    if not _is_in_group():
        sys.exit(code)
    for stream in (sys.stdout, sys.stderr):
        console.flush(stream)
    end_workers()
    os._exit(code)


def _is_in_group() -> bool:
    distributed = sys.modules.get("torch.distributed")
    return distributed is not None and distributed.is_available() and distributed.is_initialized()
