"""Imported by the server that forks a rank's loader workers, and by nothing else.

The server has no threads. A worker forked from the rank itself could inherit a lock that a thread of the rank held.
"""

import pneumo_dist.data.torch_loader  # noqa: F401  # once, for all workers
from pneumo_dist.ranks.processes import become_worker

# It would wait for its workers to end, and they for it. The kernel watches the thread that started it, the main one.
become_worker()
