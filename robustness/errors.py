"""The one exception for an input that cannot be used, and the door at which input is read."""

from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 300
"""Letters of another library's message that are told."""


class Refusal(ValueError):
    """An input that cannot be used; the message says what was asked, what is there, what would do.

    The command line prints it as one line and exits with status 1.
    """


class OtherSettings(Refusal):
    """A file of other settings stands where a run would save."""


class Unwritable(Refusal):
    """A file that cannot be written."""


class InUse(Refusal):
    """Another run writes where a run would save."""


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message, or its name if it has none.

    With the next where the first ends in a colon; printable, and cut where it is long. A missing
    key, whose message is the key alone, is said to be missing.
    """
    lines = str(error).strip().splitlines() or [type(error).__name__]
    text = " ".join(line.strip() for line in lines[: 2 if lines[0].endswith(":") else 1])
    text = "".join(letter if letter.isprintable() else "?" for letter in text)
    if isinstance(error, KeyError) and " " not in text:
        text = f"there is no {text}"
    return text if len(text) <= LONGEST else f"{text[: LONGEST - 1]}…"


def last_line(error: BaseException) -> str:
    """Return the last line of an error: what it says, where it was raised in a trace."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    return lines[-1].strip()


@contextmanager
def reading(what: str, remedy: str) -> Iterator[None]:
    """Refuse input from outside whose reading fails in a way that no check foresaw.

    The last catch behind the checks of a door, never in their place. The error stays the
    refusal's cause, which `stages --debug` shows. Lack of memory is no fault of the input.

    Parameters
    ----------
    what : str
        Name of the input: a file, a model, a server's answer.
    remedy : str
        What the user can do about it.

    Raises
    ------
    Refusal
        In the place of any other exception.
    """
    try:
        yield
    except (Refusal, MemoryError):
        raise
    except Exception as error:
        if "out of memory" in str(error).lower():
            raise
        raise Refusal(f"{what} is damaged or changed ({first_line(error)}): {remedy}") from error
