"""Parses YAML safely: plain values only, limited in size and depth.

Aliases let a short text expand to more values than fit in memory. Size and depth are therefore measured on the parsed
nodes, before any value is constructed.
"""

from typing import Any

import yaml

from shards.errors import InputError

MAX_VALUES = 100_000
MAX_LEVELS = 50
MAX_CHARACTERS = 4 << 20


# Numbers that every reader of YAML and JSON takes. Python does not print one of more than 4300 digits.
LARGEST_INTEGER = 2**63
_TOO_MANY = f"expands to more than {MAX_VALUES:,} values; use fewer aliases"


class BadYaml(InputError):
    """A text that is not YAML or is too large. The message is the reason in one line."""


class _Loader(yaml.SafeLoader):
    """The safe loader, which stops at the first value too many."""

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._values = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        self._values += 1
        if self._values > MAX_VALUES:
            raise BadYaml(_TOO_MANY)
        return super().compose_node(parent, index)

    def construct_yaml_int(self, node: yaml.ScalarNode) -> int:
        number = super().construct_yaml_int(node)
        if abs(number) > LARGEST_INTEGER:
            raise BadYaml("holds a number of more than 64 bits")
        return number


_Loader.add_constructor("tag:yaml.org,2002:int", _Loader.construct_yaml_int)


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML document. Raises BadYaml."""
    if len(text) > MAX_CHARACTERS:
        raise BadYaml(f"longer than {MAX_CHARACTERS:,} characters")
    try:
        loader = _Loader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _extent(node, {}, MAX_LEVELS)[0] > MAX_VALUES:
                raise BadYaml(_TOO_MANY)
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except BadYaml:
        raise
    except RecursionError:
        raise BadYaml(f"is nested deeper than {MAX_LEVELS} levels") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # impossible dates and numbers raise the last two
        raise BadYaml(f"not valid YAML: {error}") from None


def _extent(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]], levels: int) -> tuple[int, int]:
    """Return the number of values of a node with its aliases expanded, and their depth.

    Raises RecursionError below `levels` levels. An alias to a node that contains it ends there, too.
    """
    if node not in known:
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if levels == 0:
            raise RecursionError
        extents = [_extent(part, known, levels - 1) for part in inner]
        known[node] = 1 + sum(count for count, _ in extents), 1 + max((depth for _, depth in extents), default=0)
    if known[node][1] > levels:
        raise RecursionError
    return known[node]
