"""Experiments that another version wrote into checkpoints and run folders, as the present schema writes them."""

from collections.abc import Mapping
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
    known: Any = tree
    for place in unknown:
        known = _pruned(known, place)
    try:
        filled = Experiment.model_validate(known).model_dump(mode="json")
    except pydantic.ValidationError:
        return tree
    for place in unknown:
        _put_back(filled, tree, place)
    return filled


def _without(tree: Mapping[str, Any], parts: list[str], default: Any) -> Tree:
    """Return a mapping without a nested key whose value is the default."""
    name, *rest = parts
    inner = tree.get(name, _MISSING)
    if rest:
        return {**tree, name: _without(inner, rest, default)} if isinstance(inner, Mapping) else dict(tree)
    return {key: value for key, value in tree.items() if key != name or value != default}


def _pruned(tree: Any, place: tuple[int | str, ...]) -> Any:
    """Return nested mappings and lists without the entry at a place."""
    name, *rest = place
    if isinstance(tree, list):
        assert isinstance(name, int)
        return [_pruned(item, tuple(rest)) if number == name else item for number, item in enumerate(tree)]
    if not rest:
        return {key: value for key, value in tree.items() if key != name}
    return {**tree, name: _pruned(tree[name], tuple(rest))}


def _put_back(filled: Any, tree: Any, place: tuple[int | str, ...]) -> None:
    for part in place[:-1]:
        filled, tree = filled[part], tree[part]
    filled[place[-1]] = tree[place[-1]]
