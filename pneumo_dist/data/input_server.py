"""Preloaded by the server that forks the processes of film_inputs.py; nothing else imports it. Imports no torch."""

from pneumo_dist.ranks.processes import become_worker

# See worker_server.py.
become_worker()

import pneumo_dist.data.film_inputs  # noqa: E402, F401  # once, for all processes
