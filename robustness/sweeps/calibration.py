"""Memory and time of a sweep, extrapolated from short runs on one of its sequences."""

import sys
from dataclasses import dataclass, replace
from time import perf_counter

import numpy as np
import psutil
import torch

from robustness.models.model import Model
from robustness.runs import operations
from robustness.schedules.plan import RUN, Plan
from robustness.sweeps import flops
from robustness.sweeps.live_bytes import LiveBytes
from robustness.sweeps.preparation import PreparedSweep, tally_bytes
from robustness.sweeps.tracing import measure_batch
from robustness.text.corpus import Corpus
from robustness.trace import paired
from robustness.trace.types import Matrix

SHORT_SEQUENCE = 64
"""Maximum number of tokens of the shorter sequence of the calibration."""

STRIPS_AT_ONCE = 2
"""Number of strips of logits that a reading holds at once."""

HEAP_FACTOR = {"cpu": 1.75}
"""Bytes taken from the system for a byte of tensors, by kind of device. On a CPU the C library
keeps freed memory in pieces that later tensors do not fit into, as `benchmarks/cost.py` shows."""


@dataclass(frozen=True)
class Calibration:
    """Memory and time that short runs let expect of a whole one."""

    memory_bytes: int
    """Bytes of the process at the peak, or of tensors on a GPU."""
    batch_seconds: float
    """Seconds that a batch takes however small it is."""
    flop_seconds: float
    """Seconds that a floating-point operation takes."""


def calibrate(prepared: PreparedSweep, plan: Plan) -> Calibration:
    """Run the longest sequence of a sweep for its memory and its time, and a shorter one."""
    matrix = prepared.model.unembedding()
    at = int(np.argmax(prepared.corpus.lengths))
    longest = prepared.corpus.part(slice(at, at + 1))
    memory = _peak_bytes(prepared, longest, plan, matrix)
    _, width = _largest_shape(prepared)
    short_width = max(3, min(SHORT_SEQUENCE, width // 2))
    short_flops, short = _time(prepared, longest, short_width, plan, matrix, runs=2)
    long_flops, long = _time(prepared, longest, width, plan, matrix, runs=1)
    rate = 0.0
    # On a loaded machine the short run may take longer than the long one.
    if long_flops > short_flops:
        rate = max(0.0, (long - short) / (long_flops - short_flops))
    return Calibration(memory, max(0.0, short - short_flops * rate), rate)


def _largest_shape(prepared: PreparedSweep) -> tuple[int, int]:
    """Return the number of sequences and the width of the batch with the most tokens."""
    return max(flops.batch_shapes(prepared), key=lambda shape: shape[0] * shape[1])


def _time(
    prepared: PreparedSweep,
    sequence: Corpus,
    width: int,
    plan: Plan,
    matrix: Matrix | None,
    *,
    runs: int,
) -> tuple[int, float]:
    """Run the first `width` tokens of a sequence; return its operations and the fastest run."""
    lengths = sequence.lengths.clip(max=width)
    cut = replace(sequence, tokens=sequence.tokens[:, :width], lengths=lengths)
    seconds = []
    for _ in range(runs):
        began = perf_counter()
        _measure(prepared, cut, plan, matrix)
        seconds.append(perf_counter() - began)
    of_blocks = operations.block_flops(prepared.model, plan, 1, width)
    return of_blocks + flops.head_flops(prepared, plan, 1, width), min(seconds)


def _peak_bytes(
    prepared: PreparedSweep, sequence: Corpus, plan: Plan, matrix: Matrix | None
) -> int:
    """Run one sequence, and return the bytes that the whole run takes at its peak."""
    model = prepared.model
    sequences, width = _largest_shape(prepared)
    # Before the run: what it leaves in the C library's heap is in HEAP_FACTOR already.
    held, peak = _held_bytes(model)
    with LiveBytes() as live:
        _measure(prepared, sequence, plan, matrix)
    # All tensors grow with the batch but strips of logits, whose size is bounded.
    strips_of_one = STRIPS_AT_ONCE * strip_bytes(prepared, plan, 1, width)
    strips = STRIPS_AT_ONCE * strip_bytes(prepared, plan, sequences, width)
    tensors = max(0, live.most - strips_of_one) * sequences + strips
    results = prepared.blank.nbytes + tally_bytes(prepared)
    heap = int(HEAP_FACTOR.get(model.identity["device"], 1.0) * tensors)
    # Opening the model may have taken more than the run will.
    return max(peak, held + results + heap)


def _measure(prepared: PreparedSweep, sequence: Corpus, plan: Plan, matrix: Matrix | None) -> None:
    measure_batch(replace(prepared, corpus=sequence), slice(0, 1), plan, matrix)


def strip_bytes(prepared: PreparedSweep, plan: Plan, sequences: int, width: int) -> int:
    """Return the bytes of logits that the largest reading holds at once; see `readout`."""
    model = prepared.model
    stacked = max(len(sources) for kind, _, sources, *_ in plan.rows if kind != RUN)
    device = model.identity["device"]
    # Clean logits are computed beside the others.
    beside = int(model.reads_matrix and not model.centres_matrix)
    rows = (stacked + beside) * sequences * flops.query_count(prepared, width)
    rows = min(rows, paired.ROWS_AT_ONCE.get(device, rows))
    columns = min(model.vocabulary, paired.columns_at_once(rows, model.width, device))
    # Logits are float32 at least; see `numerics.precise`.
    return rows * columns * max(4, item_bytes(model))


def item_bytes(model: Model) -> int:
    """Return the bytes of one number of the residual stream."""
    return {"float64": 8, "float32": 4}.get(model.identity["dtype"], 2)


def _held_bytes(model: Model) -> tuple[int, int]:
    """Return the bytes held now, and at most so far: of a GPU, or of this process."""
    if model.device.type == "cuda":
        held = torch.cuda.memory_allocated(model.device)
        return held, torch.cuda.max_memory_allocated(model.device)
    held = int(psutil.Process().memory_info().rss)
    # Windows has no module `resource`.
    if sys.platform == "win32":
        return held, held
    import resource

    # The largest resident set is in bytes on macOS, and in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return held, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
