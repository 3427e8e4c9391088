"""Preloaded by the server that forks a rank's loader workers; nothing else imports it.

The server has no other Python threads. A worker forked from the rank itself could inherit a lock held by one of its
threads.
"""

from pneumo_dist.ranks.processes import become_worker

# Before the import that takes seconds. If the server did not ignore signals, it and its workers would wait for each
# other to end. The kernel watches the thread that started the server, which is the main one.
become_worker()

import pneumo_dist.data.torch_loader  # noqa: E402, F401  # once, for all workers
