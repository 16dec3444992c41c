"""Types of the plain dictionaries and tuples that pass through a trace.

Dictionaries travel to a server, and these classes only describe them. A class with a base would not
survive the journey, so that travelling modules import this one for type checkers alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Required, TypedDict

from torch import Tensor

Envoy = Any
"""A module of the model, as a trace has it; nnsight's class is not typed."""

Context = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional arguments after the hidden state, and keyword arguments."""

ContextPath = tuple[Any, ...]
"""Place of a tensor in a context: the keys and indices that lead to it."""

Growth = Mapping[ContextPath, bool]
"""Whether the first dimension of a context's tensor grows with the batch, by place."""

PlainStep = Any
"""A step as plain values: an index, `("attention", 3)`, `("mlp", 3)` or `("parallel", steps)`."""

Row = tuple[str, PlainStep, tuple[int, ...], tuple[Any, ...], tuple[int, ...]]
"""One row of a plan; see `robustness.schedules.plan`."""

Sublayer = tuple[Sequence[Envoy], Envoy, Sequence[Envoy], int | None]
"""Norms before, attention or MLP, norms after, and the place of an argument; see `sublayers`."""

Squash = tuple[float, float | None]
"""Scale of the logits, and their cap or None; see `unembedding`."""

Matrix = tuple[Tensor | None, Tensor | None]
"""Matrix and bias of the head, or None for each where the head must be called."""

Head = Callable[[Tensor], Tensor]
"""Function from states (token, width) to logits (token, vocabulary)."""

Readout = dict[str, Tensor]
"""Values of tokens by name, (…, token)."""


class Contexts(TypedDict):
    """Contexts of the modules that schedules call."""

    blocks: Sequence[Context]
    """By layer."""
    attentions: Mapping[int, Context]
    """Those of attentions that are called alone, by layer."""


class Growths(TypedDict):
    """Which tensors in the contexts of all blocks, and of all attentions, grow with the batch."""

    blocks: Growth
    attentions: Growth


class Modules(TypedDict, total=False):
    """Modules of a model, and what is known of how they are put together."""

    blocks: Sequence[Envoy]
    attentions: Mapping[int, Envoy]
    """By layer, of the blocks that have one."""
    sublayers: Sequence[tuple[Sublayer, Sublayer]]
    """Attention and MLP of every block."""
    factors: Sequence[Sequence[float]]
    """Factors by which the outputs of attention and MLP are multiplied, of every block."""
    parallel: bool
    """Whether attention and MLP of a block read the same residual stream."""
    writers: Sequence[Envoy]
    """The last matrix of every MLP."""
    heads: Sequence[int]
    """Number of heads with attention weights, of every block."""
    eager: bool
    """Whether attentions hand over their weights."""
    norms: Sequence[Envoy]
    """Modules between the last block and the head."""
    normed: bool
    """Whether one of these is a norm."""
    centres: bool
    """Whether the final norm takes out the mean over features."""
    epsilon: float
    """Number that the final norm adds to the variance or the mean square."""
    head: Envoy
    squash: Squash
    matrix: Matrix


class CleanRun(TypedDict):
    """What the clean pass of a trace leaves for schedules to start from."""

    states: dict[int, Tensor]
    """Clean states that a plan starts from (sequence, token, width), by number; emptied on the
    way."""
    final: Tensor
    """The last residual stream (sequence, token, width), as the final norm receives it."""
    contexts: Contexts
    growths: Growths
    modules: Modules


class PlanRows(TypedDict):
    """A plan as it travels."""

    rows: Sequence[Row]
    schedules: int
    """Number of schedules that the plan reads."""


class QueryPositions(TypedDict):
    """Query positions that are read, and which of them count for what."""

    targets: Tensor
    """Tokens to predict (sequence, query)."""
    first: int
    """First query position."""
    last: int
    """One past the last query position."""
    compared: Tensor
    """Mask of the queries that count for KL, agreement and entropy (sequence, query)."""
    predicted: Tensor
    """Mask of the queries that count for loss and accuracy (sequence, query)."""


class ReadoutQueries(QueryPositions):
    """Queries whose readouts are reduced to one number per sequence."""

    vocabulary: int
    """Number of logits."""
    divergences: Sequence[str]
    """Divergences to compute, as in `readout.compare`."""
    per_token: bool
    """Whether the readouts of single tokens are kept too."""


class ContinuationQueries(TypedDict):
    """Queries whose next tokens are the continuations to score."""

    vocabulary: int
    """Number of logits."""
    targets: Tensor
    """Tokens of all continuations, one after another (token,)."""
    item: Tensor
    """Sequence of each (token,)."""
    query: Tensor
    """Position that predicts each (token,)."""


class TokenFacts(TypedDict, total=False):
    """What measurements of the clean run know of a batch; settings of one's own stand here too."""

    lengths: Required[Tensor]
    """Tokens of every sequence (sequence,)."""
    vocabulary: int
    targets: Tensor
    first: int
    last: int
    compared: Tensor
    predicted: Tensor
    counted: Tensor
    """Mask of the tokens whose mean a measurement takes (sequence, token)."""
    centres: bool
    """Whether the final norm takes out the mean over features."""
    parallel: bool
    """Whether attention and MLP of a block read the same residual stream."""
    offsets: int
    """Largest distance of a token whose attention weight is kept apart."""


class Captured(TypedDict, total=False):
    """What is captured at a depth."""

    residual: Required[Tensor]
    """The stream that enters the block (sequence, token, width)."""
    layer: int
    """Index of the block; missing after the last."""
    attention: Tensor
    """What attention adds to the stream, of the same shape."""
    mlp: Tensor
    """What the MLP adds to the stream, of the same shape."""
    output: Tensor
    """The stream that leaves the block, of the same shape."""
    pattern: Tensor
    """Attention weights (sequence, head, query, key), of blocks that have them."""
    neurons: Tensor
    """What the last matrix of the MLP reads (sequence, token, neuron)."""
    context: Context
    """What the attention is called with besides its input."""


class CleanReadout(TypedDict, total=False):
    """What `readout.compare` needs of the clean run."""

    hidden: Tensor
    """Final states as the head receives them (token, width)."""
    targets: Tensor
    """Tokens to predict (token,)."""
    head: Head
    vocabulary: int
    weight: Tensor | None
    bias: Tensor | None
    expected: Tensor
    """Row of the matrix expected under the clean prediction (token, width); missing without one."""
    sums: tuple[Tensor, Tensor, Tensor, Tensor]
    """Sums over the clean logits; see `numerics`."""
    readout: Readout
    """Clean `loss`, `entropy`, `accuracy` and `top` (token,)."""
