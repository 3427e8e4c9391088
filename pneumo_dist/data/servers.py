"""The processes that fork the loaders' workers. This module imports no library, so that they start before anything."""

from typing import Any, Literal

from shards.workers import fork_server

_MODULES = {"dali": "pneumo_dist.data.input_server", "torch": "pneumo_dist.data.worker_server"}


def start_server(loader: Literal["dali", "torch", "synthetic"]) -> Any:
    """Start the server of a loader, unless one runs or the loader needs none; return the context of its workers.

    It imports its modules while the rank imports its own, so the first batch does not wait for it.
    """
    return fork_server(_MODULES[loader]) if loader in _MODULES else None
