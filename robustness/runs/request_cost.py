"""Cost of a request to a server: operations, time, traffic and memory, computed beforehand.

A request holds, besides the weights, states that wait for their next step, what a call of a block
makes of the states that are stacked for it, and the logits of one piece of a reading. Tensors are
counted as they are in the trace functions (`robustness.trace`). Blocks of a model on several cards
lie on them in order, and a state is on the card of the block that made it, so that what counts is
the card that is fullest. The sum is between 0.9 times and twice what is measured. Operations are
those of `robustness.runs.operations`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import astuple, dataclass
from typing import NamedTuple

from robustness.models.intermediates import PATTERNS, numbers_of_token
from robustness.models.model import Model
from robustness.ndif.room import Room
from robustness.runs import operations
from robustness.schedules import Schedule
from robustness.schedules.plan import RUN, Plan
from robustness.schedules.steps import plain
from robustness.trace import paired, readout

OPERATIONS_PER_SECOND, CPU_OPERATIONS_PER_SECOND = 2e14, 5e10
"""Operations that a server does in a second: on cards, what an A100 reaches of its 3.1e14 in large
products of bfloat16, and an H100 in those of ordinary size, where one card works at a time; and on
a few cores of a processor."""

BLOCK_SHARE = 0.75
"""Share of what `numbers_of_token` counts of a block that is counted here, where its input and
output count as states."""

SOURCE_BYTES, LAYER_BYTES, STEP_BYTES, TOKEN_BYTES = 25_000, 150, 6, 6
"""Bytes of a request, compressed: of its source text, for each layer, for each application of a
step and each schedule, and for each token, which goes as text and as target."""

READING_BYTES = 96
"""Bytes that the readouts of one schedule and query take until they are means: eight numbers, once
by themselves, once stacked, and two in float64."""

LOGITS_ALIVE = 7
"""Number of arrays of logits in float32 that are alive at once: where the head is called, clean and
other logits, these with their largest at 0, and exponentials and products of both."""

STRIPS_ALIVE = 4
"""The same where the head's matrix is read, of a strip of the vocabulary."""

CAPTURED = 12
"""Number of tensors of the size of a state that a measurement of a layer has at once: what it
captured, in float32, and what it makes of these."""


class Text(NamedTuple):
    """Text of a request."""

    sequences: int
    """Number of sequences."""
    width: int
    """Tokens that each sequence has with padding."""
    queries: int
    """Number of tokens of all sequences whose predictions are read."""

    @property
    def tokens(self) -> int:
        """Number of tokens, with padding."""
        return self.sequences * self.width


@dataclass(frozen=True)
class RequestCost:
    """Cost of one request."""

    operations: int
    """Floating-point operations of matrix products."""
    seconds: float
    """Expected duration on the server."""
    up_bytes: int
    """Bytes that are sent, about."""
    down_bytes: int
    """Bytes of the answer, before it is compressed."""
    state_bytes: int
    """Bytes of states, and of what is kept of readings, on the fullest card at the peak."""
    call_bytes: int
    """Bytes of what the largest call of a block, or of the head, makes besides."""

    @property
    def memory_bytes(self) -> int:
        """Bytes on the fullest card, besides the weights."""
        return self.state_bytes + self.call_bytes

    @classmethod
    def largest(cls, costs: Sequence["RequestCost"]) -> "RequestCost":
        """Return the largest of every number of several requests."""
        rows = [astuple(cost) for cost in costs]
        return cls(*map(max, zip(*rows, strict=True)))


def item_bytes(model: Model) -> int:
    """Return the bytes of one number of the residual stream."""
    return {"float64": 8, "float32": 4}.get(model.identity["dtype"], 2)


def room_for(model: Model) -> Room | None:
    """Return the room of a request for a model on a server, or None where nothing is known."""
    room = getattr(model.request.get("backend"), "room", None)
    return room if isinstance(room, Room) else None


