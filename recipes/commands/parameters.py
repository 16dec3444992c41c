"""Types of command-line parameters: places of files, and numbers that are numbers."""

import math
from pathlib import Path
from typing import Any

import click


class Place(click.Path):
    """A path, in which a leading `~` stands for the user's home."""

    def __init__(self) -> None:
        super().__init__(path_type=Path)

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the path with its home expanded."""
        if "\0" in str(value):
            self.fail("a path holds no NUL character", param, ctx)
        path = Path(str(super().convert(value, param, ctx)))
        try:
            return path.expanduser()
        except RuntimeError:
            self.fail(f"there is no user {path.parts[0]}: write the path out", param, ctx)


class Finite(click.FloatRange):
    """A number within a range, which neither NaN nor infinity is."""

    name = "number"

    def _describe_range(self) -> str:
        # Of no bounds, click would say that they are None.
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


class Named(click.ParamType[str]):
    """A model, a text or a data set: its name on the hub, or its place."""

    name = "text"


class Host(click.ParamType[str]):
    """The address of a server."""

    name = "text"
