"""Values of JSON in the lines of a file, and their descriptions in messages."""

import codecs
import json
import re
from collections.abc import Iterator
from typing import IO, Any, TypeGuard

from robustness.errors import Refusal, first_line


def numbered_lines(file: IO[bytes], name: str, longest: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number of each line from 1, the byte at which it begins, and its bytes.

    Raises
    ------
    Refusal
        If a line has more than `longest` bytes.
    """
    number, at = 0, 0
    # One byte more than allowed, so that a line without end is never held whole.
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise Refusal(
                f"{name}, line {number}, is longer than {longest >> 10} KiB: divide it into several"
            )
        yield number, at, line
        at += len(line)


def decode_line(line: bytes, name: str, number: int) -> str:
    """Return the text of a line, and of the first one without its byte order mark.

    Raises
    ------
    Refusal
        If the line is not UTF-8.
    """
    try:
        return (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
    except UnicodeDecodeError as error:
        raise Refusal(
            f"{name} cannot be read as UTF-8 text (line {number}: {error.reason} at byte "
            f"{error.start}): save it as UTF-8"
        ) from error


class NotJson(Refusal):
    """A text that is not JSON."""


def _unique_names(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON, and raise ValueError where a name is in it twice."""
    # The parser itself would keep the last of two and say nothing.
    members = dict(pairs)
    if len(members) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:20]!r} is there twice")
    return members


DECODER = json.JSONDecoder(object_pairs_hook=_unique_names)

SPACE = re.compile(r"[ \t\r\n]*")
"""Space that JSON allows between values."""


def parse_values(text: str, name: str, number: int = 1) -> list[Any]:
    """Return the consecutive values of JSON in a text.

    Parameters
    ----------
    text : str
        Text to parse, usually a line with one value.
    name : str
        Name of the file.
    number : int
        Number of the line that the text begins in.

    Raises
    ------
    NotJson
        If the text is not JSON, an object has a name twice, or values are nested too deeply.
    """
    values = []
    at = _skip_space(text, 0)
    while at < len(text):
        try:
            value, at = DECODER.raw_decode(text, at)
        except (ValueError, RecursionError) as error:
            problem = _json_problem(error, number)
            raise NotJson(
                f"{name} cannot be read as json ({problem}): write an object a line"
            ) from error
        values.append(value)
        at = _skip_space(text, at)
    return values


def _skip_space(text: str, at: int) -> int:
    space = SPACE.match(text, at)
    return at if space is None else space.end()


def _json_problem(error: Exception, number: int) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"line {number + error.lineno - 1}, column {error.colno}: {error.msg}"
    if isinstance(error, RecursionError):
        return f"line {number} is nested too deeply"
    return f"line {number}: {first_line(error)}"


def describe_value(value: Any) -> str:
    """Return the type of a value of JSON in a word or two, for a message."""
    if value is None or isinstance(value, bool):
        return str(value)
    if isinstance(value, str):
        return "a text" if is_text(value) else "half of a surrogate pair"
    if isinstance(value, (int, float)):
        return "a number"
    return "a list" if isinstance(value, list) else "an object"


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a text that can be encoded: one without halves of surrogate pairs."""
    # JSON can write such a half as an escape, which tokenizers cannot take.
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def brief(value: Any) -> str:
    """Return a value of JSON for a message, and only its type for a list or an object."""
    if isinstance(value, str):
        return repr(value[:40])[:60]
    if value is None or isinstance(value, (int, float)):
        return repr(value)[:60]
    return describe_value(value)
