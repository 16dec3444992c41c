"""Plain values: what an answer may hold besides tensors, and how deep and how large it may be."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from robustness.ndif.limits import Unreadable

MOST_VALUES = 1_000_000
"""Maximum number of steps of a pickle, and of values in what it makes."""

DEEPEST = 32
"""Maximum depth of values within each other; below what torch allows as dimensions, too."""

LARGEST_KEY = 64
"""Maximum number of values in a key of a dictionary."""

LEAVES = {str, bytes, bytearray, int, float, bool, type(None), set, frozenset, torch.Size, Tensor}
"""Types of values that are not looked into: a set is made of keys, which are checked."""


def as_key(value: Any) -> Any:
    """Return a value that may be a key: of what is hashed at once, and not deep."""
    seen, waiting = 0, [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        seen += 1
        if type(part) is tuple and depth < DEEPEST:
            waiting += [(each, depth + 1) for each in part[: LARGEST_KEY + 1]]
        elif type(part) not in {str, bytes, int, float, bool, type(None)}:
            raise Unreadable(f"a {type(part).__name__} is used as a key")
        if seen + len(waiting) > LARGEST_KEY:
            raise Unreadable("a key is too large")
    return value


def check_plain(value: Any) -> None:
    """Refuse what is not made of tensors and plain values, or is too deep or too large."""
    seen, waiting = 0, [(value, 0)]
    while waiting:
        part, depth = waiting.pop()
        seen += 1
        if type(part) in {dict, OrderedDict}:
            inner: Any = part.values()
        elif type(part) in {list, tuple}:
            inner = part
        elif type(part) in LEAVES:
            inner = ()
        else:
            raise Unreadable(f"it holds a {type(part).__name__.strip('_')} where a value is due")
        # What is referred to again and again is one value here, but many where it is read.
        if depth > DEEPEST or seen + len(inner) > MOST_VALUES:
            raise Unreadable("it holds values within values without end")
        waiting += [(each, depth + 1) for each in inner]
        if len(waiting) > MOST_VALUES:
            raise Unreadable("it holds values within values without end")
