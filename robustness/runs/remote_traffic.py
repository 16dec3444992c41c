"""What crosses the socket of a sandboxed server, estimated before a run.

Where a server does not know the user, a trace runs in a process of its own, without weights: every
state that is read, every block that is called and all logits go through a socket. That is most of
the time of such a run, and for a large vocabulary out of all proportion.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from robustness.errors import Refusal
from robustness.models.model import Model
from robustness.schedules.plan import RUN, Plan
from robustness.trace import readout

CALL_SECONDS, BYTES_PER_SECOND, REQUEST_SECONDS = 0.03, 100e6, 5.0
"""Of a call, of what crosses, and of a request, on a small server; larger ones are faster."""


@dataclass(frozen=True)
class Crossing:
    """What crosses the socket for one request."""

    calls: int
    """Values that are read, and modules that are called."""
    bytes: float


def of_plan(
    model: Model,
    plan: Plan,
    tokens: int,
    queries: int,
    divergences: int,
    logits: bool = False,
) -> Crossing:
    """Estimate a request that runs a plan.

    Parameters
    ----------
    model : Model
        On a server.
    plan : Plan
        What is executed.
    tokens, queries : int
        Of a batch: all, and those whose predictions are read.
    divergences : int
        How many kinds of KL are read; without any, the clean logits are needed once.
    logits : bool
        Whether a metric reads the logits, which are computed for it again.
    """
    state, logits_bytes, chunks = _sizes(model, tokens, queries)
    finals = sum(len(sources) for kind, _, sources, *_ in plan.rows if kind != RUN)
    readings = sum(kind != RUN for kind, *_ in plan.rows)
    read = model.layers + 2
    # What is read is sent back, because it may have been changed.
    normed = 2 * queries / tokens * (finals + 1) * len(model.norms)
    heads = finals + 1 + (readings if divergences else 0)
    if logits:
        heads += finals + readings
    # A sublayer is called behind its norm.
    modules = plan.block_calls + 2 * plan.sublayer_calls
    stacked = plan.calls / max(1, plan.applications)
    return Crossing(
        calls=read + round(modules * stacked) + (finals + 1) * len(model.norms) + heads * chunks,
        bytes=state * (2 * read + 2 * modules + normed)
        + heads * (logits_bytes + state * queries / tokens),
    )


def of_walk(model: Model, needs: Sequence[str], tokens: int, predicted: int) -> Crossing:
    """Estimate a request that observes the clean run.

    Parameters
    ----------
    model : Model
        On a server.
    needs : sequence of str
        As of `Measurement`.
    tokens : int
        Of a batch.
    predicted : int
        Tokens whose logits are computed.
    """
    state, logits, calls_of_head = _sizes(model, tokens, predicted)
    layers = model.layers
    wider = getattr(model.config, "intermediate_size", None) or 4 * model.width
    sizes = {"pattern": 3.0, "neurons": wider / model.width}
    captured = [need for need in needs if need != "prediction"]
    calls = layers * (1 + len(captured)) + 2
    states = 2 * (layers * (1 + sum(sizes.get(need, 1.0) for need in captured)) + 2)
    if "context" in needs:
        # Every pair of blocks is run sublayer by sublayer, each behind its norm.
        calls += 8 * (layers - 1)
        states += 16 * (layers - 1)
    if predicted:
        calls += calls_of_head + len(model.norms)
        states += (1 + 2 * len(model.norms)) * predicted / tokens
    return Crossing(calls, state * states + logits)


def of_generation(model: Model, steps: int, prompt: int, tokens: int) -> Crossing:
    """Estimate a request that generates tokens by a rewired model, which has no cache.

    Parameters
    ----------
    model : Model
        On a server.
    steps : int
        Of the schedule.
    prompt, tokens : int
        How many tokens there are, and how many are generated at most.
    """
    positions = sum(range(prompt, prompt + tokens))
    state, _, _ = _sizes(model, positions, 0)
    # Every block is read and skipped, and every step called.
    return Crossing(tokens * (2 * model.layers + steps), state * 2 * (model.layers + steps))


def of_lens(model: Model, tokens: int) -> int:
    """Return of how many tokens the lens computes logits: at each depth clean and two ways."""
    return (3 * (model.layers + 1) + 1) * tokens


def allow(model: Model, crossings: Sequence[Crossing], lower: str) -> None:
    """Tell what a run on a sandboxed server costs, and refuse one that passes more than is asked.

    Parameters
    ----------
    model : Model
        An opened model; nothing happens unless it is sandboxed.
    crossings : sequence of Crossing
        Of every request of the run.
    lower : str
        What would lower it.
    """
    if not model.sandboxed or not crossings:
        return
    requests = model.request["backend"]
    calls, crossing = (sum(getattr(c, name) for c in crossings) for name in ("calls", "bytes"))
    seconds = len(crossings) * REQUEST_SECONDS + calls * CALL_SECONDS + crossing / BYTES_PER_SECOND
    size = crossing / 1e9
    text = (
        f"{requests.host} runs this key's requests in a sandbox: {calls} calls and {size:.2f} GB "
        f"will cross its socket in {len(crossings)} requests, for some {_duration(seconds)}"
    )
    if size > requests.limit:
        raise Refusal(
            f"{text}; more than {requests.limit:g} GB: ask for {lower}, or raise `sandbox_limit`"
        )
    requests.notify(text)


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _sizes(model: Model, tokens: int, queries: int) -> tuple[float, float, int]:
    """Return the bytes of a state and of its logits, and how many calls of the head these take."""
    item = {"float64": 8, "float32": 4}.get(model.identity["dtype"], 2)
    chunk = readout.tokens_per_call(model.identity["device"], model.vocabulary)
    return (
        float(tokens * model.width * item),
        float(queries * model.vocabulary * item),
        -(-queries // chunk),
    )
