"""What a run is about to do, computed before it begins."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from robustness.models.model import Model
from robustness.runs.budget import free_bytes
from robustness.runs.remote_traffic import Crossing, seconds_of
from robustness.runs.request_cost import RequestCost, operations_per_second, room_for


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


def describe(foresight: Foresight) -> list[tuple[str, str]]:
    """Return what a run is about to do as names and values to print."""
    operations = sum(cost.operations for cost in foresight.costs)
    return [
        ("texts", f"{foresight.texts:,}, of {foresight.tokens:,} tokens"),
        ("floating-point operations", f"{operations:.3g}"),
        *describe_traces(foresight),
    ]


def describe_traces(foresight: Foresight) -> list[tuple[str, str]]:
    """Return what traces take, and for a server whether they fit, as names and values to print."""
    costs, remote = foresight.costs, bool(foresight.model.request)
    rows = [("requests" if remote else "batches", f"{len(costs):,}")]
    if costs:
        largest = max(costs, key=lambda cost: cost.memory_bytes)
        states, call = size(largest.state_bytes), size(largest.call_bytes)
        parts = f"{states} of states, {call} of a call"
        name = "memory of a request" if remote else "memory of a batch"
        rows.append((name, f"{size(largest.memory_bytes)} or less: {parts}"))
    if not (remote and costs):
        return rows
    problems = [*_lacking(foresight), *_too_much_traffic(foresight)]
    verdict = "no: " + "; ".join(problems) if problems else "yes"
    return [*rows, *_of_server(foresight), ("fits", verdict)]


def _of_server(foresight: Foresight) -> Iterator[tuple[str, str]]:
    """Yield what is particular to requests to a server."""
    costs, model = foresight.costs, foresight.model
    room = room_for(model)
    if room is not None and model.identity["device"] != "cpu":
        cards = f"{room.cards:,} GPUs" if room.cards > 1 else "its GPU"
        yield "room of the server", f"{size(free_bytes(model))} on {cards}, besides the weights"
    rate = f"at {operations_per_second(model) / 1e12:,.3g} teraflops"
    longest = duration(max(cost.seconds for cost in costs))
    total = duration(sum(cost.seconds for cost in costs))
    yield "time", f"about {total}, {longest} a request or less, {rate}, without waits"
    yield "sent", size(sum(cost.up_bytes for cost in costs))
    yield "comes back", f"{size(sum(cost.down_bytes for cost in costs))}, before it is compressed"
    if not model.sandboxed:
        yield "sandbox", "none: this key's requests run beside the weights"
        return
    crossed = size(sum(crossing.bytes for crossing in foresight.crossings))
    calls = sum(crossing.calls for crossing in foresight.crossings)
    longer = duration(seconds_of(foresight.crossings))
    yield "sandbox", f"{crossed} in {calls:,} calls cross its socket, for some {longer} more"


def _lacking(foresight: Foresight) -> Iterator[str]:
    """Yield what a server has too little of for the largest request."""
    costs, room = foresight.costs, room_for(foresight.model)
    if room is None:
        return
    free = free_bytes(foresight.model)
    # A processor has the memory of its machine, which the server does not tell.
    on_cpu = foresight.model.identity["device"] == "cpu"
    if max(cost.memory_bytes for cost in costs) > free and not on_cpu:
        yield f"a request takes more than {size(free)}"
    longest = max(cost.seconds for cost in costs)
    if room.seconds is not None and longest > room.seconds:
        yield f"the server ends a request after {duration(room.seconds)}"


def _too_much_traffic(foresight: Foresight) -> Iterator[str]:
    """Yield how much more than its limit would cross the socket of a sandbox."""
    limit = foresight.model.request["backend"].limits.sandbox * 1e9
    crossed = sum(crossing.bytes for crossing in foresight.crossings)
    if foresight.model.sandboxed and crossed > limit:
        yield f"more than {size(limit)} would cross the sandbox's socket"


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
