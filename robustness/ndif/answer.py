"""Checks an answer of a server against what was asked for."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from robustness.errors import Refusal

FLOATS = (torch.float32, torch.float64)
INTEGERS = (torch.int32, torch.int64)
STATES = (*FLOATS, torch.float16, torch.bfloat16)
NUMBERS = (*FLOATS, *INTEGERS, torch.float16, torch.int16, torch.int8, torch.uint8, torch.bool)
"""Types of tensors that are written into files."""

Wanted = Mapping[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]]
"""Shape and possible types of each tensor of an answer, by name."""


def take(found: Any, wanted: Wanted) -> dict[str, Tensor]:
    """Return the tensors of an answer that are wanted, if they are what is wanted.

    Raises
    ------
    Refusal
        If one is missing, or has another shape or type.
    """
    if not isinstance(found, dict):
        raise unexpected("it is no dictionary")
    # What else is in it is left where it is.
    taken = {}
    for name, (shape, dtypes) in wanted.items():
        value = found.get(name)
        if not isinstance(value, Tensor) or tuple(value.shape) != shape:
            there = f"of shape {tuple(value.shape)}" if isinstance(value, Tensor) else "missing"
            raise unexpected(f"{name!r} is {there}, and {shape} was asked for")
        if value.dtype not in dtypes:
            raise unexpected(f"{name!r} is of type {value.dtype}")
        taken[name] = value
    return taken


def size(wanted: Wanted) -> int:
    """Return how many numbers are wanted."""
    return sum(math.prod(shape) for shape, _ in wanted.values())


def unexpected(what: str) -> Refusal:
    """Return the refusal of an answer that is read well, but not to what was asked."""
    return Refusal(
        f"what the server answers is not what was asked for ({what}): give the same command "
        "again, or choose another `host`"
    )


def plain(found: Any, wanted: Mapping[Any, Any]) -> dict[Any, Any]:
    """Return a dictionary of plain values, if what is wanted is there and of its type.

    Parameters
    ----------
    found : Any
        What came back.
    wanted : mapping of name to type, or to list with one
        Types of values; a list with a type is one of values of that type.

    Raises
    ------
    Refusal
        If something is missing or of another type.
    """
    if not isinstance(found, dict):
        raise unexpected("it is no dictionary")
    for name, kind in wanted.items():
        value = found.get(name)
        many, kind = (value, kind[0]) if isinstance(kind, list) else ([value], kind)
        if not isinstance(many, list | tuple) or not all(isinstance(one, kind) for one in many):
            raise unexpected(f"{name!r} is a {type(value).__name__}")
    return found
