"""Traffic through the socket of a sandboxed server, estimated before a run.

A server runs the traces of users whom it does not trust in a process of their own, without weights.
Whatever a trace reads, replaces or calls crosses a socket, and what is read crosses it twice. Plans
therefore run as passes (`robustness.trace.passes`), and the head's matrix is made there of calls on
the rows of the identity, if fewer numbers cross for it than for the logits.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from robustness.errors import Refusal
from robustness.models import pass_check
from robustness.models.model import Model
from robustness.schedules import Schedule, clean, passes
from robustness.schedules.passes import compile_passes, takes_entry
from robustness.schedules.plan import RUN, Plan, compile_plan

# Of a small server on a processor; larger ones are faster.
CALL_SECONDS = 0.003
"""Duration of a call."""

BYTES_PER_SECOND = 100e6
"""Bytes that cross the socket in a second."""

REQUEST_SECONDS = 5.0
"""Duration of a request without calls."""

MESSAGE_BYTES = 2000
"""Bytes of a message besides the numbers in it."""

TOKEN_BYTES = 8
"""Bytes of a token, which each pass is given anew."""

MATRIX_SHARE = 0.1
"""Share of the head's matrix in what crosses, below which larger requests are hardly worth it."""

TRUSTED = (
    "nothing crosses a socket for keys with the tag 'trusted', which the operators of the server "
    "give (for NDIF, ask at https://ndif.us)"
)
"""What makes the sandbox unnecessary."""


@dataclass(frozen=True)
class Crossing:
    """Traffic of one request."""

    calls: int
    """Number of values that are read or replaced and modules that are called or skipped."""
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
    finals = sum(len(sources) for kind, _, sources, *_ in plan.rows if kind != RUN)
    readings = sum(kind != RUN for kind, *_ in plan.rows)
    as_passes = pass_check.as_passes(model, plan)
    states, calls = _of_passes(model, plan) if as_passes else _of_calls(model, plan)
    if as_passes:
        # Final states are read one by one.
        readings = finals
    else:
        states += 2 * queries / tokens * (finals + 1) * len(model.norms)
    heads = finals + 1 + (readings if divergences else 0)
    if logits:
        heads += finals + readings
    of_head = _of_head(model, queries * (plan.schedules + 1), queries * heads)
    traces = 2 + calls // (model.layers + 2) if as_passes else 1
    return Crossing(
        calls=calls + (finals + 1) * len(model.norms) * (not as_passes) + heads,
        bytes=_item_bytes(model) * (tokens * model.width * states + of_head)
        + 2 * MESSAGE_BYTES * calls
        + TOKEN_BYTES * tokens * traces,
    )


def thrifty_tokens(model: Model, plan: Plan) -> int:
    """Return from how many tokens on the head's matrix is a tenth of what crosses, or less.

    Every request makes the matrix anew, so that fewer, larger requests cross less. Beyond this
    number they hardly do.

    Parameters
    ----------
    model : Model
        Model on a server.
    plan : Plan
        Plan of the schedules of a request.
    """
    states, _ = _of_passes(model, plan) if passes.suits(plan) else _of_calls(model, plan)
    return math.ceil((1 / MATRIX_SHARE - 1) * (model.width + model.vocabulary) / states)


def _of_passes(model: Model, plan: Plan) -> tuple[float, int]:
    """Return the states that cross when a plan runs as passes, and the number of exchanges."""
    rows, layers = compile_passes(plan, model.layers), model.layers
    states, calls = 1.0 + sum(state > 0 for state in plan.clean_states), 2
    # What enters the first block is read, and so is sent back.
    states += 2 * takes_entry(rows)
    for source, first, _, kept, ends, _ in rows:
        if (source, first) != (layers, layers):
            states += 1 + len(kept) + bool(ends)
            calls += layers + 2
    return states, calls


def _of_calls(model: Model, plan: Plan) -> tuple[float, int]:
    """Return the states that cross when a plan calls its steps, and the number of exchanges."""
    read = model.layers + 2
    # A sublayer takes two calls: its norm, then the attention or the MLP.
    modules = plan.block_calls + 2 * plan.sublayer_calls
    stacked = plan.calls / max(1, plan.applications)
    return 2.0 * read + 2 * modules, read + round(modules * stacked)


