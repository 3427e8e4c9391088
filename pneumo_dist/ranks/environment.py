"""Which rank this process is, by the environment: that of torchrun, or of whatever else sets all four variables."""

from collections.abc import Mapping
from dataclasses import dataclass

from shards.errors import InputError

NEEDED = ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
OTHERS = ("LOCAL_RANK", "LOCAL_WORLD_SIZE")
TORCHRUN = "TORCHELASTIC_RUN_ID"


@dataclass(frozen=True)
class Place:
    """A rank among `world`; `local_rank` among the `local_world` of its node, 0 where the environment does not say."""

    rank: int
    world: int
    local_rank: int
    local_world: int = 0


def place_of(env: Mapping[str, str]) -> Place | None:
    """Return the rank that the environment makes of this process; None where it works alone.

    It works alone where a variable is missing: the others are what a site or another job left. Raises InputError where
    all are there and contradict each other.
    """
    if any(not env.get(name) for name in NEEDED):
        return None
    given = {name: env.get(name) or "0" for name in ("RANK", "WORLD_SIZE", *OTHERS)}
    numbers = {name: int(text) for name, text in given.items() if text.isascii() and text.isdigit()}
    place = Place(*(numbers.get(name, -1) for name in given))
    if len(numbers) < len(given) or place.rank >= place.world:
        told = ", ".join(f"{name}={text}" for name, text in given.items())
        raise InputError(f"the environment has {told}, which no launcher sets; unset {', '.join(NEEDED)}")
    if place.world == 1 and TORCHRUN not in env:
        return None
    return place


def is_first(env: Mapping[str, str]) -> bool:
    """Return whether this process does what one of all ranks has to do."""
    place = place_of(env)
    return place is None or place.rank == 0


def left_over(env: Mapping[str, str]) -> list[str]:
    """Return the variables of a launcher that are set and not heeded."""
    return [] if place_of(env) is not None else [name for name in (*NEEDED, *OTHERS) if env.get(name)]
