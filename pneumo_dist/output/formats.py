"""The kinds of results that `segment` writes. Imports nothing, so that the command's help starts quickly."""

FORMATS = ("mask", "rle", "seg", "overlay")
DEFAULT_FORMATS = frozenset({"mask", "seg", "overlay"})
