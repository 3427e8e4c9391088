"""The rank of this process, from the environment variables that torchrun sets. Imports no torch."""

from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import InputError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OPTIONAL = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
TORCHRUN = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class LaunchedRank:
    """A rank that a launcher started. `local_rank` and `local_world` are 0 if the environment does not set them."""

    rank: int
    world: int
    local_rank: int
    local_world: int = 0


def launched_rank(env: Mapping[str, str]) -> LaunchedRank | None:
    """Return the rank that a launcher gave this process; None if it works alone.

    It works alone if any needed variable is missing, because a site or another job may have left the others.

    Raises:
        InputError: The variables contradict each other.
    """
    if any(not env.get(name) for name in NEEDED):
        return None
    values = {name: env.get(name) or "0" for name in ("RANK", "WORLD_SIZE", *OPTIONAL)}
    numbers = {name: int(text) for name, text in values.items() if text.isascii() and text.isdigit()}
    launched = LaunchedRank(*(numbers.get(name, -1) for name in values))
    if len(numbers) < len(values) or launched.rank >= launched.world:
        settings = ", ".join(f"{name}={text}" for name, text in values.items())
        raise InputError(f"the environment has {settings}, which no launcher sets; unset {', '.join(NEEDED)}")
    if launched.world == 1 and TORCHRUN not in env:
        return None
    return launched


def is_first(env: Mapping[str, str]) -> bool:
    """Return whether this process does the work that only one rank does."""
    launched = launched_rank(env)
    return launched is None or launched.rank == 0


def left_over(env: Mapping[str, str]) -> list[str]:
    """Return the names of a launcher's variables that are set but ignored."""
    return [] if launched_rank(env) is not None else [name for name in (*NEEDED, *OPTIONAL) if env.get(name)]
