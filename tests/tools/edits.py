"""Structured edits of stored values: the file stays well-formed, and one of its values changes."""

import copy
import math
from dataclasses import dataclass
from typing import Any

import numpy as np


class Missing:
    """Stands for a removed key."""

    def __repr__(self) -> str:
        return "(left out)"


MISSING = Missing()
DEEP: list[Any] = []
for _ in range(100):
    DEEP = [DEEP]
VALUES: tuple[Any, ...] = (
    *(MISSING, MISSING, None, True, False, 0, 1, -1, -0.5, 0.5, 1e300, 2**63, 10**30),
    *(math.nan, math.inf, -math.inf, "", "x", "1", "../x", "\0", "9" * 400, "nan"),
    *([], [None], [[]], DEEP, {}, {"x": 1}),
)
WAYS = ("value", "value", "value", "double", "half", "repeat", "cut", "nest", "extra")


@dataclass(frozen=True)
class Edit:
    """A change and its position. `is_absurd` if no writer would write it."""

    place: tuple[Any, ...]
    value: Any
    is_absurd: bool

    def __str__(self) -> str:
        return f"{'.'.join(map(str, self.place))} = {str(self.value)[:60]}"


def places(tree: Any, inside: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the positions of all values in nested mappings and lists."""
    if not isinstance(tree, dict | list | tuple):
        return []
    keys = list(tree) if isinstance(tree, dict) else range(len(tree))
    return [place for key in keys for place in [(*inside, key), *places(tree[key], (*inside, key))]]


def at(tree: Any, place: tuple[Any, ...]) -> Any:
    """Return the value at a position."""
    for key in place:
        tree = tree[key]
    return tree


def edit(tree: Any, rng: np.random.Generator) -> tuple[Any, Edit]:
    """Return a tree with one value changed, and the change."""
    changed = copy.deepcopy(tree)
    found = places(changed)
    # Chosen by depth first, because a long list would otherwise get all edits.
    depths = sorted({len(place) for place in found})
    depth = depths[int(rng.integers(len(depths)))]
    here = [place for place in found if len(place) == depth]
    place = here[int(rng.integers(len(here)))]
    parent, before = at(changed, place[:-1]), at(changed, place)
    if isinstance(parent, tuple):
        return edit(tree, rng)
    way = WAYS[int(rng.integers(len(WAYS)))]
    value: Any = VALUES[int(rng.integers(len(VALUES)))]
    if way == "double" and isinstance(before, int | float) and not isinstance(before, bool):
        value = before * 2 + 1
    elif way == "half" and isinstance(before, int | float) and not isinstance(before, bool):
        value = before / 2 if isinstance(before, float) else before // 2
    elif way == "repeat" and isinstance(before, list) and before:
        value = [*before, before[int(rng.integers(len(before)))]]
    elif way == "cut" and isinstance(before, list) and before:
        value = before[:-1]
    elif way == "nest":
        value = [before]
    elif way == "extra" and isinstance(parent, dict):
        parent["unheard_of"] = value if value is not MISSING else 1
        return changed, Edit((*place[:-1], "unheard_of"), value, False)
    if value is MISSING:
        del parent[place[-1]]
    else:
        parent[place[-1]] = copy.deepcopy(value)
    # A shorter list is well-formed too.
    is_shorter = isinstance(before, list) and isinstance(value, list) and len(value) > 0 and value == before[:-1]
    return changed, Edit(place, value, not is_shorter and _is_absurd(before, value))


def _is_absurd(before: Any, value: Any) -> bool:
    if value is MISSING or value is None or isinstance(value, list | dict):
        return True
    if isinstance(before, bool) or isinstance(value, bool):
        return isinstance(before, bool) != isinstance(value, bool)
    if isinstance(before, int | float) and isinstance(value, int | float):
        return not math.isfinite(value) or abs(value) >= 2**63 or (value < 0 <= before)
    if isinstance(before, str) and isinstance(value, str):
        return value in ("", "../x", "\0") or len(value) > 300
    return True
