"""Output of a build: skipped files, counts and warnings."""

from collections.abc import Iterator
from pathlib import Path

from shards.build.assemble import BuildSummary
from shards.build.films import NO_MASK, Sources
from shards.build.folders import DANGLING
from shards.build.leaks import known_test_films
from shards.build.progress import REJECTED, UNLABELLED
from shards.console import counted, printable
from shards.dataset.table import read_table

MOST_LISTED = 20


def skipped_lines(sources: Sources) -> Iterator[tuple[str, bool]]:
    """Yield lines about skipped files and films, each with whether it is for stderr.

    A broken link is named, as it may be a film.
    """
    for reason, count in sources.skipped_counts.items():
        yield f"skipped: {counted(count, 'file')}: {reason}", False
    if sources.left_out and sources.left_out_reason == NO_MASK:
        yield f"warning: {counted(len(sources.left_out), 'film')}: {NO_MASK}", False
    dangling = [str(item.path) for item in sources.skipped if item.reason == DANGLING]
    for path in dangling[:MOST_LISTED]:
        yield f"warning: {printable(path)}: a broken link; restore its target or remove it", True
    if len(dangling) > MOST_LISTED:
        more = len(dangling) - MOST_LISTED
        yield f"warning: {more} more broken links; list them with: find FOLDER -xtype l", True


def summary_lines(out: Path, summary: BuildSummary) -> Iterator[str]:
    """Yield lines about a finished dataset, and warnings to read before training on it."""
    yield (
        f"{out}: {counted(summary.train, 'training film')} and {summary.holdout} held out, "
        f"{summary.always_train} always trained ({summary.positives} positive), "
        f"{counted(summary.test, 'test film')}, {counted(summary.shards, 'shard')} ({summary.reused_shards} reused)"
    )
    yield (
        f"{counted(summary.labelled, 'film')} of {counted(summary.groups, 'group')} "
        "(patients joined with near-duplicates) are split into folds"
    )
    if summary.labelled and summary.groups == summary.labelled:
        yield "every film is a separate group: grouping had no effect"
    if summary.unlabelled_split or summary.duplicate:
        yield (
            f"{counted(summary.unlabelled_split, 'film')} for training without labels; {summary.duplicate} more look "
            "like another film, and are not used"
        )
    if summary.reencoded:
        yield f"{counted(summary.reencoded, 'film')} had no JPEG stream that could be kept, and were encoded again"
    for text, count in summary.warnings.items():
        yield f"warning: {counted(count, 'film')}: {text}"
    if summary.known_test:
        known = known_test_films(read_table(out))
        more = " ..." if len(known) > MOST_LISTED else ""
        yield (
            f"warning: test films that repeat labelled films or their patients ({len(known)}): "
            f"{', '.join(known[:MOST_LISTED])}{more}; a score on them says nothing about new patients"
        )
    for text in summary.doubts:
        yield f"warning: {text}"
    yield f"{counted(summary.unlabelled, 'film')} without a label, listed in {out / UNLABELLED}, left out"
    yield f"{counted(summary.rejected, 'film')} rejected, listed in {out / REJECTED}"
