"""Command line as a file records it: without directories, users and keys."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import click
from click.core import ParameterSource

from recipes.commands.parameters import Host, Named, Place

TEXTS = {".txt", ".json", ".jsonl", ".parquet", ".gz", ".zst", ".nc"}
"""File name suffixes by which a path is told from a name on the hub."""

BEGINNINGS = ("/", "~", "./", "../")
"""Beginnings that paths have and names on the hub have not."""


def command_line(context: click.Context | None = None) -> str:
    """Return the command that runs, with every path in it reduced to its base name.

    The type of a parameter says whether its values are paths. Where they may also be names on the
    hub, the values themselves tell.
    """
    context = context or click.get_current_context(silent=True)
    if context is None:
        return ""
    return " ".join(["stages", str(context.info_name), *_words(context)])


def _words(context: click.Context) -> Iterator[str]:
    for parameter in context.command.params:
        name = str(parameter.name)
        if context.get_parameter_source(name) is not ParameterSource.COMMANDLINE:
            continue
        value = context.params.get(name)
        several = parameter.multiple or parameter.nargs != 1
        for item in value if several and value is not None else [value]:
            yield from _word(parameter, item)


def _word(parameter: click.Parameter, value: Any) -> Iterator[str]:
    # The longest spelling is recorded, as --out rather than -o.
    if isinstance(parameter, click.Option) and parameter.is_flag:
        yield max(parameter.opts if value else parameter.secondary_opts or parameter.opts, key=len)
        return
    if isinstance(parameter, click.Option):
        yield max(parameter.opts, key=len)
    yield _reduced(parameter.type, value)


def _reduced(kind: click.ParamType[Any], value: Any) -> str:
    text = str(value)
    if isinstance(kind, Host):
        return _host(text)
    if isinstance(kind, (Place, click.Path)) or text.startswith(BEGINNINGS):
        return Path(text).name or "."
    return (Path(text).name or ".") if isinstance(kind, Named) and _is_place(text) else text


def _is_place(text: str) -> bool:
    """Whether a text is a path, and not a name on the hub such as owner/name:config."""
    if text.startswith(".") or text.count("/") > 1 or TEXTS & set(Path(text).suffixes):
        return True
    try:
        return Path(text).exists()
    except (OSError, ValueError):  # too long, or not a file name at all
        return "/" in text


def _host(text: str) -> str:
    """Return the name of a server, without the user and the key that its address may hold."""
    try:
        return urlsplit(text if "//" in text else f"//{text}").hostname or "…"
    except ValueError:
        return "…"
