"""How a process ends: in order, or at once where other ranks may wait for it in a collective. Imports no torch."""

import os
import sys
import time
import traceback
from collections.abc import Callable
from typing import NoReturn

from pneumo_dist.ranks.processes import end_workers
from shards import console

# A rank that has nothing to say waits, so that torchrun hears first of the one that failed, with its exit code.
_LAST_SECONDS = 5.0


class ToldElsewhere(Exception):
    """Raised in place of an error on ranks other than the first that failed, whose line explains the end of all."""


def end_after(work: Callable[[], int]) -> NoReturn:
    """Run a command and end the process with its exit code.

    An error leaves the process in its group: leaving would wait for ranks that wait for this one, on NCCL for half an
    hour. Then nothing is torn down.
    """
    code = console.EXIT_FAULT
    try:
        code = work()
    except ToldElsewhere:
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
