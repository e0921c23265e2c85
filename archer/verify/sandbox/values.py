"""The values that may cross between a program and whoever judges it: exact base types, as JSON.

An object with an `==` of its own never crosses. Subclasses of base types arrive as the base type,
numbers of numpy as Python's, and everything else as a reference that only its own process can
follow. A JSON object is always a tag with its content, {"tuple": [1, 2]}; a dict is one too.
Nothing is ever unpickled or evaluated.

    encode -> JSON text on a line -> decode
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any, TypeVar

Coded = Any
"""What `json.dumps` can write."""
Refer = Callable[[object], Coded]
"""Gives an object that can't cross a tag of its own, or raises TypeError."""

MAX_NODES = 1_000_000
"""Nodes of a list or tree that are followed; one that runs in a circle has more."""
MAX_INTEGER = 1 << 2000
"""A longer one crosses in hexadecimal: Python limits decimal digits, to 640 and more."""
MAX_SAME_HASH = 100
"""Keys of a set or dict that may share a hash; those of honest programs hardly ever do."""

T = TypeVar("T")


def refuse(value: object) -> Coded:
    """For `encode`, where nothing but values may cross."""
    raise TypeError(f"an object of type {type(value).__name__} is no plain value")


def encode(value: object, refer: Refer = refuse) -> Coded:
    """JSON for a value. Raises TypeError for what can't cross, RecursionError for a circle."""
    kind = type(value)
    if value is None or kind in (bool, float, str):
        return value
    if kind is int:
        return value if -MAX_INTEGER < value < MAX_INTEGER else {"int": hex(value)}  # type: ignore[operator, arg-type]
    if kind is list:
        return [encode(item, refer) for item in value]  # type: ignore[attr-defined]
    for base, name in _CONTAINERS:
        if issubclass(kind, base):
            items = [encode(item, refer) for item in base.__iter__(value)]
            return items if name == "list" else {name: items}
    if issubclass(kind, dict):
        pairs: Any = dict.items(value)  # type: ignore[arg-type]
        return {"dict": [[encode(key, refer), encode(item, refer)] for key, item in pairs]}
    for base in (bool, int, float, str):
        if issubclass(kind, base):
            return encode(_BASE[base](value))
    if issubclass(kind, complex):
        return {"complex": [complex.real.__get__(value), complex.imag.__get__(value)]}
    if issubclass(kind, bytes | bytearray):
        name = "bytes" if issubclass(kind, bytes) else "bytearray"
        return {name: bytes(value).decode("latin-1")}  # type: ignore[call-overload]
    if kind is range:
        return {"range": [value.start, value.stop, value.step]}  # type: ignore[attr-defined]
    if kind.__module__ == "numpy" and getattr(value, "ndim", None) == 0:
        return encode(value.item(), refer)  # type: ignore[attr-defined]
    if kind.__name__ == "ListNode":
        return {"list_node": [encode(item, refer) for item in _listed(value)]}
    if kind.__name__ == "TreeNode":
        return {"tree_node": [encode(item, refer) for item in _levels(value)]}
    return refer(value)


_CONTAINERS: tuple[tuple[Any, str], ...] = (
    (list, "list"),
    (tuple, "tuple"),
    (set, "set"),
    (frozenset, "frozenset"),
)
_BASE: dict[type, Callable[[Any], object]] = {
    bool: bool,
    int: int.__int__,
    float: float.__float__,
    str: lambda value: str.__str__(value),
}


def decode(
    coded: Coded, nodes: tuple[Any, Any], tags: dict[str, Callable[[Any], object]] | None = None
) -> Any:
    """The value that `encode` wrote. ValueError for anything else.

    nodes: the classes of list and tree nodes. tags: what further tags stand for.
    """
    if isinstance(coded, list):
        return [decode(item, nodes, tags) for item in coded]
    if not isinstance(coded, dict):
        return coded
    if len(coded) != 1:
        raise ValueError("a value with more than one tag")
    [(tag, content)] = coded.items()
    try:
        if tags and tag in tags:
            return tags[tag](content)
        if tag == "dict":
            pairs = [(decode(k, nodes, tags), decode(v, nodes, tags)) for k, v in content]
            return dict(_spread(pairs, [key for key, _ in pairs]))
        if tag == "int":
            return int(content, 16)
        if tag in ("bytes", "bytearray"):
            data = content.encode("latin-1")
            return data if tag == "bytes" else bytearray(data)
        items = [decode(item, nodes, tags) for item in content]
        if tag == "list_node":
            return linked(items, nodes[0])
        if tag == "tree_node":
            return tree(items, nodes[1])
        if tag in ("set", "frozenset"):
            _spread(items, items)
        return _PLAIN[tag](items)
    except (KeyError, TypeError, AttributeError, UnicodeError, OverflowError) as fault:
        raise ValueError(f"no value that is known here: {fault}") from None


_PLAIN: dict[str, Callable[[list[Any]], object]] = {
    "tuple": tuple,
    "set": set,
    "frozenset": frozenset,
    "complex": lambda parts: complex(*parts),
    "range": lambda parts: range(*parts),
}


def _spread(items: T, keys: list[object]) -> T:
    """The items, if not too many of the keys share a hash: a set of such takes quadratic time."""
    if len(keys) > MAX_SAME_HASH:
        ((_, most),) = Counter(map(hash, keys)).most_common(1)
        if most > MAX_SAME_HASH:
            raise ValueError(f"{most} keys with one hash")
    return items


# --- linked lists and trees ---


def linked(values: Iterable[object], node: Any) -> Any:
    """The first node of a linked list with these values; None for none."""
    first = None
    for value in reversed(list(values)):
        first, rest = node(value), first
        first.next = rest
    return first


def tree(values: list[object], node: Any) -> Any:
    """The root of a tree whose values come level by level, None for a child that is missing."""
    if not values or values[0] is None:
        return None
    root = node(values[0])
    rest = iter(values[1:])
    parents = deque([root])
    for parent in _growing(parents):
        for side in ("left", "right"):
            value = next(rest, None)
            if value is not None:
                child = node(value)
                setattr(parent, side, child)
                parents.append(child)
    return root


def _growing(queue: deque[Any]) -> Iterable[Any]:
    while queue:
        yield queue.popleft()


def _listed(node: Any) -> list[object]:
    values: list[object] = []
    while node is not None:
        values.append(node.val)
        node = node.next
        if len(values) > MAX_NODES:
            raise TypeError("a linked list that runs in a circle")
    return values


def _levels(root: Any) -> list[object]:
    values: list[object] = []
    nodes = deque([root])
    while nodes:
        node = nodes.popleft()
        if node is None:
            values.append(None)
            continue
        values.append(node.val)
        nodes += (node.left, node.right)
        if len(values) > MAX_NODES:
            raise TypeError("a tree that runs in a circle")
    while values and values[-1] is None:
        values.pop()
    return values
