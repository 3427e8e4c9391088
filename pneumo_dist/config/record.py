"""Converts experiments that other versions wrote into checkpoints and run folders to the present schema."""

from collections.abc import Mapping
from copy import deepcopy
from typing import Any

import pydantic

from pneumo_dist.config.experiment import Experiment

# Options that the schema no longer has, by dotted key (`stages.KEY` for a key of a stage), and their old defaults.
DROPPED: Mapping[str, Any] = {}

Tree = dict[str, Any]
_MISSING = object()


def without_dropped(tree: Mapping[str, Any], dropped: Mapping[str, Any] = DROPPED) -> Tree:
    """Return an experiment's mapping without the dropped options that have their old default."""
    result = dict(tree)
    for key, default in dropped.items():
        parts = key.split(".")
        if parts[0] == "stages" and isinstance(result.get("stages"), list):
            result["stages"] = [_without(stage, parts[1:], default) for stage in result["stages"]]
        else:
            result = _without(result, parts, default)
    return result


def with_present_defaults(saved: Mapping[str, Any], dropped: Mapping[str, Any] = DROPPED) -> Tree:
    """Return a recorded experiment in plain JSON types, with missing options at the present defaults.

    An unknown option without its old default is kept, so that a comparison names it.
    """
    tree = without_dropped(saved, dropped)
    try:
        return Experiment.model_validate(tree).model_dump(mode="json")
    except pydantic.ValidationError as error:
        locations = [each["loc"] for each in error.errors() if each["type"] == "extra_forbidden"]
    known = deepcopy(tree)
    unknown = [(location, _parent(known, location).pop(location[-1])) for location in locations]
    try:
        filled = Experiment.model_validate(known).model_dump(mode="json")
    except pydantic.ValidationError:
        return tree
    for location, value in unknown:
        _parent(filled, location)[location[-1]] = value
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


def _parent(tree: Any, location: tuple[int | str, ...]) -> Any:
    """Return the mapping in a nested tree that contains a location."""
    for part in location[:-1]:
        tree = tree[part]
    return tree
