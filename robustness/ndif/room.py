"""Room of a request on a server: memory that its cards have besides the weights, and its time.

A server of NDIF assigns a replica of a model the bytes of its weights, 15 % more and 500 MiB,
spread evenly over its cards, and the process cannot take more on a card. What is not weights is
the room of a request. Where a server does not say what it has assigned, it is computed in this way.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

PADDING = 0.15
"""Share of the weights that a server assigns besides them, unless it is told otherwise."""

PADDING_BYTES = 500 * 2**20
"""Number of bytes that it assigns besides that."""

CARD_BYTES = 80e9
"""Bytes of a card, where a server does not say how many cards a model has."""

MOST_BYTES = 2**40
"""Number of bytes above which what a server says of one card is not believed."""

MOST_CARDS = 1024
"""Number of cards above which what a server says is not believed."""

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
"""Bytes of a number, by type; of any other type, it is taken for two."""


@dataclass(frozen=True)
class Room:
    """What a request may take on a server."""

    free_bytes: int
    """Bytes that each card has besides the weights, if these are spread evenly."""
    cards: int = 1
    """Number of cards that the model is spread over."""
    sharded: bool = False
    """Whether every matrix is spread over all cards, which then hold each state whole. Otherwise
    blocks are: the first ones are on the first card, and so on."""
    seconds: float | None = None
    """Seconds after which the server ends a request; None where it does not say, or never does."""


@dataclass(frozen=True)
class Assigned:
    """What a server says that a replica of a model has; None where it says nothing usable."""

    parameters: int | None = None
    """Number of the model's parameters."""
    size_bytes: int | None = None
    """Bytes assigned to it on all cards together."""
    cards: int | None = None
    """Number of its cards."""
    seconds: float | None = None
    """Seconds after which a request is ended."""
    sharded: bool = False
    """Whether every matrix is spread over all cards."""


def read_assigned(entry: Mapping[str, object]) -> Assigned:
    """Read what a server says of a replica; what cannot be true is left out."""
    cards = _number(entry.get("gpus"), MOST_CARDS)
    of_all = MOST_BYTES * (cards or MOST_CARDS)
    parameters = _number(entry.get("n_params"), of_all)
    size = _number(entry.get("size_bytes"), of_all)
    seconds = _number(entry.get("execution_timeout_seconds"), 1e9)
    actor = entry.get("actor_class")
    return Assigned(
        parameters=None if parameters is None else int(parameters),
        size_bytes=None if size is None else int(size),
        cards=None if cards is None else max(1, int(cards)),
        seconds=seconds,
        sharded=isinstance(actor, str) and "TP" in actor.rpartition(".")[2],
    )


def least(replicas: Sequence[tuple[Assigned, str]], parameters: int) -> Room:
    """Return the room of a request that any of some replicas may run.

    Parameters
    ----------
    replicas : sequence of tuple
        What the server says of each, and the type of its weights; none where nothing is known.
    parameters : int
        Number of the model's parameters.
    """
    rooms = []
    for assigned, dtype in replicas or [(Assigned(), "bfloat16")]:
        rooms.append(room_of(assigned, dtype, parameters))
    narrowest = min(rooms, key=lambda room: room.free_bytes)
    seconds = [room.seconds for room in rooms if room.seconds is not None]
    return replace(narrowest, seconds=min(seconds, default=None))


def room_of(assigned: Assigned, dtype: str, parameters: int) -> Room:
    """Return the room of a request for a model.

    Parameters
    ----------
    assigned : Assigned
        What the server says of the replica.
    dtype : str
        Type of its weights.
    parameters : int
        Number of the model's parameters, for a server that does not say it.
    """
    weights = ITEM_BYTES.get(dtype, 2) * (assigned.parameters or parameters)
    padded = weights * (1 + PADDING) + PADDING_BYTES
    size = assigned.size_bytes
    # Less than the weights is assigned where they are quantised, of which nothing else is known.
    if size is None or size <= weights:
        size = int(padded)
    cards = assigned.cards or math.ceil(padded / CARD_BYTES)
    return Room(int((size - weights) / cards), cards, assigned.sharded, assigned.seconds)


def _number(value: object, most: float) -> float | None:
    """Return a positive number of a server's answer, or None for anything else."""
    usable = isinstance(value, (int, float)) and not isinstance(value, bool) and 0 < value <= most
    return float(value) if usable else None  # type: ignore[arg-type]
