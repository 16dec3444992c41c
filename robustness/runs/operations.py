"""Number of floating-point operations of a trace, counted from its plan.

Only matrix products count, an addition and a multiplication each as one operation, as in Kaplan et
al. (2020), appendix B, and in `torch.utils.flop_counter`. For a token, a block takes 2 operations
for every parameter in its matrices, and 4 · tokens of the sequence · width of all heads for the
attention pattern and its product with the values, causal or not. A fitted map takes 2 · width²
operations for a token. The head takes
2 · vocabulary · width for every prediction that is read. It takes them twice for the clean
predictions: once for the logits, once for the rows of the matrix that they expect. Norms,
activations and biases are left out, and all experts of a mixture are counted.
"""

from collections import Counter
from collections.abc import Mapping
from typing import Any

from robustness.models.model import Model
from robustness.schedules.plan import RUN, Plan
from robustness.trace.types import PlainStep

Leaf = int | tuple[str, Any]
"""A plain step that calls one module or multiplies by one matrix: a block, `("attention", 3)`,
`("mlp", 3)`, or a fitted map, `("map", (4, 7))`."""


def called_leaves(plan: Plan) -> list[Leaf]:
    """Return the blocks, sublayers and maps that the calls of a plan consist of, in order."""
    leaves: list[Leaf] = []
    for kind, step, *_ in plan.rows:
        if kind == RUN:
            leaves += leaves_of(step)
    return leaves


def is_sublayer(leaf: Leaf) -> bool:
    """Whether a leaf is an attention or an MLP."""
    return isinstance(leaf, tuple) and leaf[0] != "map"


def leaves_of(step: PlainStep) -> list[Leaf]:
    """Return the blocks, sublayers and maps that a plain step consists of."""
    if not isinstance(step, tuple):
        return [step]
    kind, inner = step
    if kind == "parallel":
        leaves = []
        for member in inner:
            leaves += leaves_of(member)
        return leaves
    if kind == "scaled" or kind == "mapped":
        leaf, how = inner
        return [leaf] if kind == "scaled" else [leaf, ("map", how)]
    return [] if kind == "scale" else [step]


def clean_flops(model: Model, sequences: int, width: int) -> list[int]:
    """Return the operations of every block in one pass over sequences of `width` tokens."""
    tokens = sequences * width
    pattern = pattern_flops(model, sequences, width)
    return [2 * tokens * parameters + pattern for parameters in model.block_parameters]


def pattern_flops(model: Model, sequences: int, width: int) -> int:
    """Return the operations of a block's attention pattern and its product with the values."""
    return 4 * sequences * width * width * model.heads * model.head_width


def block_flops(model: Model, plan: Plan, sequences: int, width: int) -> int:
    """Return the operations of all blocks and sublayers in a batch, the clean run included."""
    times: Counter[Leaf] = Counter(range(model.layers))
    for kind, step, sources, *_ in plan.rows:
        for leaf in leaves_of(step) if kind == RUN else ():
            # A row stacks several states, and every one of them passes through the step.
            times[leaf] += len(sources)
    return of_leaves(model, times, sequences, width)


def of_leaves(model: Model, times: Mapping[Leaf, int], sequences: int, width: int) -> int:
    """Return the operations of blocks, sublayers and maps that are called some times each."""
    tokens, total = sequences * width, 0
    blocks, pattern = clean_flops(model, sequences, width), pattern_flops(model, sequences, width)
    sublayers = model.sublayer_parameters if any(map(is_sublayer, times)) else ()
    for leaf, count in times.items():
        if isinstance(leaf, int):
            flops = blocks[leaf]
        elif not is_sublayer(leaf):
            flops = 2 * tokens * model.width**2
        else:
            sublayer, layer = leaf
            attention, mlp = sublayers[layer]
            flops = 2 * tokens * mlp if sublayer == "mlp" else 2 * tokens * attention + pattern
        total += flops * count
    return total


def head_flops(
    model: Model, plan: Plan, queries: int, diverges: bool = True, logits: bool = False
) -> int:
    """Return the operations of the head in a batch, the clean predictions included.

    Parameters
    ----------
    model : Model
        An opened model.
    plan : Plan
        Plan of the schedules.
    queries : int
        Number of tokens in the batch whose predictions are read.
    diverges : bool
        Whether a KL is read.
    logits : bool
        Whether a metric reads the logits, which are computed for it again.
    """
    once = 2 * queries * model.vocabulary * model.width
    readings = [sources for kind, _, sources, *_ in plan.rows if kind != RUN]
    finals = sum(map(len, readings))
    # With them the clean ones are computed again, for every reading.
    again = finals + len(readings) if logits else 0
    if model.reads_matrix and model.centres_matrix:
        return once * (finals + 2 + again)
    # There are no expected rows: every reading computes the clean logits anew, or for the KL alone
    # where the head is called.
    anew = diverges or head_is_read(model, queries * (plan.schedules + 1))
    return once * (finals + 1 + again + (len(readings) if anew else 0))


def head_is_read(model: Model, tokens: float) -> bool:
    """Whether readouts of this number of tokens take the head's matrix, here or on a server."""
    if not model.request:
        return model.reads_matrix
    there = model.head_there(tokens)
    return there is not None and (there["worth"] or not model.sandboxed)
