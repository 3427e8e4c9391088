"""YAML from a person's hands or from disk: plain values, of a size that can be looked through.

An alias repeats what it names without being longer itself, so a short text can stand for more values than any memory
holds. Both that and the depth are measured on the parsed nodes, before a value is made of them.
"""

from typing import Any

import yaml

from shards.errors import InputError

MOST_VALUES = 100_000
MOST_LEVELS = 50
MOST_CHARACTERS = 4 << 20


class BadYaml(InputError):
    """A text that is not YAML, or that is too large; the message is the reason in one line."""


def parse_yaml(text: str) -> Any:
    """Return the values of a YAML document. Raises BadYaml."""
    if len(text) > MOST_CHARACTERS:
        raise BadYaml(f"longer than {MOST_CHARACTERS:,} characters")
    try:
        loader = yaml.SafeLoader(text)
        try:
            node = loader.get_single_node()
            if node is None:
                return None
            if _extent(node, {}, MOST_LEVELS)[0] > MOST_VALUES:
                raise BadYaml(f"stands for more than {MOST_VALUES:,} values; name less by its aliases")
            return loader.construct_document(node)
        finally:
            loader.dispose()
    except BadYaml:
        raise
    except RecursionError:
        raise BadYaml(f"is nested deeper than {MOST_LEVELS} levels") from None
    except (yaml.YAMLError, ValueError, OverflowError) as error:  # the last two from impossible dates and numbers
        raise BadYaml(f"not valid YAML: {error}") from None


def _extent(node: yaml.Node, known: dict[yaml.Node, tuple[int, int]], levels: int) -> tuple[int, int]:
    """Return how many values a node stands for, and how deep they lie, aliases written out.

    Raises RecursionError below so many levels, where an alias to what holds it ends as well.
    """
    if node not in known:
        if isinstance(node, yaml.MappingNode):
            inner = [part for pair in node.value for part in pair]
        else:
            inner = node.value if isinstance(node, yaml.SequenceNode) else []
        if levels == 0:
            raise RecursionError
        found = [_extent(part, known, levels - 1) for part in inner]
        known[node] = 1 + sum(count for count, _ in found), 1 + max((depth for _, depth in found), default=0)
    if known[node][1] > levels:
        raise RecursionError
    return known[node]
