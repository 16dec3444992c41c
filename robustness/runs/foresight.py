"""What a run is about to do, computed before it begins."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustness.models.model import Model
from robustness.runs.remote_traffic import Crossing
from robustness.runs.request_cost import OPERATIONS_PER_SECOND, RequestCost, room_for


@dataclass(frozen=True, eq=False)
class Foresight:
    """Texts that a run is going to read, and what its traces take.

    A trace of a model on a server is a request.
    """

    model: Model
    """The opened model."""
    texts: int
    """Number of texts or sequences."""
    tokens: int
    """Number of their tokens, without padding."""
    costs: Sequence[RequestCost]
    """Cost of each trace."""
    crossings: Sequence[Crossing] = ()
    """Traffic of each trace through the socket of a sandboxed server."""

    @property
    def seconds(self) -> float:
        """Expected duration on a server."""
        return sum(cost.seconds for cost in self.costs)

    @property
    def memory_bytes(self) -> int:
        """Bytes that the largest trace takes on a card, besides the weights."""
        return max((cost.memory_bytes for cost in self.costs), default=0)


def describe(foresight: Foresight) -> list[tuple[str, str]]:
    """Return what a run is about to do as names and values to print."""
    costs, model = foresight.costs, foresight.model
    remote = bool(model.request)
    operations = [cost.operations for cost in costs]
    rows = [
        ("texts", f"{foresight.texts:,}, of {foresight.tokens:,} tokens"),
        ("requests" if remote else "batches", f"{len(costs):,}"),
        ("floating-point operations", f"{sum(operations):.3g}"),
    ]
    largest = max(costs, key=lambda cost: cost.memory_bytes, default=None)
    if largest is not None:
        states, call = size(largest.state_bytes), size(largest.call_bytes)
        parts = f"{states} of states, {call} of a call"
        rows.append(("memory of a trace", f"{size(largest.memory_bytes)}: {parts}"))
    return [*rows, *_of_server(foresight)] if remote else rows


def _of_server(foresight: Foresight) -> list[tuple[str, str]]:
    """Return what is particular to a run on a server."""
    costs, model = foresight.costs, foresight.model
    longest = max((cost.seconds for cost in costs), default=0.0)
    rate = f"if the server does {OPERATIONS_PER_SECOND:.0e} operations a second".replace("e+", "e")
    rows = [
        (
            "time",
            f"about {duration(foresight.seconds)}, {duration(longest)} a request or less, {rate}",
        ),
        ("sent", size(sum(cost.up_bytes for cost in costs))),
        ("comes back", f"{size(sum(cost.down_bytes for cost in costs))}, before it is compressed"),
    ]
    room, limits = room_for(model), model.request["backend"].limits
    problems = []
    if room is not None:
        have = f"{size(room.free_bytes)} on each of {room.cards:,} GPUs"
        rows.append(("room on the server", f"about {have}, besides the weights"))
        if foresight.memory_bytes > room.free_bytes:
            problems.append("a request takes more memory than there is")
        if room.seconds is not None and longest > room.seconds:
            problems.append(f"the server ends requests after {duration(room.seconds)}")
    if model.sandboxed and foresight.crossings:
        crossed = sum(crossing.bytes for crossing in foresight.crossings) / 1e9
        calls = sum(crossing.calls for crossing in foresight.crossings)
        rows.append(("through the sandbox's socket", f"{crossed:,.2f} GB in {calls:,} messages"))
        if crossed > limits.sandbox:
            problems.append(f"more than {limits.sandbox:g} GB through the socket")
    elif not model.sandboxed:
        rows.append(("sandbox", "none: this key's requests run beside the weights"))
    rows.append(("fits", "no: " + "; ".join(problems) if problems else "yes"))
    return rows


def size(count: float) -> str:
    """Return a number of bytes as text."""
    for unit, least in (("GB", 1e9), ("MB", 1e6)):
        if count >= least:
            return f"{count / least:,.1f} {unit}"
    return f"{count / 1e3:,.1f} kB"


def duration(seconds: float) -> str:
    """Return a number of seconds as text."""
    for unit, least in (("hours", 3600), ("minutes", 60)):
        if seconds >= least:
            return f"{seconds / least:.1f} {unit}"
    return f"{seconds:.1f} s" if seconds < 10 else f"{seconds:.0f} s"
