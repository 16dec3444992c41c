"""Types of the plain dictionaries and tuples that pass through a trace.

Dictionaries travel to a server, and these classes only describe them. A class with a base class
cannot be sent, so that travelling modules import this module for type checkers alone.
"""

from collections.abc import Callable, Mapping, Sequence
from typing import Any, NotRequired, Required, TypedDict

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

PassRow = tuple[int, int, int, tuple[tuple[int, int], ...], tuple[Any, ...], tuple[int, ...]]
"""One pass; see `robustness.schedules.passes`."""

Sublayer = tuple[Sequence[Envoy], Envoy, Sequence[Envoy], int | None]
"""Norms before, attention or MLP, norms after, and the place of an argument; see `sublayers`."""

FittedMap = tuple[Tensor, Tensor | None]
"""Matrix (width, width), and offset (width,) or None, of a fitted map; see `changes`."""

Squash = tuple[float, float | None]
"""Scale of the logits, and their cap or None; see `unembedding`."""

Absorbed = tuple[Tensor, ...]
"""The four sums of `numerics`, target logits, and a cross of each divergence; see `paired`."""

Absorb = Callable[[Absorbed, Tensor, Tensor, Tensor, Sequence[str]], Absorbed]
"""Function that adds a strip of logits to what is absorbed; see `paired.absorb`."""

Head = Callable[[Tensor], Tensor]
"""Function from states (token, width) to logits (token, vocabulary)."""

Readout = dict[str, Tensor]
"""Values of tokens by name, (…, token)."""


TravellingMetric = tuple[str, str, Callable[..., Tensor]]
"""Name, what is read, and function of a metric; see `token_metrics`."""


class Contexts(TypedDict):
    """Contexts of the modules that schedules call."""

    blocks: Sequence[Context]
    """Contexts of all blocks, by layer."""
    attentions: Mapping[int, Context]
    """Contexts of the attentions that are called alone, by layer."""


class Growths(TypedDict):
    """Which tensors in the contexts of all blocks, and of all attentions, grow with the batch."""

    blocks: Growth
    attentions: Growth


class Matrix(TypedDict):
    """Matrix of the head, as readouts take it."""

    weight: Tensor
    """One row for each token of the vocabulary (token, width)."""
    bias: Tensor | None
    """(token,)."""
    centred: bool
    """Whether weight and bias are centred over the vocabulary and scaled, in float32 or wider.
    Otherwise they are the head's own."""
    squash: Squash
    """Scale and soft cap of the products; (1.0, None) of a centred matrix."""
    absorb: NotRequired[Absorb]
    """Faster form of `paired.absorb`."""
    totals: NotRequired[Callable[[Tensor, Tensor], tuple[Tensor, Tensor]]]
    """Faster form of `numerics.totals`."""


class HeadThere(TypedDict):
    """Facts about a head on a server that is a matrix; see `unembedding.matrix_there`."""

    shape: tuple[int, int]
    """Number of tokens, and width."""
    dtype: str
    """Type of the weights."""
    biased: bool
    """Whether the head has a bias."""
    worth: bool
    """Whether the matrix is made by calls of the head where it cannot be read."""
    squash: Squash


class Modules(TypedDict, total=False):
    """Modules of a model, and facts about how they are combined."""

    blocks: Sequence[Envoy]
    attentions: Mapping[int, Envoy]
    """Attentions by layer, of the blocks that have one."""
    sublayers: Sequence[tuple[Sublayer, Sublayer]]
    """Attention and MLP of every block."""
    factors: Sequence[Sequence[float]]
    """Factors of the outputs of attention and MLP, of every block."""
    parallel: bool
    """Whether attention and MLP of a block read the same residual stream."""
    writers: Sequence[Envoy]
    """Last matrix of every MLP."""
    heads: Sequence[int]
    """Number of heads with attention weights, of every block."""
    eager: bool
    """Whether attentions return their weights."""
    norms: Sequence[Envoy]
    """Modules between the last block and the head."""
    normed: bool
    """Whether one of `norms` is a norm."""
    centres: bool
    """Whether the final norm subtracts the mean over features."""
    epsilon: float
    """Number that the final norm adds to the variance or the mean square."""
    head: Envoy
    squash: Squash
    matrix: Matrix | None
    """Matrix of the head; None where the head must be called."""
    there: HeadThere | None
    """What is known of a head on a server, whose matrix is taken there."""
    maps: Mapping[PlainStep, FittedMap]
    """Fitted maps by the plain step that takes each."""
    apart: bool
    """Whether what a call is given is sent to another process, with all that it is a view of."""


