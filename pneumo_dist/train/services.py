"""Services that every stage of a fold uses."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from pneumo_dist.ranks.stop import StopAgreement
from pneumo_dist.runs.checkpoint import State
from pneumo_dist.runs.heartbeat import Heartbeat

# Gets a stage's name and its history, and returns whether to stop. All ranks must answer alike.
EndsEarly = Callable[[str, Sequence[State]], bool]


def never(stage: str, history: Sequence[State]) -> bool:
    """Train every stage to its end."""
    return False


@dataclass(frozen=True)
class Services:
    """The agreement to stop, the heartbeat, whether to trace a few steps of each stage, and whether to stop early."""

    stop: StopAgreement
    heartbeat: Heartbeat
    profile: bool = False
    ends_early: EndsEarly = never
