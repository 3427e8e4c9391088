"""Distributed training and inference for pneumothorax segmentation on chest radiographs.

Importing this package imports no torch: data-loader workers and the command line's help start quickly. `Segmenter` and
`Found` are imported when they are used.
"""

from typing import TYPE_CHECKING

from shards import __version__ as __version__

if TYPE_CHECKING:
    from pneumo_dist.output.segmenter import Found as Found
    from pneumo_dist.output.segmenter import Segmenter as Segmenter
else:

    def __getattr__(name: str) -> object:
        if name not in ("Found", "Segmenter"):
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        from importlib import import_module

        return getattr(import_module("pneumo_dist.output.segmenter"), name)