class Walkway(TypedDict):
    """A model and its tokens, as passes take them."""

    traced: Envoy
    """The model itself."""
    tokens: Tensor
    """Token ids (sequence, token)."""
    blocks: Sequence[Envoy]
    norms: Sequence[Envoy]
    head: Envoy
    returns: int
    """Number of values that a block returns in a tuple, or 0; see `block_calls.as_returned`."""
    caches: list[Any]
    """Caches of passes that have ended."""
    ends: Sequence[int]
    """Tokens that end a generated text."""


class CleanRun(TypedDict):
    """Results of the clean pass of a trace that schedules start from."""

    states: dict[int, Tensor]
    """Clean states that a plan starts from (sequence, token, width), by number. The interpreter
    deletes each after its last use."""
    final: Tensor
    """Last residual stream (sequence, token, width), as the final norm receives it."""
    modules: Modules
    contexts: NotRequired[Contexts]
    growths: NotRequired[Growths]
    run: NotRequired[Callable[..., None]]
    """Function that runs the rows of a plan; by default `interpreter.run`."""
    way: NotRequired[Walkway]
    """What passes take, where the plan runs as passes."""
    entry: NotRequired[Context]
    """Context of the first block, where the plan runs as passes."""


class PlanRows(TypedDict):
    """A plan as it travels."""

    rows: Sequence[Row]
    schedules: int
    """Number of schedules that the plan reads."""


class QueryPositions(TypedDict):
    """Query positions that are read, and the readouts that each counts for."""

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
    readout_tokens: Mapping[str, str]
    """Which of these masks is that of each readout, by its name: `compared` or `predicted`."""


class ReadoutQueries(QueryPositions):
    """Queries whose readouts are reduced to one number per sequence."""

    vocabulary: int
    """Number of logits."""
    divergences: Sequence[str]
    """Divergences to compute, as in `readout.compare`."""
    per_token: bool
    """Whether the readouts of single tokens are kept too."""
    metrics: Sequence[TravellingMetric]
    """Metrics that are measured besides the readouts of `readout`."""


class ContinuationQueries(TypedDict):
    """Queries that predict the tokens of continuations."""

    vocabulary: int
    """Number of logits."""
    targets: Tensor
    """Tokens of all continuations, one after another (token,)."""
    item: Tensor
    """Sequence of each (token,)."""
    query: Tensor
    """Position that predicts each (token,)."""


class TokenFacts(TypedDict, total=False):
    """Facts about a batch that measurements of the clean run receive, and their own settings."""

    lengths: Required[Tensor]
    """Number of tokens of every sequence (sequence,)."""
    vocabulary: int
    targets: Tensor
    first: int
    last: int
    compared: Tensor
    predicted: Tensor
    readout_tokens: Mapping[str, str]
    counted: Tensor
    """Mask of the tokens whose mean a measurement takes (sequence, token)."""
    centres: bool
    """Whether the final norm subtracts the mean over features."""
    parallel: bool
    """Whether attention and MLP of a block read the same residual stream."""
    offsets: int
    """Largest offset of the attention profile."""


class Captured(TypedDict, total=False):
    """Tensors captured at one depth."""

    residual: Required[Tensor]
    """Residual stream that enters the block (sequence, token, width)."""
    layer: int
    """Index of the block; missing after the last."""
    attention: Tensor
    """Output of the attention that is added to the stream, of the same shape."""
    mlp: Tensor
    """Output of the MLP that is added to the stream, of the same shape."""
    output: Tensor
    """Residual stream that leaves the block, of the same shape."""
    pattern: Tensor
    """Attention weights (sequence, head, query, key), of blocks that have them."""
    neurons: Tensor
    """Input of the last matrix of the MLP (sequence, token, neuron)."""
    context: Context
    """Arguments of the attention besides its input."""


class CleanReadout(TypedDict, total=False):
    """Values of the clean run that `readout.compare` compares with."""

    hidden: Tensor
    """Final states as the head receives them (token, width)."""
    targets: Tensor
    """Tokens to predict (token,)."""
    head: Head
    vocabulary: int
    matrix: Matrix | None
    expected: Tensor
    """Expected row of the matrix under the clean prediction (token, width), of a centred one."""
    sums: tuple[Tensor, Tensor, Tensor, Tensor]
    """Sums over the clean logits; see `numerics`."""
    readout: Readout
    """Clean `loss`, `entropy`, `accuracy` and `top` (token,)."""
