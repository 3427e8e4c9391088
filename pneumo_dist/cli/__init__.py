"""The commands: options, checks of their values, and calls into the other packages."""