def of_plan(
    model: Model,
    plan: Plan,
    text: Text,
    numbers: int,
    diverges: bool = True,
    logits: bool = False,
) -> RequestCost:
    """Compute the cost of a request that runs a plan and reads its final states.

    Parameters
    ----------
    model : Model
        An opened model.
    plan : Plan
        Plan of the schedules.
    text : Text
        The text.
    numbers : int
        Number of numbers that it returns.
    diverges : bool
        Whether a KL is read.
    logits : bool
        Whether a metric reads logits.
    """
    state = text.tokens * model.width * item_bytes(model)
    room = room_for(model)
    cards = 1 if room is None or room.sharded else room.cards
    of_read = text.queries * model.width * item_bytes(model)
    alive = state * alive_states(plan, model.layers, cards)
    readings = [len(sources) for kind, _, sources, *_ in plan.rows if kind != RUN]
    # What the head receives of the clean run and of the states of a reading, stacked.
    alive += of_read * (1 + 2 * max(readings, default=0))
    done = operations.block_flops(model, plan, text.sequences, text.width)
    done += operations.head_flops(model, plan, text.queries, diverges, logits)
    steps = plan.applications + plan.schedules
    return RequestCost(
        operations=done,
        seconds=_seconds(model, done),
        up_bytes=_up_bytes(model, text.tokens) + STEP_BYTES * steps,
        down_bytes=_down_bytes(model, numbers),
        state_bytes=alive + READING_BYTES * plan.schedules * text.queries,
        call_bytes=max(
            block_bytes(model, plan.widest * text.tokens, text.width),
            head_bytes(model, text.queries, max(readings, default=1), plan.schedules),
        ),
    )


