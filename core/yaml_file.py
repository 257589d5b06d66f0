"""The values in a YAML file, which are bounded where aliases would make many of a few.

An alias is read as the value that it stands for. Where such values hold aliases themselves, thirty lines
stand for more than any memory holds, as soon as somebody copies or counts them.
"""

from typing import Any, Final, NamedTuple

import yaml

MOST_ALIASED = 1_000_000  # values that aliases may stand for, in all

_Loader: Final[Any] = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # libyaml, where PyYAML has it


class TooMuchError(Exception):
    """Aliases stand for too many values. The message says so in words."""


class Document(NamedTuple):
    """What stands in a file."""

    content: Any
    aliased: frozenset[str]  # keys at the top whose values aliases elsewhere stand for


def parse(text: bytes, *, keys_once: bool) -> Document:
    """Read the one document in a text. Raises YAMLError, TooMuchError, and whatever conversions raise.

    keys_once: refuse a key that stands twice, where YAML's loaders take the last one and say nothing.
    """
    loader = _Loader(text)
    try:
        root = loader.get_single_node()
        if root is None:
            return Document(None, frozenset())
        survey = _Survey(keys_once=keys_once)
        size = survey.size_of(root)
        if size - survey.distinct > MOST_ALIASED:
            raise TooMuchError(f"its aliases (*name) stand for more than {MOST_ALIASED} values")
        pairs = root.value if isinstance(root, yaml.MappingNode) else []
        aliased = frozenset(str(key.value) for key, value in pairs if value in survey.aliased)
        content = loader.construct_document(root)
        while isinstance(root.value, list) and root.value:
            root.value.pop()  # one by one, or no other thread runs while all of them are given back
        return Document(content, aliased)
    finally:
        loader.dispose()


class _Survey:
    """A look at all nodes of a document, before values are made of them."""

    def __init__(self, *, keys_once: bool) -> None:
        self.distinct = 0  # nodes
        self.aliased: set[yaml.Node] = set()
        self._keys_once = keys_once
        self._sizes: dict[yaml.Node, int] = {}  # 0: not known yet

    def size_of(self, node: yaml.Node) -> int:
        """How many values there are in it, with each alias in place of what it stands for."""
        size = self._sizes.get(node)
        if size is not None:
            if not size:
                raise _error("a value that holds itself", node)
            self.aliased.add(node)
            return size
        self.distinct += 1
        self._sizes[node] = 0
        size = 1
        if isinstance(node, yaml.MappingNode):
            if self._keys_once:
                _check_keys(node)
            for key, value in node.value:
                size += self.size_of(key) + self.size_of(value)
        elif isinstance(node, yaml.SequenceNode):
            size += sum(map(self.size_of, node.value))
        self._sizes[node] = size
        return size


def _check_keys(mapping: yaml.MappingNode) -> None:
    seen = set()
    for key, _ in mapping.value:
        if isinstance(key, yaml.ScalarNode):  # others are refused as keys
            if (key.tag, key.value) in seen:
                raise _error("a key stands twice", key)
            seen.add((key.tag, key.value))


def _error(problem: str, node: yaml.Node) -> yaml.MarkedYAMLError:
    return yaml.constructor.ConstructorError(None, None, problem, node.start_mark)
