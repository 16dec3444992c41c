"""Output on the terminal: text without control characters, on streams that may fail."""

import os
import sys
from contextlib import suppress
from typing import TextIO

from robustness.errors import Refusal

HARMLESS = "\n\t"
"""Control characters that are not escaped."""


class Unheard(Exception):
    """Standard output accepts no more text; `broken` says that its reader has gone."""

    def __init__(self, error: OSError) -> None:
        super().__init__(os.strerror(error.errno or 0))
        self.broken = isinstance(error, BrokenPipeError)


class Forgiving:
    """A stream for notes and progress that ignores failures to write.

    Parameters
    ----------
    stream : file, optional
        Standard error; None if the process was started without one.
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
        """Write text, as far as the stream accepts it."""
        if self._stream is not None:
            with suppress(OSError, ValueError):  # a full disk, a closed file
                self._stream.write(text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if possible."""
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
    """Return text with control characters escaped, since they could command a terminal.

    Names of models, schedules and attributes come from untrusted files.
    """
    return "".join(map(_escaped, text))


def _escaped(letter: str) -> str:
    if letter in HARMLESS or letter.isprintable():
        return letter
    return letter.encode("unicode_escape").decode()


def hear() -> str:
    """Return the text of standard input.

    Raises
    ------
    Refusal
        If there is no standard input, or it is not UTF-8.
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
        If standard output accepts no more.
    """
    # Python has no stdout in a process that was started with it closed.
    if sys.stdout is None:
        return
    try:
        sys.stdout.write(f"{printable(str(text))}\n")
        # Errors of a pipe or a full disk appear only when the buffer is written.
        sys.stdout.flush()
    except OSError as error:
        raise Unheard(error) from error


def note(text: object) -> None:
    """Print a line for the user on standard error."""
    stream = Forgiving(sys.stderr)
    stream.write(f"{printable(str(text))}\n")
    stream.flush()


def prepare() -> None:
    """Have standard output and error escape letters that their encoding lacks."""
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")


def let_go() -> None:
    """Discard text that standard output cannot accept, so that Python ends without complaint."""
    with suppress(ValueError, AttributeError):
        try:
            sys.stdout.flush()
            return
        except OSError:
            pass
        # Python flushes again at its end: the descriptor has to lead to a place that accepts it.
        devnull = os.open(os.devnull, os.O_WRONLY)
        os.dup2(devnull, sys.stdout.fileno())
        os.close(devnull)