def of_walk(
    model: Model, needs: Sequence[str], text: Text, numbers: int, kept: bool = False
) -> RequestCost:
    """Compute the cost of a request that observes the clean run.

    Parameters
    ----------
    model : Model
        An opened model.
    needs : sequence of str
        Names of the captured tensors, as in `Measurement`.
    text : Text
        The text; `queries` is the number of tokens whose logits are computed, of all depths.
    numbers : int
        Number of numbers that it returns.
    kept : bool
        Whether the states of all depths are kept until the end, as the lens keeps them.
    """
    state = text.tokens * model.width * item_bytes(model)
    of_blocks = sum(operations.clean_flops(model, text.sequences, text.width))
    wider = getattr(model.config, "intermediate_size", None) or 4 * model.width
    captured = CAPTURED * text.tokens * model.width * 4
    captured += text.tokens * wider * 4 * ("neurons" in needs)
    pattern = PATTERNS * text.tokens * text.width * model.heads * 4
    captured += pattern * ("pattern" in needs)
    # Two blocks in each other's place, sublayer by sublayer, at every layer.
    done = of_blocks * (3 if "context" in needs else 1)
    done += 2 * text.queries * model.vocabulary * model.width
    call = block_bytes(model, text.tokens, text.width)
    # The lens reads depth by depth, twice.
    read = min(text.queries, text.tokens)
    # They are gathered on the last card.
    states = (model.layers + 2) * state if kept else 2 * state
    return RequestCost(
        operations=done,
        seconds=_seconds(model, done),
        up_bytes=_up_bytes(model, text.tokens),
        down_bytes=_down_bytes(model, numbers),
        state_bytes=states + _down_bytes(model, numbers),
        call_bytes=max(call, captured, head_bytes(model, read, 2, text.queries // max(1, read))),
    )


def of_generation(model: Model, schedule: Schedule, prompt: int, tokens: int) -> RequestCost:
    """Compute the cost of a request that generates tokens under a schedule, without a cache.

    Parameters
    ----------
    model : Model
        An opened model.
    schedule : tuple
        The schedule.
    prompt : int
        Number of tokens of the prompt.
    tokens : int
        Maximum number of tokens to generate.
    """
    total = 0
    steps: Counter[operations.Leaf] = Counter()
    for step in schedule:
        steps.update(operations.leaves_of(plain(step)))
    # Every token takes a pass over all before it, and logits of the last.
    for width in range(prompt, prompt + tokens):
        total += operations.of_leaves(model, steps, 1, width)
        total += 2 * model.vocabulary * model.width
    longest = prompt + tokens
    return RequestCost(
        operations=total,
        seconds=_seconds(model, total),
        up_bytes=_up_bytes(model, prompt),
        down_bytes=8 * longest,
        state_bytes=3 * longest * model.width * item_bytes(model),
        call_bytes=max(block_bytes(model, longest, longest), head_bytes(model, 1)),
    )


def describe(cost: RequestCost) -> str:
    """Return what a request takes, for a message."""
    return (
        f"{cost.operations:.2g} operations (some {cost.seconds:.3g} s), "
        f"{cost.state_bytes / 1e9:.2g} GB of states and {cost.call_bytes / 1e9:.2g} GB of "
        "intermediates"
    )


def alive_states(plan: Plan, layers: int, cards: int = 1) -> int:
    """Return the largest number of states that are on one card at once.

    The input and the output of a call count both. States that came of one call share its memory,
    which is free when all of them are.

    Parameters
    ----------
    plan : Plan
        Plan of the schedules.
    layers : int
        Number of blocks.
    cards : int
        Number of cards, over which the blocks are spread in order.
    """
    # For every piece of memory, its card, its size, and how many of its states are still needed.
    places: dict[int, list[int]] = {}
    used = [0] * cards
    for state in plan.clean_states:
        places[state] = [min(state, layers - 1) * cards // layers, 1, 1]
    for card, _, _ in places.values():
        used[card] += 1
    peak = max(used)
    for kind, step, sources, results, done in plan.rows:
        if kind != RUN:
            _release(places, done, used)
            continue
        leaves = operations.leaves_of(step)
        # A scale of the stream is where its state is.
        card = leaf_layer(leaves[0]) * cards // layers if leaves else places[sources[0]][0]
        _release(places, done, used)
        used[card] += len(results)
        peak = max(peak, *used, used[card] + len(sources))
        made = [card, len(results), len(results)]
        places |= dict.fromkeys(results, made)
    # The last state of the clean run is compared with all others.
    return peak + 1


def leaf_layer(leaf: operations.Leaf) -> int:
    """Return the layer of a block or a sublayer."""
    return leaf if isinstance(leaf, int) else int(leaf[1])


def _release(places: dict[int, list[int]], done: Sequence[int], used: list[int]) -> None:
    """Free the memory of states that are no longer needed."""
    for state in done:
        place = places.pop(state)
        place[2] -= 1
        if not place[2]:
            used[place[0]] -= place[1]


def head_bytes(model: Model, queries: int, stacked: int = 1, schedules: int = 1) -> int:
    """Return the bytes of logits, and of what they are made of, while predictions are read.

    Parameters
    ----------
    model : Model
        An opened model.
    queries : int
        Number of tokens whose predictions are read.
    stacked : int
        Number of states that are read together.
    schedules : int
        Number of schedules whose predictions are read of these tokens, one after the other.
    """
    if not queries:
        return 0
    device, number = model.identity["device"], max(4, item_bytes(model))
    if not operations.head_is_read(model, queries * (schedules + 1)):
        piece = min(queries, readout.tokens_per_call(device, model.vocabulary))
        return piece * model.vocabulary * (LOGITS_ALIVE * number + item_bytes(model))
    rows = (stacked + 1) * queries
    rows = min(rows, paired.ROWS_AT_ONCE.get(device, rows))
    columns = min(model.vocabulary, paired.columns_at_once(rows, model.width, device))
    # The clean states and the others in one, and these as factors of the product.
    made = 2 * (stacked + 1) * queries * model.width * item_bytes(model)
    return made + STRIPS_ALIVE * rows * columns * number


def block_bytes(model: Model, tokens: int, width: int) -> int:
    """Return the bytes of what a block makes of stacked tokens, in sequences of `width` tokens."""
    room = room_for(model)
    share = BLOCK_SHARE if room is None or not room.sharded else BLOCK_SHARE / room.cards
    return int(share * tokens * numbers_of_token(model, width) * item_bytes(model))


def operations_per_second(model: Model) -> float:
    """Return how many operations the server of a model is expected to do in a second."""
    on_cpu = model.identity["device"] == "cpu"
    return CPU_OPERATIONS_PER_SECOND if on_cpu else OPERATIONS_PER_SECOND


def _seconds(model: Model, count: int) -> float:
    """Return the expected duration of a number of operations."""
    return count / operations_per_second(model)


def _up_bytes(model: Model, tokens: int) -> int:
    return SOURCE_BYTES + LAYER_BYTES * model.layers + TOKEN_BYTES * tokens


def _down_bytes(model: Model, numbers: int) -> int:
    return numbers * (8 if model.precision == "float64" else 4)
