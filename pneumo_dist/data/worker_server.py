"""Preloaded by the server that forks a rank's loader workers; nothing else imports it.

The server has no other Python threads. A worker forked from the rank itself could inherit a lock held by one of its
threads.
"""

import pneumo_dist.data.torch_loader  # noqa: F401  # once, for all workers
from pneumo_dist.ranks.processes import become_worker

# Otherwise the server and its workers would wait for each other to end. The kernel watches the thread that started the
# server, which is the main one.
become_worker()
