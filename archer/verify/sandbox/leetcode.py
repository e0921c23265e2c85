"""Names that programs written for LeetCode, and tests of them, take for granted.

They are there in programs that are called (kinds `call` and `assert`); a program that reads its
standard input finds what Python gives it and nothing else, unless the runner of LiveCodeBench is
meant, which imports much for every program. Python's own names come first: `pow` is the builtin,
not math's.
"""

from __future__ import annotations

import builtins
import importlib
import sys
from collections import deque
from contextlib import suppress
from typing import Any

from archer.verify.sandbox.values import linked, tree

MODULES = (
    "bisect collections copy datetime functools heapq itertools json math operator random re "
    "string sys time typing"
).split()
"""Modules that are there by their own names."""
STARRED = "typing collections itertools functools operator string random bisect heapq math".split()
"""And those whose public names are; where two have the same, the later one wins."""
RARE = {
    "decimal": ("decimal", "Decimal"),
    "fractions": ("fractions", "Fraction"),
    "sortedcontainers": ("sortedcontainers", "Sorted"),
    "statistics": ("statistics",),
}
"""Modules that are there, with their public names, where the source holds one of these words."""
RUNNER_STARRED = (
    "string re datetime collections heapq bisect copy math random itertools functools operator io "
    "json typing"
).split()
"""What the runner of LiveCodeBench imports for programs, in its order: the public names of these
(where two have the same, the later one wins), and the modules; `sys` and `statistics` as well."""
STATISTICS = "statistics mean median mode quantiles stdev variance NormalDist".split()
"""Words that ask for the last, which takes longer to load than a program to run."""


class ListNode:
    """A node of a singly linked list, as LeetCode defines it."""

    def __init__(self, val: Any = 0, next: ListNode | None = None) -> None:
        self.val = val
        self.next = next


class TreeNode:
    """A node of a binary tree, as LeetCode defines it."""

    def __init__(
        self, val: Any = 0, left: TreeNode | None = None, right: TreeNode | None = None
    ) -> None:
        self.val = val
        self.left = left
        self.right = right


def list_node(values: list[object]) -> ListNode | None:
    """A linked list with these values."""
    first: ListNode | None = linked(values, ListNode)
    return first


def tree_node(values: list[object]) -> TreeNode | None:
    """A tree whose values come level by level, None for a child that is missing."""
    root: TreeNode | None = tree(values, TreeNode)
    return root


def is_same_list(one: Any, other: Any) -> bool:
    """Whether two linked lists hold the same values."""
    while one is not None and other is not None:
        if one.val != other.val:
            return False
        one, other = one.next, other.next
    return one is None and other is None


def is_same_tree(one: Any, other: Any) -> bool:
    """Whether two trees have the same shape and values."""
    pairs = deque([(one, other)])
    while pairs:
        one, other = pairs.popleft()
        if one is None and other is None:
            continue
        if one is None or other is None or one.val != other.val:
            return False
        pairs += ((one.left, other.left), (one.right, other.right))
    return True


def test_names() -> dict[str, Any]:
    """What the code of a test finds: modules, nodes and their helpers.

    None of them may be a name that a program is asked to define, such as `gcd`: the test would
    then judge this one.
    """
    helpers = (ListNode, TreeNode, list_node, tree_node, is_same_list, is_same_tree)
    names: dict[str, Any] = {name: importlib.import_module(name) for name in MODULES}
    return names | {helper.__name__: helper for helper in helpers} | {"inf": float("inf")}


def program_names(source: str) -> dict[str, Any]:
    """What a program finds that is called."""
    rare: dict[str, Any] = {}
    for name, words in RARE.items():
        if any(word in source for word in words):
            with suppress(ImportError):
                rare |= {name: importlib.import_module(name), **_public(name)}
    return rare | _USUAL


def runner_names(source: str) -> dict[str, Any]:
    """What a program finds where the runner of LiveCodeBench is meant."""
    names = _RUNNER | _public("sys") | {"sys": sys}  # at work, for the streams of this run
    if any(word in source for word in STATISTICS):
        names |= _public("statistics") | {"statistics": importlib.import_module("statistics")}
    return names


def _public(module_name: str) -> dict[str, Any]:
    module = importlib.import_module(module_name)
    names = getattr(module, "__all__", None) or [name for name in vars(module) if name[0] != "_"]
    return {name: getattr(module, name) for name in names if not hasattr(builtins, name)}


_USUAL: dict[str, Any] = {}
for _name in STARRED:
    _USUAL |= _public(_name)
_USUAL |= test_names()

_RUNNER: dict[str, Any] = {}
for _name in RUNNER_STARRED:
    _RUNNER |= _public(_name)
_RUNNER |= {name: importlib.import_module(name) for name in RUNNER_STARRED if name != "typing"}
