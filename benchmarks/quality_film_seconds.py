"""Print the core-seconds from a film's file to its mask, by a bundle on one core.

python -m benchmarks.quality_film_seconds BUNDLE FILMS
"""

import statistics
import sys
import time
from pathlib import Path

import torch

from benchmarks.common import single_threaded
from pneumo_dist import Segmenter

TIMED = 20


def main() -> None:
    """Print the median over some films, after one that reads the weights."""
    bundle, folder = map(Path, sys.argv[1:3])
    single_threaded()
    torch.set_num_threads(1)
    segmenter = Segmenter.load(bundle, cpu=True)
    first, *films = sorted(folder.rglob("*.dcm"))[: TIMED + 1]
    segmenter(first)
    seconds = []
    for film in films:
        start = time.process_time()
        segmenter(film)
        seconds.append(time.process_time() - start)
    print(statistics.median(seconds))


if __name__ == "__main__":
    main()
