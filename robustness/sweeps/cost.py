"""Cost of a sweep before it is run: exact counts from its plan, memory and time from short runs."""

import tempfile
from dataclasses import dataclass
from pathlib import Path
from time import perf_counter

import numpy as np

from robustness.files import netcdf, resumable
from robustness.runs import operations
from robustness.sweeps import flops, token_layout
from robustness.sweeps.calibration import calibrate, item_bytes
from robustness.sweeps.preparation import PreparedSweep


@dataclass(frozen=True)
class Cost:
    """Counts, sizes and duration of a sweep."""

    sequences: int
    tokens: int
    batches: int
    batch_tokens: int
    """Maximum number of tokens in a batch that has several sequences."""
    state_cap: int
    """Maximum number of states that go through a block together, each of all sequences."""
    block_calls: int
    """Number of calls of blocks, the clean run included, each on all states stacked for it."""
    sublayer_calls: int
    """Number of calls of attentions and MLPs alone, counted in the same way."""
    block_applications: int
    """Number of blocks applied to single sequences, the clean run included."""
    block_flops: int
    """Number of floating-point operations of blocks and sublayers; see `operations`."""
    head_flops: int
    """Number of floating-point operations of the head."""
    states: int
    """Largest number of states alive at once, each of all sequences of a batch."""
    state_bytes: int
    """Bytes of these states in the largest batch."""
    file_bytes: int
    """Bytes of the finished file; while it is saved, two copies of it exist."""
    token_bytes: int
    """Bytes of the file of single tokens before compression; 0 where none is written."""
    at_most: bool
    """Whether the run may stop before it has read all of the text."""
    memory_bytes: int | None
    """Bytes of the process at the peak, or of tensors on a GPU; None for a model on a server."""
    seconds: float | None
    """Duration of the run; None for a model on a server."""
    calibration_seconds: float
    """Duration of the calibration."""


def estimate(prepared: PreparedSweep) -> Cost:
    """Count what a sweep takes, and run one of its sequences for the memory and the time.

    Parameters
    ----------
    prepared : PreparedSweep
        As from `prepare`.
    """
    model, plan = prepared.model, prepared.plan(prepared.state_cap)
    sequences, batches = len(prepared.corpus.tokens), len(prepared.batches)
    called = operations.called_leaves(plan)
    alone = sum(map(operations.is_sublayer, called))
    blocks = sum(isinstance(leaf, int) for leaf in called)
    of_blocks = of_head = 0
    for shape in flops.batch_shapes(prepared):
        of_blocks += operations.block_flops(model, plan, *shape)
        of_head += flops.head_flops(prepared, plan, *shape)
    tokens_at_once = max(count * width for count, width in flops.batch_shapes(prepared))
    began = perf_counter()
    memory, seconds = None, None
    # The memory and the speed of a server cannot be measured from here.
    if not model.request:
        calibration = calibrate(prepared, plan)
        memory = calibration.memory_bytes
        seconds = calibration.batch_seconds * batches
        seconds += (of_blocks + of_head) * calibration.flop_seconds
    return Cost(
        sequences=sequences,
        tokens=int(prepared.corpus.lengths.sum()),
        batches=batches,
        batch_tokens=int(prepared.blank.attrs["batch_tokens"]),
        state_cap=prepared.state_cap,
        block_calls=(model.layers + blocks) * batches,
        sublayer_calls=alone * batches,
        block_applications=(model.layers + plan.block_calls) * sequences,
        block_flops=of_blocks,
        head_flops=of_head,
        states=plan.peak,
        state_bytes=plan.peak * tokens_at_once * model.width * item_bytes(model),
        file_bytes=_file_bytes(prepared),
        token_bytes=_token_bytes(prepared),
        at_most=prepared.blank.attrs.get("until_se") is not None,
        memory_bytes=memory,
        seconds=seconds,
        calibration_seconds=perf_counter() - began,
    )


def describe(cost: Cost) -> list[tuple[str, str]]:
    """Return the cost of a sweep as names and values to print."""
    calls = f"{cost.block_calls:,}"
    if cost.sublayer_calls:
        calls += f", and {cost.sublayer_calls:,} of attentions and MLPs alone"
    operations = f"{cost.block_flops + cost.head_flops:.3g}"
    bound = "at most " if cost.at_most else ""
    rows = [
        ("sequences", f"{bound}{cost.sequences:,}, of {cost.tokens:,} tokens"),
        ("batches", f"{bound}{cost.batches:,}, of {cost.batch_tokens:,} tokens or less"),
        ("block calls", f"{calls}, of {cost.state_cap:,} states or less"),
        ("block applications", f"{cost.block_applications:,}, to single sequences"),
        (
            "floating-point operations",
            f"{operations}: blocks {cost.block_flops:.3g}, head {cost.head_flops:.3g}",
        ),
        ("states at the peak", f"{cost.states:,} of a batch, {_size(cost.state_bytes)}"),
        ("file", f"{_size(cost.file_bytes)}, twice that while it is saved"),
    ]
    if cost.token_bytes:
        tokens = f"up to {_size(cost.token_bytes)}, before it is compressed"
        rows.append(("file of single tokens", tokens))
    if cost.memory_bytes is not None:
        rows.append(("memory at the peak", f"about {_size(cost.memory_bytes)}"))
    if cost.seconds is not None:
        taken = f"a calibration on one sequence, which took {cost.calibration_seconds:.1f} s"
        rows.append(("time", f"about {_time(cost.seconds)}, from {taken}"))
    return rows


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def _time(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _file_bytes(prepared: PreparedSweep) -> int:
    """Return the bytes of the finished file, from a file of one sequence that is really saved."""
    # The size of labels, attributes and HDF5's own structures is known only once they are written.
    empty = prepared.complete(prepared.blank, np.zeros((len(prepared.schedules), 1), np.int32))
    first = empty.isel(sequence=slice(0, 1))
    tally = None
    if any(name in empty.attrs for name in resumable.TALLIED):
        tally = np.zeros((len(prepared.schedules), prepared.model.vocabulary), np.int32)
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "one.nc"
        netcdf.save(first, path, tally)
        return path.stat().st_size + empty.nbytes - first.nbytes


def _token_bytes(prepared: PreparedSweep) -> int:
    """Return the bytes of all columns and readouts of single tokens."""
    if not prepared.settings.per_token:
        return 0
    metrics = (*prepared.readouts, *prepared.clean_readouts)
    per_position = sum(prepared.blank[metric.name].nbytes for metric in metrics)
    columns = prepared.corpus.tokens.size * token_layout.COLUMN_BYTES
    return per_position * prepared.corpus.context + columns
