"""What is doubtful about groups and folds that were made as asked: ids that name nobody, folds without a positive."""

from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import pyarrow as pa

from shards.build.options import BuildOptions
from shards.build.split import LABELLED
from shards.console import counted
from shards.dataset.keys import patient_group

_COLUMNS = (
    *("image_id", "film_group", "group", "split", "fold"),
    *("has_mask", "mask_area", "label_height", "label_width"),
)
_HALF = 0.5
# A patient of two films is no doubt, however few the films are.
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
    """Yield the patient ids that name nobody: ANONYMOUS, unknown, 000000 and their like."""
    repeated = (sign * count for sign in _REPEATED for count in range(1, _LONGEST + 1))
    for word in (*_WORDS, *repeated):
        yield from {word: 0, word.upper(): 0, word.capitalize(): 0, word.title(): 0}


def split_doubts(table: pa.Table, options: BuildOptions, salt: bytes, appended: bool = False) -> list[str]:
    """Return what a person should look at before training, in words that tell no patient's id.

    Groups are hashes: a known word is found by its own hash, any other id only by how many films have it. Without a
    `salt` (empty) no word is found. `appended`: the folds are those of an earlier build.
    """
    films = table.select([*_COLUMNS]).to_pylist()
    trained = [film for film in films if film["split"] != "test"]
    labelled = [film for film in films if film["split"] in LABELLED]
    words = {patient_group(word, salt): word for word in placeholders()} if salt else {}
    found = _nameless(trained, words, options.groups_csv is not None)
    if salt:
        # As sample.py names the group of a film without a patient.
        alone = sum(film["film_group"] == patient_group(f"film {film['image_id']}", salt) for film in trained)
        if alone:
            found.append(f"{counted(alone, 'film')} without a patient id: each is a group of its own; {_SAY}")
    found += _masks(trained)
    if labelled:
        numbers = {film["fold"] for film in labelled} - {None}
        wanted = set() if appended or options.folds_csv is not None else set(range(options.folds))
        present = set(range(min(numbers), max(numbers) + 1)) if numbers else set()
        folds = sorted(present | wanted)
        found += _frequent(labelled, words, len(folds))
        found += _one_sided(labelled, folds)
    elif trained:
        found.append("every film trains in every fold: none is left to validate on")
    return found


_SAY = "say with --groups which films belong together"


def _nameless(films: Sequence[dict[str, Any]], words: dict[str, str], given: bool) -> list[str]:
    counts = Counter(words[film["film_group"]] for film in films if film["film_group"] in words)
    # Groups that are given may well be numbered from 0.
    return [
        f"{counted(count, 'film')} with the patient id {word}, which names nobody: they count as one patient; {_SAY}"
        for word, count in counts.most_common(5)
        if count > 1 and not (given and word.isdecimal())
    ]


def _frequent(films: Sequence[dict[str, Any]], words: dict[str, str], folds: int) -> list[str]:
    """Doubt patients, and groups of films that look alike, of more films than a fold would have."""
    share = len(films) / max(folds, 1)
    found = []
    patients = Counter(film["film_group"] for film in films)
    for group, count in patients.most_common(5):
        if count >= _FEWEST and count > share and group not in words:
            found.append(
                f"{counted(count, 'film')} with one patient id, more than a fold's share of {share:.1f}: if it "
                f"names nobody, {_SAY}"
            )
    for group, count in Counter(film["group"] for film in films).most_common(5):
        largest = max(patients[film["film_group"]] for film in films if film["group"] == group)
        if count >= _FEWEST and count > share >= largest:
            found.append(
                f"{counted(count, 'film')} of one group, more than a fold's share of {share:.1f}, as films of "
                "several patients look alike: --duplicate-distance -1 leaves them apart"
            )
    return found


def _masks(films: Sequence[dict[str, Any]]) -> list[str]:
    """Doubt labels of one kind only, and masks that are all larger than their background."""
    positive = [film for film in films if film["has_mask"]]
    if films and not positive:
        return ["no labelled film has a pneumothorax"]
    found = []
    if len(positive) == len(films) > 1:
        found.append("every labelled film has a pneumothorax: films without one are needed to learn what has none")
    shares = [film["mask_area"] / (film["label_height"] * film["label_width"]) for film in positive]
    if len(shares) > 1 and min(shares) > _HALF:
        found.append(f"all {len(shares)} masks cover more than half of their films: are they inverted?")
    return found


def _one_sided(films: Sequence[dict[str, Any]], folds: Sequence[int]) -> list[str]:
    """Doubt folds and a holdout without a film, or without one that has a pneumothorax."""
    if not any(film["has_mask"] for film in films):
        return []
    found = []
    sizes = Counter(film["fold"] for film in films)
    positives = Counter(film["fold"] for film in films if film["has_mask"])
    empty = [fold for fold in folds if not sizes[fold]]
    without = [fold for fold in folds if sizes[fold] and not positives[fold]]
    way_out = "give fewer with --folds, or other groups with --groups"
    if empty:
        found.append(f"{_named(empty)} no film: {way_out}")
    if without:
        found.append(
            f"{_named(without)} no film with a pneumothorax, and training refuses to validate there: {way_out}"
        )
    if sizes[None] and not positives[None]:
        found.append(
            "the holdout has no film with a pneumothorax: give a larger share with --holdout, or another --seed"
        )
    return found


def _named(folds: Sequence[int]) -> str:
    if len(folds) == 1:
        return f"fold {folds[0]} has"
    return f"folds {', '.join(map(str, folds[:-1]))} and {folds[-1]} have"
