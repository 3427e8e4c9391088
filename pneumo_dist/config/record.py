"""Experiments that another version wrote into checkpoints and run folders, as the present schema writes them."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pydantic

from pneumo_dist.config.experiment import Experiment

# Options that the schema no longer has, by dotted key (`stages.KEY` for a stage's own), with the default that they had.
DROPPED: Mapping[str, Any] = {}

Tree = dict[str, Any]
_MISSING = object()


def without_dropped(tree: Mapping[str, Any], dropped: Mapping[str, Any] = DROPPED) -> Tree:
    """Return an experiment's mapping without the dropped options that are at their old default."""
    kept = dict(tree)
    for key, default in dropped.items():
        parts = key.split(".")
        if parts[0] == "stages" and isinstance(kept.get("stages"), list):
            kept["stages"] = [_without(stage, parts[1:], default) for stage in kept["stages"]]
        else:
            kept = _without(kept, parts, default)
    return kept


def with_present_defaults(saved: Mapping[str, Any], dropped: Mapping[str, Any] = DROPPED) -> Tree:
    """Return a recorded experiment in plain JSON types with every option of the present schema filled in.

    An option that the present schema does not know and that is not at its old default is kept: a comparison names it.
    """
    tree = without_dropped(saved, dropped)
    try:
        return Experiment.model_validate(tree).model_dump(mode="json")
    except pydantic.ValidationError as error:
        unknown = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
    known = deepcopy(tree)
    kept = [(place, _parent(known, place).pop(place[-1])) for place in unknown]
    try:
        filled = Experiment.model_validate(known).model_dump(mode="json")
    except pydantic.ValidationError:
        return tree
    for place, value in kept:
        _parent(filled, place)[place[-1]] = value
    return filled


def differing_keys(saved: Mapping[str, Any], wanted: Mapping[str, Any], prefix: str = "") -> list[str]:
    """Return the dotted keys whose values differ between two nested mappings, in order."""
    keys = []
    for key in sorted({*saved, *wanted}):
        before, after = saved.get(key), wanted.get(key)
        if isinstance(before, Mapping) and isinstance(after, Mapping):
            keys += differing_keys(before, after, f"{prefix}{key}.")
        elif before != after:
            keys.append(f"{prefix}{key}")
    return keys


def _without(tree: Mapping[str, Any], parts: list[str], default: Any) -> Tree:
    """Return a mapping without a nested key whose value is the default."""
    name, *rest = parts
    inner = tree.get(name, _MISSING)
    if rest:
        return {**tree, name: _without(inner, rest, default)} if isinstance(inner, Mapping) else dict(tree)
    return {key: value for key, value in tree.items() if key != name or value != default}


def _parent(tree: Any, place: tuple[int | str, ...]) -> Any:
    """Return the mapping of a nested tree that holds the entry at a place."""
    for part in place[:-1]:
        tree = tree[part]
    return tree
