"""Errors that users can mend: refusals of inputs, and a last catch while input is read."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Literal

LONGEST_MESSAGE = 300
"""Maximum number of characters of another library's message that are repeated."""


OUT_OF_MEMORY = re.compile(
    r"out of (\w+ )?memory|out_of_(\w+_)?memory|can't allocate memory|alloc_failed"
    r"|allocation_failed|invalid buffer size",
    re.IGNORECASE,
)
"""Pattern of messages that memory ran out, on a GPU or on this machine: of torch, of the libraries
cuBLAS and cuDNN, and of Metal for a buffer larger than it can have."""


class Refusal(ValueError):
    """An input that cannot be used.

    The message is one line that says what was asked for, what exists, and what would work. It names
    a setting by its Python name in backticks, as in "ask for `context` 64 or less", and has nothing
    else in backticks. The command line prints the line with the option in the setting's place
    (`--context`), and exits with status 1.
    """


class OtherSettings(Refusal):
    """An output that exists, from a run with other settings."""


class Unwritable(Refusal):
    """A file that cannot be written."""


class InUse(Refusal):
    """An output that another run is writing."""


class Unanswered(Refusal):
    """A server that did not answer for as long as there was patience."""


class TooLarge(Refusal):
    """A request that a server has too little memory or time for.

    Parameters
    ----------
    text : str
        The message.
    lacking : str
        `memory` or `time`.
    """

    def __init__(self, text: str, lacking: Literal["memory", "time"]) -> None:
        super().__init__(text)
        self.lacking = lacking


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or the error's name where it has no message.

    The second line is added where the first ends in a colon. A character that cannot be printed
    becomes a question mark, and a long line is cut.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = lines[0].strip()
    if lines[0].endswith(":"):
        text = " ".join(map(str.strip, lines[:2]))
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    # The message of a missing key is the key alone.
    if isinstance(error, KeyError) and " " not in text:
        text = f"there is no {text}"
    return text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 1]}…"


def last_line(error: BaseException) -> str:
    """Return the last line of an error that was raised in a trace, which is its own message."""
    # nnsight puts a traceback of the traced code before it.
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory ran out, on a GPU or on this machine."""
    # Torch raises a plain RuntimeError where its CPU allocator fails, and a kind of it on a GPU.
    return isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and OUT_OF_MEMORY.search(str(error)) is not None
    )


@contextmanager
def reading(what: str, remedy: str, fault: str = "is damaged or changed") -> Iterator[None]:
    """Refuse input whose reading fails in a way that no check foresaw.

    It is the last catch after the checks of an input, and never replaces them. The error stays the
    refusal's cause, which `stages --debug` shows. Lack of memory is not blamed on the input.

    Parameters
    ----------
    what : str
        Name of the input, such as a file, a model or a server's answer.
    remedy : str
        What the user can do about it.
    fault : str
        What must be wrong with it.

    Raises
    ------
    Refusal
        In place of any other exception.
    """
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        if is_out_of_memory(error):
            raise
        raise Refusal(f"{what} {fault} ({first_line(error)}): {remedy}") from error
