"""Records that describe a kind of file: its variables, labels and attributes, and their ranges."""

import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeGuard

import numpy as np

SCHEMA = 1
"""Version of the layout of files; a file of a later version is refused."""

LONGEST_NAME = 1000
"""Maximum number of characters in the name of a model, an architecture or a text."""


@dataclass(frozen=True)
class Variable:
    """Expected dimensions, type and range of a variable or a coordinate."""

    dims: tuple[str, ...]
    dtype: str = "f"
    """`f` for numbers, `i` for whole ones, `U` for texts."""
    least: float = -math.inf
    """Smallest value, of numbers."""
    most: float = math.inf
    """Largest value, of numbers."""
    ascending: bool = False
    """Whether labels ascend along their dimension."""


@dataclass(frozen=True)
class Attribute:
    """Expected value of an attribute of a file."""

    fits: Callable[[Any], bool]
    """Whether a value is as expected."""
    what: str
    """Description of such a value, for messages."""


@dataclass(frozen=True)
class Kind:
    """What a kind of file holds. The attribute `measurement` of a file names its kind."""

    variables: Mapping[str, Variable]
    """Variables that a file may have; it has at least one of them."""
    labels: Mapping[str, Variable]
    """Coordinates, which a file has wherever one of its variables has their dimension."""
    needed: tuple[str, ...] = ()
    """Names of variables that every finished file has."""
    attrs: Mapping[str, Attribute] = field(default_factory=dict)
    """Attributes that a file may have besides those of every measurement."""
    needed_attrs: tuple[str, ...] = ()
    """Names of attributes that every file has besides those of every measurement."""
    needed_labels: tuple[str, ...] = ()
    """Names of coordinates that every file has and that no dimension is named after."""
    may_be_empty: tuple[str, ...] = ()
    """Names of dimensions that may have size 0."""
    own: Variable | None = None
    """Variable that a metric of a user's own is, in files that may have some."""


def is_whole(value: Any) -> TypeGuard[int]:
    """Whether a value is a whole number."""
    # A bool is an int to Python.
    return isinstance(value, (int, np.integer)) and not isinstance(value, bool)


def _is_number(value: Any) -> bool:
    return is_whole(value) or isinstance(value, (float, np.floating))


def _is_text(value: Any) -> bool:
    return isinstance(value, str) and bool(value)


def _is_object_of_texts(value: Any) -> bool:
    try:
        content = json.loads(value) if isinstance(value, str) else None
    except (ValueError, RecursionError):
        return False
    return isinstance(content, dict) and all(isinstance(text, str) for text in content.values())


def _is_part(value: Any) -> bool:
    return isinstance(value, str) and bool(re.fullmatch(r"[1-9]\d*/[1-9]\d*", value))


def whole_from(least: int) -> Attribute:
    """Return the attribute of whole numbers from a smallest one."""
    return Attribute(
        lambda value: is_whole(value) and value >= least, f"a whole number from {least}"
    )


TEXT = Attribute(_is_text, "text")
NAME = Attribute(
    lambda value: _is_text(value) and len(value) <= LONGEST_NAME,
    f"a name of {LONGEST_NAME} letters at most",
)
NUMBER = Attribute(lambda value: _is_number(value) and math.isfinite(value), "a number")
NUMBER_OR_NAN = Attribute(_is_number, "a number")
YES_OR_NO = Attribute(lambda value: is_whole(value) and value in (0, 1), "0 or 1")
OBJECT_OF_TEXTS = Attribute(_is_object_of_texts, "a JSON object of texts")
PART = Attribute(_is_part, "one of so many parts, as in 1/4")

SEQUENCES = {
    "sequence": Variable(("sequence",), "i", 0, ascending=True),
    "document": Variable(("sequence",), "i", 0),
}
"""Coordinates of sequences."""

LAYERS = {
    "layer": Variable(("layer",), "i", 0, ascending=True),
    "relative_depth": Variable(("layer",), "f", 0, 1),
}
"""Coordinates of layers."""


def text_labels(*dims: str) -> dict[str, Variable]:
    """Return coordinates of dimensions whose labels are texts."""
    return {dim: Variable((dim,), "U") for dim in dims}


def number_labels(least: float, *dims: str, ascending: bool = True) -> dict[str, Variable]:
    """Return coordinates of dimensions whose labels are whole numbers from a smallest one."""
    return {dim: Variable((dim,), "i", least, ascending=ascending) for dim in dims}
