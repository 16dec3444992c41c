"""Limits of what passes between this machine and a server."""

from dataclasses import dataclass

SANDBOX_LIMIT = 50.0
"""Gigabytes that may pass through the socket of a sandboxed server in a run, by default."""

ANSWER_LIMIT = 4.0
"""Gigabytes that a trace of the user's own may hand back, by default."""


@dataclass(frozen=True)
class Limits:
    """How much may pass in a run."""

    sandbox: float = SANDBOX_LIMIT
    """Gigabytes through the socket of a server that keeps traces apart from the weights."""
    answer: float = ANSWER_LIMIT * 1e9
    """Bytes of an answer, compressed and not."""


class Unreadable(ValueError):
    """An answer that is not read: it is damaged, too large, or more than tensors and values."""


def check_size(size: float, most: float) -> None:
    """Refuse more bytes than were asked for."""
    if size > most:
        raise Unreadable(f"it is larger than the {most / 1e6:.0f} MB that were asked for")
