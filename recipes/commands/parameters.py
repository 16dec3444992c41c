"""Types of command-line parameters: paths, finite numbers, and names."""

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click
from click.shell_completion import CompletionItem


class Place(click.Path):
    """A path, in which a leading `~` is the user's home."""

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
    """A finite number within a range."""

    name = "number"

    def _describe_range(self) -> str:
        # Without bounds, click would print them as None.
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value: Any, param: Any, ctx: Any) -> Any:
        """Return the number."""
        # click takes NaN for a number within every range.
        number = float(super().convert(value, param, ctx))
        if not math.isfinite(number):
            self.fail(f"{value!r} is no finite number", param, ctx)
        return number


class LazyChoice(click.ParamType[str]):
    """A choice among names that are imported when they are needed, since that takes long.

    Parameters
    ----------
    load : callable
        Returns the names.
    """

    name = "choice"

    def __init__(self, load: Callable[[], Sequence[str]]) -> None:
        self._load = load

    def convert(self, value: Any, param: Any, ctx: Any) -> str:
        """Return the name."""
        return click.Choice(self._load()).convert(value, param, ctx)

    def get_metavar(self, param: click.Parameter, ctx: click.Context) -> str | None:
        """Return the names as the help shows them."""
        return click.Choice(self._load()).get_metavar(param, ctx)

    def shell_complete(
        self, ctx: click.Context, param: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        """Return the names that begin with what is typed."""
        return click.Choice(self._load()).shell_complete(ctx, param, incomplete)


class Named(click.ParamType[str]):
    """A model, a text or a data set, given by its name on the hub or by a path."""

    name = "text"


class Host(click.ParamType[str]):
    """The address of a server."""

    name = "text"
