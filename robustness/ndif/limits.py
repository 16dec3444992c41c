"""Limits of the traffic between this machine and a server."""

from dataclasses import dataclass

SANDBOX_LIMIT = 50.0
"""Default maximum of gigabytes that a run passes through the socket of a sandboxed server."""

ANSWER_LIMIT = 4.0
"""Default maximum of gigabytes that the user's own traces return."""


@dataclass(frozen=True)
class Limits:
    """Maximum amounts of traffic."""

    sandbox: float = SANDBOX_LIMIT
    """Maximum number of gigabytes that a run passes through the socket of a server that keeps
    traces apart from the weights."""
    answer: float = ANSWER_LIMIT * 1e9
    """Maximum number of bytes of an answer, both compressed and uncompressed."""


class Unreadable(ValueError):
    """An answer that is damaged, too large, or holds more than tensors and plain values."""


def check_size(size: float, most: float) -> None:
    """Refuse more bytes than were asked for."""
    if size > most:
        raise Unreadable(f"it is larger than the {most / 1e6:.0f} MB that were asked for")
