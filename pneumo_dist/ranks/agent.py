"""torchrun, with the exit code of the rank that failed and its message as the last line. Takes torchrun's options.

    python -m pneumo_dist.ranks.agent --standalone --nproc-per-node 8 -m pneumo_dist train …

torchrun itself prints a report and tracebacks after a rank's error, always exits with 1, and waits for a lost network
after its last rank has ended.
"""

import logging
import os
import signal
import sys
import tempfile
import threading
from collections.abc import Sequence
from pathlib import Path

from shards import console
from shards.console import counted
from shards.parent import STARTER, announced, die_with_parent
from shards.temporaries import scratch_folder, scratch_name

_POLL_SECONDS, _PATIENCE_SECONDS = 1.0, 3.0
# After a failure, torchrun gives the other ranks half of this before it kills them.
_EXIT_SECONDS = 60.0


def main(arguments: Sequence[str]) -> int:
    """Run the ranks of this node, restarting them if the options allow it, and return their exit code."""
    if STARTER in os.environ:  # by a launcher, which forwards signals and may be killed
        die_with_parent()
    threading.Thread(target=_end_with_the_ranks, name="ranks", daemon=True).start()
    try:
        return _run(arguments)
    except KeyboardInterrupt:
        print("stopped by SIGINT", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(arguments: Sequence[str]) -> int:
    # torch reads this on import. LOGLEVEL=INFO shows the agent's own reports.
    level = os.environ.setdefault("LOGLEVEL", "CRITICAL")
    from torch.distributed.elastic.multiprocessing.api import SignalException
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.elastic.rendezvous.api import RendezvousError
    from torch.distributed.run import parse_args, run

    logging.getLogger("torch.distributed").setLevel(level)
    try:
        # torchrun would leave its folder, which is empty, in the folder for temporary files.
        logs = scratch_folder(Path(tempfile.gettempdir()), scratch_name())
        with announced(), logs as folder:
            run(parse_args(["--log-dir", str(folder), *arguments]))
    except ChildFailedError as error:
        rank, failure = error.get_first_failure()
        if failure.exitcode > 0:  # the rank has printed the reason
            return failure.exitcode
        name = signal.Signals(-failure.exitcode).name
        print(f"error: rank {rank} was killed ({name}){_likely(-failure.exitcode)}", file=sys.stderr)
        return console.EXIT_FAULT
    except SignalException as error:
        print(f"stopped by {error.sigval.name}", file=sys.stderr)
        return 128 + error.sigval.value
    except RendezvousError as error:
        text = " ".join(str(error).split())
        print(f"error: this node cannot reach the others: {text}; check --head, port and firewall", file=sys.stderr)
        return console.EXIT_FAULT
    return console.EXIT_DONE


def _likely(number: int) -> str:
    match number:
        case signal.SIGKILL:
            return "; out of memory? check dmesg, then request more memory or set fewer data.threads"
        case signal.SIGBUS:
            return "; is /dev/shm full? df -h /dev/shm"
        case _:
            return ""


def _end_with_the_ranks() -> None:
    """End this process where torchrun would wait for ever: for a lost network, or for a rank that cannot end.

    All ranks end together. So a rank that is still there long after another has ended hangs in its exit, or is stopped,
    and its own watchdog has ended. It dies with this process.
    """
    failed = outlived = 0.0
    known: set[int] = set()
    while True:
        threading.Event().wait(_POLL_SECONDS)
        codes = _codes_of_children()
        running = {pid for pid, code in codes.items() if code is None}
        worst = max((code for code in codes.values() if code is not None), default=0)
        # torchrun notices ranks that succeeded, however busy the machine is.
        failed = failed + _POLL_SECONDS if worst and not running else 0.0
        if failed > _PATIENCE_SECONDS:
            os._exit(worst)
        # The ranks of a restart are others, and none of the earlier ones is left then.
        known = (known | running) if known & running else running
        outlived = outlived + _POLL_SECONDS if running and known != running else 0.0
        if outlived > _EXIT_SECONDS:
            left = counted(len(running), "rank")
            print(f"error: {left} did not end within {_EXIT_SECONDS:.0f} s of the others", file=sys.stderr, flush=True)
            os._exit(console.EXIT_FAULT)


def _codes_of_children() -> dict[int, int | None]:
    """Return the exit code of every rank on this node, None for a running one; empty without /proc."""
    children = [int(pid) for path in Path("/proc/self/task").glob("*/children") for pid in path.read_text().split()]
    return {pid: code_of(pid) for pid in children}


def code_of(pid: int) -> int | None:
    """Return the exit code of a child that ended and was not waited for, None for a running one.

    The code is 1 after a signal, and 0 if the child was waited for.
    """
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0
    status = int(fields[-1])  # in the format of wait()
    return (status >> 8 or int(status != 0)) if fields[0] == "Z" else None


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
