"""Plain values: the values besides tensors that an answer may hold, and limits of their size."""

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor

from robustness.ndif.limits import Unreadable

MOST_VALUES = 1_000_000
"""Maximum number of steps of a pickle, and of values in its result."""

DEEPEST = 32
"""Maximum depth of nested values, and of dimensions of a tensor, of which torch allows more."""

LARGEST_KEY = 64
"""Maximum number of values in a key of a dictionary."""

LEAVES = {str, bytes, bytearray, int, float, bool, type(None), set, frozenset, torch.Size, Tensor}
"""Types of values that are not searched further: the members of a set are keys, which have been
checked."""


def as_key(value: Any) -> Any:
    """Return a value that may be a key: hashing it must be quick and run no other code."""
    # A list of what is left, since recursion could be exhausted by the values to refuse.
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
        # A value that is referred to many times is one in the pickle, and many for a reader.
        if depth > DEEPEST or seen + len(inner) > MOST_VALUES:
            raise Unreadable("it holds values within values without end")
        waiting += [(each, depth + 1) for each in inner]
        if len(waiting) > MOST_VALUES:
            raise Unreadable("it holds values within values without end")
