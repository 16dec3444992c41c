"""Checks of a server's answer: the names, shapes and types of its tensors and values."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustness.errors import Refusal

FLOATS = (torch.float32, torch.float64)
"""Types of measured numbers."""
INTEGERS = (torch.int32, torch.int64)
"""Types of token ids and counts."""
STATES = (*FLOATS, torch.float16, torch.bfloat16)
"""Types of residual streams and weights."""
NUMBERS = (*STATES, *INTEGERS, torch.int16, torch.int8, torch.uint8, torch.bool)
"""Types of tensors that are written into files."""


class AtMost(int):
    """Size of a dimension that is known only to be no larger."""


Wanted = Mapping[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]
"""Shape and possible types of each tensor of an answer, by name."""


def take(received: Any, wanted: Wanted) -> dict[str, Tensor]:
    """Return the tensors of an answer that were asked for, once their shapes and types are checked.

    Raises
    ------
    Refusal
        If one is missing, or has another shape or type.
    """
    if not isinstance(received, dict):
        raise unexpected("it is no dictionary")
    # A new dictionary, so that nothing else of the answer goes on from here.
    taken = {}
    for name, (shape, dtypes) in wanted.items():
        value = received.get(name)
        if not isinstance(value, Tensor) or not _fits(tuple(value.shape), shape):
            state = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
            raise unexpected(f"{name!r} is {state}, and {shape} was asked for")
        if value.dtype not in dtypes:
            raise unexpected(f"{name!r} is of type {value.dtype}")
        taken[name] = value
    return taken


def _fits(found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
    if len(found) != len(shape):
        return False
    sizes = zip(found, shape)
    return all(one <= most if isinstance(most, AtMost) else one == most for one, most in sizes)


def size(wanted: Wanted) -> int:
    """Return the number of numbers that were asked for, at most."""
    return sum(math.prod(shape) for shape, _ in wanted.values())


def unexpected(what: str) -> Refusal:
    """Return the refusal of a readable answer that does not fit the question."""
    return Refusal(
        f"what the server answers is not what was asked for ({what}): give the same command "
        "again, or choose another `host`"
    )


def plain(received: Any, types: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a dictionary of plain values, once their names and types are checked.

    Parameters
    ----------
    received : Any
        The answer of the server.
    types : mapping of name to type, or to list with one type
        Types of the values. A list with a type stands for a list of values of that type.

    Raises
    ------
    Refusal
        If something is missing or of another type.
    """
    if not isinstance(received, dict):
        raise unexpected("it is no dictionary")
    for name, kind in types.items():
        value = received.get(name)
        values, kind = (value, kind[0]) if isinstance(kind, list) else ([value], kind)
        if not isinstance(values, list | tuple) or not all(isinstance(v, kind) for v in values):
            raise unexpected(f"{name!r} is a {type(value).__name__}")
    return received
