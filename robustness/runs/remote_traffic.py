"""Traffic through the socket of a sandboxed server, estimated before a run.

A server runs the traces of users whom it does not trust in a process of their own, without weights.
Every state that is read, every call of a block and all logits then cross a socket. Such a run
spends most of its time there, above all with a large vocabulary.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robustness.errors import Refusal
from robustness.models.model import Model
from robustness.schedules.plan import RUN, Plan
from robustness.trace import readout

# Of a small server; larger ones are faster.
CALL_SECONDS = 0.03
"""Duration of a call."""

BYTES_PER_SECOND = 100e6
"""Bytes that cross the socket in a second."""

REQUEST_SECONDS = 5.0
"""Duration of a request without calls."""


@dataclass(frozen=True)
class Crossing:
    """Traffic of one request."""

    calls: int
    """Number of values that are read and modules that are called."""
    bytes: float
    """Bytes that cross the socket, both ways."""


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
        Model on a server.
    plan : Plan
        Plan of the schedules.
    tokens : int
        Number of tokens in a batch.
    queries : int
        Number of tokens in a batch whose predictions are read.
    divergences : int
        Number of kinds of KL that are read; without any, the clean logits are needed once.
    logits : bool
        Whether a metric reads the logits, which are computed for it again.
    """
    state, logits_bytes, chunks = _sizes(model, tokens, queries)
    finals = sum(len(sources) for kind, _, sources, *_ in plan.rows if kind != RUN)
    readings = sum(kind != RUN for kind, *_ in plan.rows)
    read = model.layers + 2
    # A value that is read is also sent back, since the trace may have changed it.
    normed = 2 * queries / tokens * (finals + 1) * len(model.norms)
    heads = finals + 1 + (readings if divergences else 0)
    if logits:
        heads += finals + readings
    # A sublayer takes two calls: its norm, then the attention or the MLP.
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
        Model on a server.
    needs : sequence of str
        Names of the captured tensors, as in `Measurement`.
    tokens : int
        Number of tokens in a batch.
    predicted : int
        Number of tokens whose logits are computed.
    """
    state, logits, calls_of_head = _sizes(model, tokens, predicted)
    layers = model.layers
    wider = getattr(model.config, "intermediate_size", None) or 4 * model.width
    # Sizes in states of the residual stream.
    sizes = {"pattern": 3.0, "neurons": wider / model.width}
    captured = [need for need in needs if need != "prediction"]
    per_layer = 1 + sum(sizes.get(need, 1.0) for need in captured)
    calls = layers * (1 + len(captured)) + 2
    # Both ways: a value that is read is also sent back.
    states = 2 * (layers * per_layer + 2)
    if "context" in needs:
        # Every pair of blocks is run sublayer by sublayer, each of which takes two calls.
        calls += 8 * (layers - 1)
        states += 16 * (layers - 1)
    if predicted:
        calls += calls_of_head + len(model.norms)
        states += (1 + 2 * len(model.norms)) * predicted / tokens
    return Crossing(calls, state * states + logits)


def of_generation(model: Model, steps: int, prompt: int, tokens: int) -> Crossing:
    """Estimate a request that generates tokens with a rewired model.

    Parameters
    ----------
    model : Model
        Model on a server.
    steps : int
        Number of steps of the schedule.
    prompt : int
        Number of tokens of the prompt.
    tokens : int
        Maximum number of tokens to generate.
    """
    # Without a cache, every new token computes all positions before it again.
    positions = sum(range(prompt, prompt + tokens))
    state, _, _ = _sizes(model, positions, 0)
    # Every block is read and skipped, and every step called.
    return Crossing(tokens * (2 * model.layers + steps), state * 2 * (model.layers + steps))


def of_lens(model: Model, tokens: int) -> int:
    """Return the number of tokens whose logits the lens computes.

    At every depth these are the logits of both lenses and, to compare with, the final ones.
    """
    return (3 * (model.layers + 1) + 1) * tokens


def allow(model: Model, crossings: Sequence[Crossing], lower: str) -> None:
    """Announce the traffic of a run on a sandboxed server, and refuse it above `sandbox_limit`.

    Parameters
    ----------
    model : Model
        An opened model; nothing happens unless it is sandboxed.
    crossings : sequence of Crossing
        Traffic of every request of the run.
    lower : str
        Advice that would lower it.
    """
    if not model.sandboxed or not crossings:
        return
    requests = model.request["backend"]
    calls = sum(crossing.calls for crossing in crossings)
    total = sum(crossing.bytes for crossing in crossings)
    seconds = len(crossings) * REQUEST_SECONDS + calls * CALL_SECONDS + total / BYTES_PER_SECOND
    size = total / 1e9
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
    """Return the bytes of a state and of logits, and the number of calls of the head for these."""
    item = {"float64": 8, "float32": 4}.get(model.identity["dtype"], 2)
    chunk = readout.tokens_per_call(model.identity["device"], model.vocabulary)
    state, logits = tokens * model.width * item, queries * model.vocabulary * item
    return float(state), float(logits), math.ceil(queries / chunk)
