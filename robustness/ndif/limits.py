"""Limits of the traffic between this machine and a server."""

from dataclasses import dataclass

SANDBOX_LIMIT = 50.0
"""Default maximum of gigabytes that a run passes through the socket of a sandboxed server."""

ANSWER_LIMIT = 4.0
"""Default maximum of gigabytes that the user's own traces return."""


PATIENCE = 10.0
"""Default maximum of minutes for which a server that does not answer is asked again."""


@dataclass(frozen=True)
class Limits:
    """Maximum amounts of traffic, of memory and of time."""

    sandbox: float = SANDBOX_LIMIT
    """Maximum number of gigabytes that a run passes through the socket of a server that keeps
    traces apart from the weights."""
    answer: float = ANSWER_LIMIT * 1e9
    """Maximum number of bytes of an answer, both compressed and uncompressed."""
    patience: float = PATIENCE
    """Maximum number of minutes for which a server that does not answer is asked again."""
    seconds: float | None = None
    """Seconds that a request should take at most; None for a number that suits the server."""
    memory: float | None = None
    """Bytes that a request should take at most on a GPU of the server, besides the weights; None
    for a number that suits the server."""


class Unreadable(ValueError):
    """An answer that is damaged, too large, or holds more than tensors and plain values."""


def check_size(size: float, most: float) -> None:
    """Refuse more bytes than were asked for."""
    if size > most:
        raise Unreadable(f"it is larger than the {most / 1e6:.0f} MB that were asked for")
