"""What a build tells a person: files that are passed over, counts, and whatever is doubtful."""

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
    """Yield how many files and films are passed over and why, each line with whether it is for stderr.

    A link to nothing may be a film, so it is named.
    """
    for reason, count in sources.skipped_counts.items():
        yield f"skipped: {counted(count, 'file')}: {reason}", False
    if sources.unlabelled and sources.unlabelled_reason == NO_MASK:
        yield f"warning: {counted(len(sources.unlabelled), 'film')}: {NO_MASK}", False
    dangling = [str(item.path) for item in sources.skipped if item.reason == DANGLING]
    for path in dangling[:MOST_LISTED]:
        yield f"warning: {printable(path)}: a link to nothing; restore its target or remove it", True
    if len(dangling) > MOST_LISTED:
        more = len(dangling) - MOST_LISTED
        yield f"warning: {more} more links to nothing; list them with: find FOLDER -xtype l", True


def summary_lines(out: Path, made: BuildSummary) -> Iterator[str]:
    """Yield what a finished dataset holds, and what to look at before training on it."""
    yield (
        f"{out}: {counted(made.train, 'training film')} and {made.holdout} held out, {made.always_train} always "
        f"trained ({made.positives} positive), {counted(made.test, 'test film')}, {counted(made.shards, 'shard')} "
        f"({made.reused_shards} reused)"
    )
    yield (
        f"{counted(made.labelled, 'film')} of {counted(made.groups, 'group')} (patients joined with near-duplicates) "
        "are split into folds"
    )
    if made.labelled and made.groups == made.labelled:
        yield "every film is a group of its own: grouping had no effect"
    if made.reencoded:
        yield f"{counted(made.reencoded, 'film')} had no JPEG stream that could be taken over and were encoded again"
    for text, count in made.warnings.items():
        yield f"warning: {counted(count, 'film')}: {text}"
    if made.known_test:
        known = known_test_films(read_table(out))
        more = " ..." if len(known) > MOST_LISTED else ""
        yield (
            f"warning: test films that repeat labelled films or their patients ({len(known)}): "
            f"{', '.join(known[:MOST_LISTED])}{more}; a score on them tells nothing about new patients"
        )
    for text in made.doubts:
        yield f"warning: {text}"
    yield f"{counted(made.unlabelled, 'film')} without a label, listed in {out / UNLABELLED}, left out"
    yield f"{counted(made.rejected, 'film')} rejected, listed in {out / REJECTED}"
