"""Warnings about groups, folds and labels: patient ids that identify nobody, folds without a positive film."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from shards.build.options import BuildOptions
from shards.build.split import LABELLED
from shards.console import counted
from shards.dataset.check import LABELLED_SPLITS
from shards.dataset.keys import patient_group

_COLUMNS = (
    *("image_id", "film_group", "group", "split", "fold"),
    *("has_mask", "mask_area", "label_height", "label_width"),
)
_HALF = 0.5
# Two films of one patient are plausible in a dataset of any size.
_FEWEST = 3
_WORDS = (
    *("anonymous", "anonymized", "anonymised", "anonymize", "anonymise", "anonym", "anonimo", "anon", "anonymous^"),
    *("anonymous^anonymous", "anonymous patient", "anonymous_patient", "anonymous^patient", "anonymouspatient"),
    *("deidentified", "de-identified", "removed", "hidden", "unknown", "unbekannt", "inconnu", "desconocido", "unk"),
    *("none", "null", "nil", "nan", "n/a", "na", "no id", "noid", "no_id", "not available", "not specified"),
    *("unspecified", "undefined", "missing", "empty", "blank", "noname", "no name", "no_name", "no^name", "name"),
    *("patient", "patient id", "patientid", "patient_id", "id", "test", "test patient", "test_patient", "testpatient"),
    *("dummy", "default", "john doe", "doe^john", "patient^anonymous", "xxx-xxx"),
)
_REPEATED, _LONGEST = "09x-*?._", 16


def placeholders() -> Iterator[str]:
    """Yield patient ids that identify nobody, such as ANONYMOUS, unknown and 000000."""
    repeated = (sign * count for sign in _REPEATED for count in range(1, _LONGEST + 1))
    for word in (*_WORDS, *repeated):
        yield from {word: 0, word.upper(): 0, word.capitalize(): 0, word.title(): 0}


def split_doubts(table: pa.Table, options: BuildOptions, salt: bytes, appended: bool = False) -> list[str]:
    """Return warnings to read before training. They contain no patient's id.

    Groups are hashes. A placeholder is recognized by its hash, and any other suspicious id only by its number of films.
    With an empty `salt`, no placeholder is recognized. `appended` means that the folds are those of an earlier build.
    """
    films = table.select([*_COLUMNS]).to_pylist()
    trained = [film for film in films if film["split"] in LABELLED_SPLITS]
    labelled = [film for film in films if film["split"] in LABELLED]
    words = {patient_group(word, salt): word for word in placeholders()} if salt else {}
    doubts = _nameless(trained, words, options.groups_csv is not None)
    if salt:
        # The group that sample.py gives to a film without a patient.
        alone = sum(film["film_group"] == patient_group(f"film {film['image_id']}", salt) for film in trained)
        if alone:
            doubts.append(f"{counted(alone, 'film')} without a patient id: each is a separate group; {_SAY}")
    doubts += _masks(trained)
    if labelled:
        numbers = {film["fold"] for film in labelled} - {None}
        requested = set() if appended or options.folds_csv is not None else set(range(options.folds))
        present = set(range(min(numbers), max(numbers) + 1)) if numbers else set()
        folds = sorted(present | requested)
        doubts += _frequent(labelled, words, len(folds))
        doubts += _one_sided(labelled, folds)
    elif trained:
        doubts.append("every film trains in every fold: none is left to validate on")
    return doubts


_SAY = "say with --groups which films belong together"


def _nameless(films: Sequence[dict[str, Any]], words: dict[str, str], has_groups: bool) -> list[str]:
    counts = Counter(words[film["film_group"]] for film in films if film["film_group"] in words)
    # Groups from a CSV may be numbered from 0.
    return [
        f"{counted(count, 'film')} with the patient id {word}, which identifies nobody: they are one patient; {_SAY}"
        for word, count in counts.most_common(5)
        if count > 1 and not (has_groups and word.isdecimal())
    ]


def _frequent(films: Sequence[dict[str, Any]], words: dict[str, str], folds: int) -> list[str]:
    """Warn of patients, and of groups of similar films, that are larger than a fold."""
    share = len(films) / max(folds, 1)
    doubts = []
    patients = Counter(film["film_group"] for film in films)
    for group, count in patients.most_common(5):
        if count >= _FEWEST and count > share and group not in words:
            doubts.append(
                f"{counted(count, 'film')} with one patient id, more than a fold's share of {share:.1f}: if it "
                f"identifies nobody, {_SAY}"
            )
    for group, count in Counter(film["group"] for film in films).most_common(5):
        largest = max(patients[film["film_group"]] for film in films if film["group"] == group)
        if count >= _FEWEST and count > share >= largest:
            doubts.append(
                f"{counted(count, 'film')} of one group, more than a fold's share of {share:.1f}, as films of "
                "several patients look alike: --duplicate-distance -1 does not group them"
            )
    return doubts


def _masks(films: Sequence[dict[str, Any]]) -> list[str]:
    """Warn of labels that are all positive or all negative, and of masks that all cover most of their film."""
    positive = [film for film in films if film["has_mask"]]
    if films and not positive:
        return ["no labelled film has a pneumothorax"]
    doubts = []
    if len(positive) == len(films) > 1:
        doubts.append("every labelled film has a pneumothorax: training also needs films without one")
    shares = [film["mask_area"] / (film["label_height"] * film["label_width"]) for film in positive]
    if len(shares) > 1 and min(shares) > _HALF:
        doubts.append(f"all {len(shares)} masks cover more than half of their films: are they inverted?")
    return doubts


def _one_sided(films: Sequence[dict[str, Any]], folds: Sequence[int]) -> list[str]:
    """Warn of folds without films, and of folds and a holdout without a pneumothorax."""
    if not any(film["has_mask"] for film in films):
        return []
    doubts = []
    sizes = Counter(film["fold"] for film in films)
    positives = Counter(film["fold"] for film in films if film["has_mask"])
    empty = [fold for fold in folds if not sizes[fold]]
    without = [fold for fold in folds if sizes[fold] and not positives[fold]]
    fix = "give fewer with --folds, or other groups with --groups"
    if empty:
        doubts.append(f"{_named(empty)} no film: {fix}")
    if without:
        doubts.append(f"{_named(without)} no film with a pneumothorax, and training refuses to validate there: {fix}")
    if sizes[None] and not positives[None]:
        doubts.append(
            "the holdout has no film with a pneumothorax: give a larger share with --holdout, or another --seed"
        )
    return doubts


def _named(folds: Sequence[int]) -> str:
    if len(folds) == 1:
        return f"fold {folds[0]} has"
    return f"folds {', '.join(map(str, folds[:-1]))} and {folds[-1]} have"
