"""Number of floating-point operations of a sweep, counted from its plan.

Only matrix products count, an addition and a multiplication each as one operation, as in Kaplan et
al. (2020), appendix B, and in `torch.utils.flop_counter`. For a token, a block takes 2 operations
for every parameter in its matrices, and 4 · tokens of the sequence · width of all heads for the
attention pattern and its product with the values, causal or not. The head takes
2 · vocabulary · width for every prediction that is read. It takes them twice for the clean
predictions: once for the logits, once for the rows of the matrix that they expect. Norms,
activations and biases are left out, and all experts of a mixture are counted.
"""

from collections.abc import Iterator

from robustness.models.model import Model
from robustness.schedules.plan import RUN, Plan
from robustness.sweeps.preparation import PreparedSweep
from robustness.trace.types import PlainStep

Leaf = int | tuple[str, int]
"""A plain step that calls one module: a block, or `("attention", 3)` or `("mlp", 3)`."""


def batch_shapes(prepared: PreparedSweep) -> Iterator[tuple[int, int]]:
    """Yield the number of sequences of every batch, and the tokens that each is padded to."""
    for rows in prepared.batches:
        yield rows.stop - rows.start, int(prepared.corpus.lengths[rows].max())


def query_count(prepared: PreparedSweep, width: int) -> int:
    """Return the number of query positions in a sequence of `width` tokens."""
    return width if prepared.corpus.authors_alignment else width - 2


def called_leaves(plan: Plan) -> list[Leaf]:
    """Return the blocks and sublayers that the calls of a plan consist of, in order."""
    leaves: list[Leaf] = []
    for kind, step, *_ in plan.rows:
        if kind == RUN:
            leaves += _leaves_of(step)
    return leaves


def block_flops(model: Model, plan: Plan, sequences: int, width: int) -> int:
    """Return the operations of all blocks and sublayers in a batch, the clean run included."""
    tokens = sequences * width
    pattern = 4 * tokens * width * model.heads * model.head_width
    blocks = [2 * tokens * parameters + pattern for parameters in model.block_parameters]
    total = sum(blocks)
    for kind, step, sources, *_ in plan.rows:
        if kind != RUN:
            continue
        for leaf in _leaves_of(step):
            if isinstance(leaf, int):
                flops = blocks[leaf]
            else:
                sublayer, layer = leaf
                attention, mlp = model.sublayer_parameters[layer]
                flops = 2 * tokens * mlp if sublayer == "mlp" else 2 * tokens * attention + pattern
            # A row stacks several states, and every one of them passes through the step.
            total += flops * len(sources)
    return total


def _leaves_of(step: PlainStep) -> list[Leaf]:
    """Return the blocks and sublayers that a plain step calls."""
    if isinstance(step, tuple) and step[0] == "parallel":
        leaves = []
        for member in step[1]:
            leaves += _leaves_of(member)
        return leaves
    return [step]


def head_flops(prepared: PreparedSweep, plan: Plan, sequences: int, width: int) -> int:
    """Return the operations of the head in a batch, the clean predictions included."""
    model = prepared.model
    once = 2 * sequences * query_count(prepared, width) * model.vocabulary * model.width
    readings = [sources for kind, _, sources, *_ in plan.rows if kind != RUN]
    finals = sum(map(len, readings))
    # A metric that reads logits has them computed again, with the clean ones for every reading.
    again = finals + len(readings) if prepared.reads_logits else 0
    if model.reads_matrix and model.centres_matrix:
        return once * (finals + 2 + again)
    # There are no expected rows: for the KL, every reading computes the clean logits anew.
    return once * (finals + 1 + again + (len(readings) if prepared.divergences else 0))
