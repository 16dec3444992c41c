"""Number of floating-point operations of a sweep's batches; see `robustness.runs.operations`."""

from collections.abc import Iterator

from robustness.runs import operations
from robustness.schedules.plan import Plan
from robustness.sweeps.preparation import PreparedSweep


def batch_shapes(prepared: PreparedSweep) -> Iterator[tuple[int, int]]:
    """Yield the number of sequences of every batch, and the tokens that each is padded to."""
    for rows in prepared.batches:
        yield rows.stop - rows.start, int(prepared.corpus.lengths[rows].max())


def query_count(prepared: PreparedSweep, width: int) -> int:
    """Return the number of query positions in a sequence of `width` tokens."""
    return width if prepared.corpus.authors_alignment else width - 2


def head_flops(prepared: PreparedSweep, plan: Plan, sequences: int, width: int) -> int:
    """Return the operations of the head in a batch, the clean predictions included."""
    queries = sequences * query_count(prepared, width)
    diverges, logits = bool(prepared.divergences), prepared.reads_logits
    return operations.head_flops(prepared.model, plan, queries, diverges, logits)
