"""Group of commands, each of which is imported only when it is run."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

import click


class LazyGroup(click.Group):
    """Group that has the names of its commands, and imports a command when it is called.

    Parameters
    ----------
    entries : mapping of str to tuple of str
        Place of each command, as `module:function`, and its short help, by its name. The help
        lists commands in this order.
    package : str
        Package of the modules.
    """

    def __init__(
        self, *args: Any, entries: Mapping[str, tuple[str, str]], package: str, **settings: Any
    ) -> None:
        super().__init__(*args, **settings)
        self._entries = entries
        self._package = package

    def list_commands(self, ctx: click.Context) -> list[str]:
        """Return the names of all commands."""
        return list(self._entries)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Return a command by its name, if there is one."""
        return self.load(cmd_name) if cmd_name in self._entries else None

    def load(self, name: str) -> click.Command:
        """Import a command."""
        module, _, function = self._entries[name][0].partition(":")
        command: click.Command = getattr(import_module(f"{self._package}.{module}"), function)
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the list of commands from their entries, so that none is imported."""
        # click would import every command for the first line of its docstring.
        with formatter.section("Commands"):
            formatter.write_dl([(name, help) for name, (_, help) in self._entries.items()])
