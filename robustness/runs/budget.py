"""Budgets of a request to a server: how much memory and time it should take.

Where the user asks for none, a request is planned with `SHARE` of the memory that its card has
besides the weights. The rest is for what the estimate leaves out: memory that the allocator holds
in pieces which fit nothing, workspaces of libraries, masks and rotary embeddings. Time is a minute,
or half of what the server allows if that is less: a request that fails costs no more than that,
others in the server's queue wait no longer, and the work that a request repeats (its clean run)
stays small beside the rest.
"""

from collections.abc import Callable
from dataclasses import dataclass

from robustness.models.model import Model
from robustness.ndif.limits import Limits
from robustness.ndif.report import Report
from robustness.ndif.room import MOST_BYTES
from robustness.runs.request_cost import RequestCost, item_bytes, room_for

SHARE = 0.6
"""Share of the free memory that a request is planned to take."""

SECONDS = 60.0
"""Seconds that a request is planned to take at most."""

SHARE_OF_TIMEOUT = 0.5
"""Share of the time that the server allows which a request is planned to take at most."""

SLOW = 2
"""How many times its budget a request may take until the following ones are made smaller."""


@dataclass(frozen=True)
class Budget:
    """Memory and time that a request should take at most."""

    memory_bytes: float
    """Bytes on the fullest card, besides the weights."""
    seconds: float

    def allows(self, cost: RequestCost) -> bool:
        """Whether a request stays within it."""
        return cost.memory_bytes <= self.memory_bytes and cost.seconds <= self.seconds


def budget_for(model: Model) -> Budget | None:
    """Return the budget of a request for a model on a server, or None where nothing is known."""
    room, limits = room_for(model), limits_for(model)
    if room is None:
        return None
    seconds = limits.seconds
    if seconds is None:
        most = SECONDS if room.seconds is None else SHARE_OF_TIMEOUT * room.seconds
        seconds = min(SECONDS, most)
    memory = limits.memory
    if memory is None:
        memory = SHARE * free_bytes(model) if model.identity["device"] != "cpu" else float("inf")
    return Budget(memory, seconds)


def free_bytes(model: Model) -> int:
    """Return the bytes that are free on the fullest card of a model on a server.

    They are what the server reported of its last request, or else what follows from what it has
    assigned.
    """
    room = room_for(model)
    assert room is not None
    reports = getattr(model.request["backend"], "reports", ())
    for report in reversed(reports):
        # A server that has shown that it computes has some, and no card has a TB.
        if report.free_bytes is not None and 0 < report.free_bytes < MOST_BYTES:
            return int(report.free_bytes)
    free = room.free_bytes
    if room.cards > 1 and not room.sharded:
        # Blocks are not divided: one card may have a block more than its share.
        free -= item_bytes(model) * max(model.block_parameters)
    return max(1, free)


def limits_for(model: Model) -> Limits:
    """Return the limits that the user has set for requests."""
    limits = getattr(model.request.get("backend"), "limits", None)
    return limits if isinstance(limits, Limits) else Limits()


def pace_of(
    model: Model, tell: Callable[[str], object] = lambda text: None
) -> Callable[[], float | None]:
    """Return a function that tells how long requests take, where they take far too long.

    It returns the seconds of the slowest request since it was last called if these are more than
    `SLOW` times the budget, and None otherwise, or where the server does not report them. What the
    server reports of the first request, it passes to `tell`.
    """
    budget, reports = budget_for(model), getattr(model.request.get("backend"), "reports", [])
    begun = seen = len(reports)

    def slowest() -> float | None:
        nonlocal seen
        new, seen = reports[seen:], len(reports)
        first = next((report for report in new if report.seconds is not None), None)
        if first is not None and first is reports[begun]:
            tell(f"the first request took {_described(first)}")
        seconds = max((report.seconds or 0.0 for report in new), default=0.0)
        return seconds if budget is not None and seconds > SLOW * budget.seconds else None

    return slowest


def _described(report: Report) -> str:
    """Return what a request took, as text."""
    text = f"{report.seconds:.1f} s on the server"
    if report.peak_bytes:
        text += f", and {report.peak_bytes / 1e9:.2g}"
        text += f" of {report.free_bytes / 1e9:.2g}" if report.free_bytes else ""
        text += " GB of its GPU besides the weights"
    return text
