"""Reads the YAML of recipes and of ``--set`` values: plain values only, within limits, each key once.

YAML can be small and stand for gigabytes, because an anchor may be repeated by aliases at every level. So
the size is counted before any value is built.
"""

from __future__ import annotations

import math
import os
import stat
from typing import Any, cast

import yaml

from genmod.budget import BUDGET
from genmod.errors import ConfigError, sanitize
from pipelines.recipe.scalars import Plain

_MAX_SCALAR = 80
"""Characters of a value that is no text, such as a number."""

_INTEGERS = range(-(2**63), 2**64)

_TAGS = frozenset(
    f"tag:yaml.org,2002:{name}"
    for name in ("null", "bool", "int", "float", "str", "seq", "map", "merge")
)


_UNUSED_TAGS = ("tag:yaml.org,2002:timestamp", "tag:yaml.org,2002:value")
"""Of dates and the sign ``=``, which are texts."""


def read_yaml(path: str, what: str) -> Any:
    """The values in a YAML file.

    Args:
        path: of a local file.
        what: the file in words, for errors.

    Raises:
        FileNotFoundError: there is no file.
        ConfigError: it cannot be read, is no regular file, or its YAML is not valid.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)  # a pipe must not block
        with open(handle, "rb") as file:
            if not stat.S_ISREG(os.fstat(handle).st_mode):
                raise ConfigError(f"{what} is a device, pipe or folder; give a YAML file")
            data = file.read(BUDGET.recipe_bytes + 1)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise ConfigError(f"{what} cannot be read ({reason}); check the path") from None
    if len(data) > BUDGET.recipe_bytes:
        raise ConfigError(f"{what} has more than {BUDGET.recipe_bytes:,} bytes; shorten the recipe")
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise ConfigError(
            f"{path} is not YAML: byte {error.start} is not UTF-8; save the file as UTF-8"
        ) from None
    return parse_yaml(text, path)


def parse_yaml(text: str, where: str) -> Any:
    """The values in YAML text: sections, lists and texts; those without quotes are :class:`Plain`.

    :func:`~pipelines.recipe.scalars.typed` gives them the types that are wanted. Keys are texts. Errors are
    of one line and name the line of the text.

    Raises:
        ConfigError: the text is not valid, a key occurs twice, or the text exceeds a limit.
    """
    try:
        if len(text) > BUDGET.recipe_bytes:
            raise _Refused(f"more than {BUDGET.recipe_bytes:,} characters")
        loader = _Loader(text)
        node = loader.get_single_node()
        if node is None:
            return None
        _check(node, {}, set())
        return loader.construct_document(node)
    except _Refused as error:
        raise ConfigError(f"{where}: {sanitize(str(error))}") from None
    except (yaml.YAMLError, ValueError, LookupError, TypeError, RecursionError) as error:
        reason = sanitize(" ".join(str(error).split()))
        raise ConfigError(f"{where} is not YAML: {reason}") from None


class _Refused(yaml.YAMLError):
    """YAML that genmod does not accept."""


class _Loader(yaml.SafeLoader):
    """Limits nodes and depth while they are read; values without quotes and tags stay as written."""

    yaml_implicit_resolvers = {
        first: [pair for pair in pairs if pair[0] not in _UNUSED_TAGS]
        for first, pairs in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def __init__(self, text: str) -> None:
        super().__init__(text)
        self._depth = self._nodes = 0

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Read the next node, with all nodes in it."""
        self._nodes += 1
        self._depth += 1
        if self._nodes > BUDGET.recipe_nodes:
            raise _Refused(f"more than {BUDGET.recipe_nodes:,} keys and values")
        if self._depth > BUDGET.recipe_nesting:
            raise _Refused(f"more than {BUDGET.recipe_nesting} sections inside one another")
        node = super().compose_node(parent, index)
        self._depth -= 1
        return node

    def compose_scalar_node(self, anchor: Any) -> yaml.ScalarNode:
        """Read a value, and remember whether it has neither quotes nor a tag."""
        event = self.peek_event()
        node = super().compose_scalar_node(anchor)
        return _PlainNode(node) if event.style is None and event.tag is None else node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        """The value of a node."""
        if isinstance(node, _PlainNode):
            return Plain(node.value)
        return super().construct_object(node, deep)


class _PlainNode(yaml.ScalarNode):
    """A value without quotes or tag."""

    def __init__(self, node: yaml.ScalarNode) -> None:
        super().__init__(node.tag, node.value, node.start_mark, node.end_mark, node.style)


def _check(node: yaml.Node, sizes: dict[int, int], outer: set[int]) -> int:
    """Check a node and all in it; the number of its nodes with those that aliases repeat.

    Args:
        node: to be checked.
        sizes: of the nodes that were checked, by identity.
        outer: the nodes that contain this one.
    """
    if (known := sizes.get(id(node))) is not None:
        return known
    line = node.start_mark.line + 1
    if id(node) in outer:
        raise _Refused(f"an alias contains itself, line {line}")
    if node.tag not in _TAGS:
        raise _Refused(f"the tag {node.tag!r} is not allowed, line {line}")
    inner: list[yaml.Node] = []
    if isinstance(node, yaml.MappingNode):
        pairs = cast("list[tuple[yaml.Node, yaml.Node]]", node.value)
        _check_keys([key for key, _ in pairs])
        inner = [part for pair in pairs for part in pair]
    elif isinstance(node, yaml.SequenceNode):
        inner = cast("list[yaml.Node]", node.value)
    else:
        _check_scalar(node)
    size = 1
    for part in inner:
        size += _check(part, sizes, outer | {id(node)})
        if size > BUDGET.recipe_nodes:
            raise _Refused(
                f"aliases stand for more than {BUDGET.recipe_nodes:,} keys and values, line {line}"
            )
    sizes[id(node)] = size
    return size


def _check_keys(keys: list[yaml.Node]) -> None:
    """Refuse keys that are no text, and two equal ones: YAML would silently keep the last one."""
    seen: set[str] = set()
    for key in keys:
        line = key.start_mark.line + 1
        is_text = key.tag in ("tag:yaml.org,2002:str", "tag:yaml.org,2002:merge")
        is_plain = isinstance(key, _PlainNode) and key.tag != "tag:yaml.org,2002:null"
        if not (is_text or is_plain):
            text = key.value if isinstance(key, yaml.ScalarNode) else "a section or list"
            raise _Refused(f"the key {text!r} is no text, line {line}; quote it")
        if key.value in seen:
            raise _Refused(f"{key.value!r} occurs twice, line {line}")
        seen.add(str(key.value))


def _check_scalar(node: yaml.Node) -> None:
    """Refuse numbers that no setting can have: those beyond 64 bits, infinity, or not a number."""
    if node.tag not in ("tag:yaml.org,2002:int", "tag:yaml.org,2002:float"):
        return
    line, text = node.start_mark.line + 1, str(node.value)
    if len(text) > _MAX_SCALAR:
        raise _Refused(f"a number has {len(text):,} characters, line {line}")
    value = yaml.SafeLoader("").construct_object(node)
    if isinstance(value, int) and value not in _INTEGERS:
        raise _Refused(f"the number {text} has more than 64 bits, line {line}")
    if isinstance(value, float) and not math.isfinite(value):
        raise _Refused(f"{text} is no finite number, line {line}")