def _of_head(model: Model, tokens: float, called: float) -> float:
    """Return the numbers that cross for logits of tokens, of which some are computed repeatedly."""
    there = model.head_there(tokens) if model.request else None
    row = model.width + model.vocabulary
    # A model that is not on a server is taken for one with a head that is a matrix.
    worth = there["worth"] if there else not model.request and tokens > model.width
    return row * (model.width if worth else called)


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
    layers = model.layers
    wider = getattr(model.config, "intermediate_size", None) or 4 * model.width
    shared = getattr(model.config, "num_key_value_heads", None) or model.heads
    # Sizes in states of the residual stream: of queries, keys and values, and of neurons.
    pattern = (model.heads + 2 * shared) * model.head_width / model.width
    sizes = {"pattern": pattern, "neurons": wider / model.width}
    captured = [need for need in needs if need != "prediction"]
    per_layer = 1 + sum(sizes.get(need, 1.0) for need in captured)
    calls = layers * (1 + len(captured)) + 2
    # Both ways: a value that is read is also sent back.
    states = 2 * (layers * per_layer + 2)
    if "context" in needs:
        # Every pair of blocks is run sublayer by sublayer, each of which takes two calls.
        calls += 8 * (layers - 1)
        states += 16 * (layers - 1)
    of_head = 0.0
    if predicted:
        # A lens takes three logits of each state that it norms.
        normed = predicted / (3 if predicted > tokens else 1)
        calls += len(model.norms) * (layers + 2)
        states += 2 * len(model.norms) * normed / tokens
        of_head = _of_head(model, predicted, predicted)
    numbers = tokens * model.width * states + of_head
    return Crossing(calls, _item_bytes(model) * numbers + 2 * MESSAGE_BYTES * calls)


def of_generation(model: Model, schedule: Schedule, prompt: int, tokens: int) -> Crossing:
    """Estimate a request that generates tokens under a schedule.

    Parameters
    ----------
    model : Model
        Model on a server.
    schedule : tuple
        The schedule.
    prompt : int
        Number of tokens of the prompt.
    tokens : int
        Maximum number of tokens to generate.
    """
    plan = compile_plan([schedule], clean(model.layers))
    if pass_check.as_passes(model, plan):
        states, calls = _of_passes(model, plan)
    else:
        # Every block is read and skipped, and every step called.
        states = 3.0 * model.layers + 2 * (plan.block_calls + 2 * plan.sublayer_calls)
        calls = 2 * model.layers + plan.calls
    # Without a cache, every new token computes all positions before it again.
    positions = sum(range(prompt, prompt + tokens))
    numbers = states * positions * model.width
    return Crossing(
        tokens * calls, _item_bytes(model) * numbers + 2 * MESSAGE_BYTES * tokens * calls
    )


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
    size = sum(crossing.bytes for crossing in crossings) / 1e9
    count = f"{len(crossings):,} request" + "s" * (len(crossings) > 1)
    text = (
        f"{requests.host} runs this key's requests in a sandbox: {calls:,} calls and {size:.2f} GB "
        f"will cross its socket in {count}, for some {_duration(seconds_of(crossings))}"
    )
    if size > requests.limit:
        share = 100 * requests.limit / size
        raise Refusal(
            f"{text}; more than {requests.limit:g} GB, which {share:.2g} % of the run would take: "
            f"ask for {lower}, or raise `sandbox_limit`; {TRUSTED}"
        )
    requests.notify(text)


def seconds_of(crossings: Sequence[Crossing]) -> float:
    """Return about how long the requests of a run take, of which the socket takes most."""
    calls = sum(crossing.calls for crossing in crossings)
    total = sum(crossing.bytes for crossing in crossings)
    return len(crossings) * REQUEST_SECONDS + calls * CALL_SECONDS + total / BYTES_PER_SECOND


def _duration(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 100 else f"{seconds / 60:.0f} min"


def _item_bytes(model: Model) -> int:
    """Return the bytes of a number of a state."""
    return {"float64": 8, "float32": 4}.get(model.identity["dtype"], 2)
