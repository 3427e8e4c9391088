"""Preloaded by the server that forks the processes of film_inputs.py; nothing else imports it. Imports no torch."""

import pneumo_dist.data.film_inputs  # noqa: F401  # once, for all processes
from pneumo_dist.ranks.processes import become_worker

# See worker_server.py.
become_worker()
