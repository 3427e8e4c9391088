"""Lines of a build about skipped files and the finished dataset."""

from pathlib import Path
from typing import Any

import pytest

from shards.build.assemble import BuildSummary
from shards.build.films import NO_MASK, NO_ROW, SourceFilm, Sources
from shards.build.folders import DANGLING, HIDDEN, Skipped
from shards.build.messages import MOST_LISTED, skipped_lines, summary_lines

COUNTS: dict[str, Any] = {
    **{"train": 8, "always_train": 0, "positives": 3, "holdout": 2, "test": 1, "groups": 9, "unlabelled": 1},
    **{
        "rejected": 0,
        "shards": 1,
        "reencoded": 0,
        "warnings": {},
        "known_test": 0,
        "unlabelled_split": 0,
        "duplicate": 0,
        "skipped": {},
        "doubts": [],
    },
}
FILM = SourceFilm("a", "a", Path("in/a.dcm"), Path("in"), "train")


def sources(reason: str = NO_ROW, *skipped: Skipped) -> Sources:
    return Sources((), (), (FILM,), (), reason, skipped)


def test_skipped_files_are_counted_by_reason() -> None:
    hidden = [Skipped(Path(f".{number}"), HIDDEN) for number in range(2)]
    assert list(skipped_lines(sources(NO_ROW, *hidden))) == [(f"skipped: 2 files: {HIDDEN}", False)]


def test_films_without_a_mask_are_warned_of_and_films_without_a_row_are_not() -> None:
    assert list(skipped_lines(sources(NO_MASK))) == [(f"warning: 1 film: {NO_MASK}", False)]
    assert list(skipped_lines(sources(NO_ROW))) == []


def test_broken_links_are_named_on_stderr_up_to_a_number() -> None:
    links = [Skipped(Path(f"a\n{number}"), DANGLING) for number in range(MOST_LISTED + 2)]
    lines = [line for line, is_error in skipped_lines(sources(NO_ROW, *links)) if is_error]
    assert len(lines) == MOST_LISTED + 1
    assert lines[0] == r"warning: a\n0: a broken link; restore its target or remove it"
    assert lines[-1].startswith("warning: 2 more broken links")


def test_a_dataset_without_warnings_has_four_lines() -> None:
    lines = list(summary_lines(Path("out"), BuildSummary(**COUNTS)))
    assert lines == [
        "out: 8 training films and 2 held out, 0 always trained (3 positive), 1 test film, 1 shard (0 reused)",
        "10 films of 9 groups (patients joined with near-duplicates) are split into folds",
        "1 film without a label, listed in out/unlabelled.csv, left out",
        "0 films rejected, listed in out/rejected.csv",
    ]


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"groups": 10}, "every film is a separate group: grouping had no effect"),
        ({"reencoded": 2}, "2 films had no JPEG stream that could be kept, and were encoded again"),
        ({"warnings": {"a colour image": 1}}, "warning: 1 film: a colour image"),
        ({"doubts": ["fold 0 has no film"]}, "warning: fold 0 has no film"),
    ],
)
def test_what_is_notable_has_a_line(changes: dict[str, Any], line: str) -> None:
    plain = list(summary_lines(Path("out"), BuildSummary(**COUNTS)))
    assert set(summary_lines(Path("out"), BuildSummary(**{**COUNTS, **changes}))) - set(plain) >= {line}
