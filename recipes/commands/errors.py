"""Messages of errors at the command line, where settings are options."""

import io
import re

import click

from robustness.errors import Refusal, first_line, is_out_of_memory

REMEDY = "remove it, or run the command that made it again with --fresh"
"""Remedy for a file that cannot be used."""

SETTING = re.compile(r"`([a-z][a-z0-9_]*)`")
"""Pattern of a setting in the library's messages: its Python name in backticks, as in `context`."""

SPELLED_OTHERWISE = {
    "answer_limit": "--sandbox-limit",
    "by_bootstrap": "--bootstrap",
    "cap": "--state-cap",
    "data": "--task-data",
    "directory": "DIRECTORY",
    "directories": "DIRECTORY",
    "experiments": "EXPERIMENT",
    "file": "FILE",
    "files": "FILE",
    "interventions": "--intervention",
    "measurements": "MEASUREMENT",
    "model": "MODEL",
    "prompt": "PROMPT",
    "readouts": "--readout",
    "schedules": "--schedule",
    "source": "--data",
    "sources": "--data",
    "tasks": "TASK",
    "weights": "--weight",
}
"""Options and arguments by the setting that they give, where the two are spelled differently."""


def as_options(text: str) -> str:
    """Write the settings that a message names as the options that give them.

    The library says `context`, in backticks, and the command line --context. Nothing else in the
    message changes.
    """
    return SETTING.sub(lambda match: _option(match[1]), text)


def _option(setting: str) -> str:
    return SPELLED_OTHERWISE.get(setting) or f"--{setting.replace('_', '-')}"


def explained(error: Exception) -> str:
    """Return the line that explains an error and its remedy, or click's own lines for misuse."""
    if isinstance(error, click.ClickException):
        message = io.StringIO()
        error.show(message)
        return message.getvalue().rstrip()
    if isinstance(error, Refusal):
        return f"stages: {as_options(' '.join(str(error).split()))}"
    if is_out_of_memory(error):
        return (
            "stages: out of memory: ask for --dtype bfloat16 or --device-map auto, or read fewer "
            "--tokens"
        )
    if isinstance(error, OSError):
        name = "" if error.filename is None else f"{error.filename}: "
        return (
            f"stages: {name}{error.strerror or first_line(error)}: check that the place is there, "
            "has room, and may be read and written by you"
        )
    return (
        f"stages: a fault of stages itself ({type(error).__name__}: {first_line(error)}): please "
        "report it with what `stages --debug` and the same command print"
    )
