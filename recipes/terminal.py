"""What reaches the terminal: text without control characters, on streams that may fail."""

import os
import sys
from contextlib import suppress
from typing import TextIO

from robustness.errors import Refusal

KEPT = "\n\t"
"""Control characters that text for a terminal may hold."""


class Unheard(Exception):
    """Standard output that takes no more text; `broken` where its reader has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(os.strerror(error.errno or 0))
        self.broken = isinstance(error, BrokenPipeError)


class Forgiving:
    """A stream for notes and progress, whose failure ends nothing.

    Parameters
    ----------
    stream : file, optional
        Standard error; None where the process was started without one.
    """

    def __init__(self, stream: TextIO | None) -> None:
        self._stream = stream
        self.encoding = getattr(stream, "encoding", None) or "utf-8"

    def __eq__(self, other: object) -> bool:
        # A bar is cleared before a note only if both are known to be on one stream.
        return isinstance(other, Forgiving) and self._stream is other._stream

    def __hash__(self) -> int:
        return hash(id(self._stream))

    def write(self, text: str) -> int:
        """Write text, as far as the stream takes it."""
        if self._stream is not None:
            with suppress(OSError, ValueError):  # a full disk, a closed file
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, as far as it can be."""
        if self._stream is not None:
            with suppress(OSError, ValueError):
                self._stream.flush()

    def isatty(self) -> bool:
        """Return whether the stream is a terminal."""
        return self._stream is not None and self._stream.isatty()

    def fileno(self) -> int:
        """Return the stream's descriptor, from which a progress bar learns the terminal's width."""
        if self._stream is None:
            raise OSError("there is no standard error")
        return self._stream.fileno()


def printable(text: str) -> str:
    """Return text with what could command a terminal written as escapes.

    Names of models, schedules and attributes come from files of others.
    """
    return "".join(
        letter
        if letter in KEPT or letter.isprintable()
        else letter.encode("unicode_escape").decode()
        for letter in text
    )


def hear() -> str:
    """Return what standard input holds, as UTF-8.

    Raises
    ------
    Refusal
        If there is no standard input, or it holds something else.
    """
    try:
        if sys.stdin is None:
            raise Refusal("there is no standard input: give the text itself in the place of -")
        return sys.stdin.read()
    except UnicodeError as error:
        raise Refusal(f"standard input is not UTF-8 text: {error}") from error
    except OSError as error:
        raise Refusal(
            f"standard input cannot be read ({error.strerror}): give the text itself"
        ) from error


def say(text: object) -> None:
    """Print a line, or several, for the user and for machines on standard output.

    Raises
    ------
    Unheard
        If standard output takes no more.
    """
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(f"{printable(str(text))}\n")
        sys.stdout.flush()
    except OSError as error:
        raise Unheard(error) from error


def note(text: object) -> None:
    """Print a line for the user on standard error."""
    stream = Forgiving(sys.stderr)
    stream.write(f"{printable(str(text))}\n")
    stream.flush()


def prepare() -> None:
    """Let standard output and error write what their encoding lacks as escapes."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def let_go() -> None:
    """Drop what standard output cannot take, which Python would complain of at its end."""
    with suppress(ValueError, AttributeError):
        try:
            sys.stdout.flush()
            return
        except OSError:
            pass
        nothing = os.open(os.devnull, os.O_WRONLY)
        os.dup2(nothing, sys.stdout.fileno())
        os.close(nothing)
