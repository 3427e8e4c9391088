"""Search over config keys: the space, the journal of trials, the processes that train them, table and plot."""
