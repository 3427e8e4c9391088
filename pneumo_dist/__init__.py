"""Distributed training and inference for pneumothorax segmentation on chest radiographs.

Importing this package imports no torch: data-loader workers and the command line's help start quickly.
"""

from shards import __version__ as __version__
