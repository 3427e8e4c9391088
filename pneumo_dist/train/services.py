"""Services that every stage of a fold uses."""

from dataclasses import dataclass

from pneumo_dist.ranks.stop import StopAgreement
from pneumo_dist.runs.heartbeat import Heartbeat


@dataclass(frozen=True)
class Services:
    """The agreement to stop, the heartbeat, and whether to trace a few steps of each stage."""

    stop: StopAgreement
    heartbeat: Heartbeat
    profile: bool = False
