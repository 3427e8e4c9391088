"""One server forks the workers of both loaders, for all tests of a process."""

import pytest

from pneumo_dist.data.servers import start_server


@pytest.fixture(scope="session", autouse=True)
def _server() -> None:
    """Start the torch loader's server first: workers forked from one without torch would import it, one by one.

    A loader whose workers still import after five seconds also waits in vain for their end.
    """
    start_server("torch")
