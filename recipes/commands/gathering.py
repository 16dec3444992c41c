"""Decorators that gather the values of several parameters into one object for a command."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from typing import Any

import click

from recipes.commands.errors import as_options
from robustness.errors import Refusal

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

Values = dict[str, Any]
"""Values of a command's parameters by their names."""


@contextmanager
def misuse() -> Iterator[None]:
    """Turn the refusal of settings into click's error for misuse, whose exit status is 2."""
    try:
        yield
    except Refusal as error:
        raise click.UsageError(as_options(str(error))) from error


def gather(
    name: str, make: Callable[[Values], object], *parameters: Decorator, uses: tuple[str, ...] = ()
) -> Decorator:
    """Make one decorator of several parameters, whose values a command takes as one object.

    Parameters
    ----------
    name : str
        Name under which the command takes the object.
    make : callable
        Function that makes the object from the parameters' values.
    *parameters : callable
        Decorators of click, in the order in which the help lists them.
    uses : tuple of str
        Names of other values from which the object is made, and which the command takes too.
    """
    # Parameters are declared on a command that is never run, to learn their names from click.
    declared: Any = click.Command(None)
    for parameter in parameters:
        declared = parameter(declared)
    keys = [str(parameter.name) for parameter in declared.params]

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        @wraps(command)
        def gathered(**values: Any) -> Any:
            own = {key: values.pop(key) for key in keys}
            # These stay among the values, since other objects may be made from them too.
            own |= {key: values[key] for key in uses}
            with misuse():
                values[name] = make(own)
            return command(**values)

        return together(*parameters)(gathered)

    return decorate


def together(*parameters: Decorator) -> Decorator:
    """Make one decorator of several parameters, which stay in their order."""

    def decorate(command: Callable[..., Any]) -> Callable[..., Any]:
        # The decorator that is applied last comes first in the help.
        for parameter in reversed(parameters):
            command = parameter(command)
        return command

    return decorate


def given(values: Mapping[str, Any]) -> Values:
    """Return the values that were given, so that settings keep their defaults for the others."""
    return {key: value for key, value in values.items() if value is not None}
