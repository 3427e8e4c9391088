"""The commands: options, checks of what was given, and calls into the rooms."""
