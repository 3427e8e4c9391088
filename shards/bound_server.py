"""Preloaded first by every server of workers: binds the server to its parent, and its workers to the server."""

from shards.parent import bind_forks, die_with_parent

die_with_parent()
bind_forks()
