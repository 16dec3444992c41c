"""What a sweep costs, before it is run: exact counts from its plan, and two short calibrations.

Floating-point operations are those of matrix products, an addition and a multiplication counted
apart, as in Kaplan et al. (2020), appendix B, and in `torch.utils.flop_counter`: for a token, 2 for
every parameter in the matrices of a block, and 4 · tokens of the sequence · width of all heads for
the attention pattern and its product with the values, causal or not. The head takes
2 · vocabulary · width for every prediction that is read, and the clean ones twice, once for the
logits and once for the rows that they expect. Norms, activations and biases are left out, and of a
mixture of experts all experts are counted.
"""

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from time import perf_counter
from typing import Any
from weakref import finalize

import numpy as np
import psutil
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from robustness.files import netcdf, resumable
from robustness.models.model import Model
from robustness.schedules.plan import RUN, Plan
from robustness.sweeps import token_file
from robustness.sweeps.preparation import PreparedSweep, tally_bytes
from robustness.sweeps.tracing import measure_batch
from robustness.trace import readout

SHORT_SEQUENCE = 64
"""Number of tokens of the shorter sequence of the calibration."""

STRIPS_AT_ONCE = 2
"""Number of strips of logits that a reading holds at once."""

HEAP_FACTOR = {"cpu": 1.75}
"""Memory taken from the system for a byte of tensors, by kind of device: on a CPU the C library
keeps what is freed in pieces that later tensors do not fit into, as `benchmarks/cost.py` shows."""


@dataclass(frozen=True)
class Cost:
    """What a sweep costs."""

    sequences: int
    tokens: int
    batches: int
    block_calls: int
    """Calls of blocks, the clean run's among them, each on all the states stacked for it."""
    sublayer_calls: int
    """Calls of attentions and MLPs alone, in the same way."""
    block_applications: int
    """Blocks applied to single sequences, the clean run's among them."""
    block_flops: int
    head_flops: int
    states: int
    """The largest number of states alive at once, each of all sequences of a batch."""
    state_bytes: int
    """Bytes of all these states."""
    file_bytes: int
    """Bytes of the file that is left; while it is saved there are two of them."""
    token_bytes: int
    """Bytes of the file of single tokens before compression; 0 where they are not kept."""
    at_most: bool
    """Whether the run may stop before it has read all of the text."""
    memory_bytes: int | None
    """Bytes of the process at the peak, or of tensors on a GPU; None for a model on a server."""
    seconds: float | None
    """Duration of the run; None for a model on a server."""
    calibration: float
    """Duration of the calibration in seconds."""


def estimate(prepared: PreparedSweep) -> Cost:
    """Count what a sweep takes, and run one of its sequences to see how long and how large.

    Parameters
    ----------
    prepared : PreparedSweep
        As from `prepare`.
    """
    model, plan = prepared.model, prepared.plan(prepared.state_cap)
    called = [leaf for kind, step, *_ in plan.rows if kind == RUN for leaf in leaves_of(step)]
    alone = sum(isinstance(leaf, tuple) for leaf in called)
    sequences = len(prepared.corpus.tokens)
    blocks = [_block_flops(model, plan, *shape) for shape in _shapes(prepared)]
    heads = [_head_flops(model, prepared, plan, *shape) for shape in _shapes(prepared)]
    largest = max(count * width for count, width in _shapes(prepared))
    began = perf_counter()
    memory, seconds = None, None
    if not model.request:
        memory, fixed, rate = _calibrate(model, prepared, plan)
        seconds = fixed * len(prepared.batches) + (sum(blocks) + sum(heads)) * rate
    return Cost(
        sequences=sequences,
        tokens=int(prepared.corpus.lengths.sum()),
        batches=len(prepared.batches),
        block_calls=(model.layers + len(called) - alone) * len(prepared.batches),
        sublayer_calls=alone * len(prepared.batches),
        block_applications=(model.layers + plan.block_calls) * sequences,
        block_flops=sum(blocks),
        head_flops=sum(heads),
        states=plan.peak,
        state_bytes=plan.peak * largest * model.width * _item(model),
        file_bytes=_file_bytes(model, prepared),
        token_bytes=_token_bytes(prepared),
        at_most=prepared.blank.attrs.get("until_se") is not None,
        memory_bytes=memory,
        seconds=seconds,
        calibration=perf_counter() - began,
    )


def describe(cost: Cost) -> list[tuple[str, str]]:
    """Return what a sweep costs as names and values to be read."""
    unknown = "known to the server alone"
    time = unknown
    alone = f"{cost.sublayer_calls:,} of attentions and MLPs alone"
    sublayers = f", and {alone}" if cost.sublayer_calls else ""
    if cost.seconds is not None:
        taken = f"a calibration on one sequence, which took {cost.calibration:.1f} s"
        time = f"about {_time(cost.seconds)}, from {taken}"
    least = "at most " if cost.at_most else ""
    tokens = f"up to {_size(cost.token_bytes)}, before it is compressed"
    return [
        ("sequences", f"{least}{cost.sequences:,}, of {cost.tokens:,} tokens"),
        ("batches", f"{least}{cost.batches:,}"),
        ("block calls", f"{cost.block_calls:,}{sublayers}"),
        ("block applications", f"{cost.block_applications:,}, to single sequences"),
        (
            "floating-point operations",
            f"{cost.block_flops + cost.head_flops:.3g}: blocks {cost.block_flops:.3g}, head "
            f"{cost.head_flops:.3g}",
        ),
        ("states at the peak", f"{cost.states:,} of a batch, {_size(cost.state_bytes)}"),
        (
            "memory at the peak",
            unknown if cost.memory_bytes is None else f"about {_size(cost.memory_bytes)}",
        ),
        ("file", f"{_size(cost.file_bytes)}, twice that while it is saved"),
        *([("file of single tokens", tokens)] if cost.token_bytes else []),
        ("time", time),
    ]


def _size(count: int) -> str:
    return f"{count / 2**20:,.1f} MiB" if count >= 2**20 else f"{count / 2**10:,.1f} KiB"


def _time(seconds: float) -> str:
    for unit, size in (("hours", 3600), ("minutes", 60)):
        if seconds >= size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.1f} seconds"


def _shapes(prepared: PreparedSweep) -> Iterator[tuple[int, int]]:
    """Yield of every batch how many sequences it has, and how many tokens each is filled up to."""
    for rows in prepared.batches:
        yield rows.stop - rows.start, int(prepared.corpus.lengths[rows].max())


def _item(model: Model) -> int:
    return {"float64": 8, "float32": 4}.get(model.identity["dtype"], 2)


def _queries(prepared: PreparedSweep, width: int) -> int:
    return width if prepared.corpus.authors_alignment else width - 2


def _block_flops(model: Model, plan: Plan, sequences: int, width: int) -> int:
    """Floating-point operations of all blocks for a batch, the clean run's among them."""
    tokens = sequences * width
    attention = 4 * tokens * width * model.heads * model.head_width
    each = [2 * tokens * size + attention for size in model.block_parameters]
    alone = [(2 * tokens * a + attention, 2 * tokens * m) for a, m in model.sublayer_parameters]

    def of_part(leaf: Any) -> int:
        if isinstance(leaf, int):
            return each[leaf]
        kind, layer = leaf
        return alone[layer][kind == "mlp"]

    run = sum(
        sum(map(of_part, leaves_of(step))) * len(sources)
        for kind, step, sources, *_ in plan.rows
        if kind == RUN
    )
    return sum(each) + run


def leaves_of(step: Any) -> list[Any]:
    """Return the blocks and sublayers that a plain step calls."""
    if isinstance(step, tuple) and step[0] == "parallel":
        return [leaf for member in step[1] for leaf in leaves_of(member)]
    return [step]


def _head_flops(
    model: Model, prepared: PreparedSweep, plan: Plan, sequences: int, width: int
) -> int:
    """Floating-point operations of the head for a batch."""
    once = 2 * sequences * _queries(prepared, width) * model.vocabulary * model.width
    readings = [sources for kind, _, sources, *_ in plan.rows if kind != RUN]
    finals = sum(map(len, readings))
    if model.reads_matrix:
        return once * (finals + 2)
    return once * (finals + 1 + (len(readings) if prepared.divergences else 0))


def _calibrate(model: Model, prepared: PreparedSweep, plan: Plan) -> tuple[int, float, float]:
    """Run one sequence of the sweep, and a shorter one.

    Returns
    -------
    memory : int
        Bytes at the peak of the whole run.
    fixed, rate : float
        Seconds that a batch takes however small it is, and for a floating-point operation.
    """
    matrix = model.unembedding()
    count, width = max(_shapes(prepared), key=lambda shape: shape[0] * shape[1])
    at = int(np.argmax(prepared.corpus.lengths))
    one = prepared.corpus.part(slice(at, at + 1))
    held, peak = _held(model)
    live = _Live()
    with live:
        _measure(model, prepared, one, plan, matrix)
    alone, all_of_them = (
        STRIPS_AT_ONCE * _strip_bytes(model, prepared, plan, size, width) for size in (1, count)
    )
    kept = prepared.blank.nbytes + tally_bytes(prepared)
    tensors = max(0, live.most - alone) * count + all_of_them
    memory = held + kept + int(HEAP_FACTOR.get(model.identity["device"], 1.0) * tensors)
    points = []
    for length in (max(3, min(SHORT_SEQUENCE, width // 2)), width):
        lengths = one.lengths.clip(max=length)
        cut = replace(one, tokens=one.tokens[:, :length], lengths=lengths)
        flops = _block_flops(model, plan, 1, length) + _head_flops(model, prepared, plan, 1, length)
        took = []
        for _ in range(2 if length < width else 1):
            began = perf_counter()
            _measure(model, prepared, cut, plan, matrix)
            took.append(perf_counter() - began)
        points.append((flops, min(took)))
    (few, short), (many, long) = points
    rate = max(0.0, (long - short) / (many - few)) if many > few else 0.0
    return max(peak, memory), max(0.0, short - few * rate), rate


def _measure(model: Model, prepared: PreparedSweep, corpus: Any, plan: Plan, matrix: Any) -> None:
    measure_batch(replace(prepared, corpus=corpus), slice(0, 1), plan, matrix)


def _strip_bytes(
    model: Model, prepared: PreparedSweep, plan: Plan, sequences: int, width: int
) -> int:
    """Bytes of the logits that the largest reading holds at once; see `readout`."""
    stacked = max(len(sources) for kind, _, sources, *_ in plan.rows if kind != RUN)
    count = stacked * sequences * _queries(prepared, width)
    most = readout.LOGITS_AT_ONCE.get(model.identity["device"], readout.LOGITS_AT_ONCE_ELSEWHERE)
    columns = min(model.vocabulary, max(readout.NARROWEST_STRIP, most // count))
    return count * columns * max(4, _item(model))


def _held(model: Model) -> tuple[int, int]:
    """Bytes that are held now, and that were held at most: of a GPU, or of this process."""
    if model.device.type == "cuda":
        return torch.cuda.memory_allocated(model.device), torch.cuda.max_memory_allocated(
            model.device
        )
    held = int(psutil.Process().memory_info().rss)
    if sys.platform == "win32":
        return held, held
    import resource

    unit = 1 if sys.platform == "darwin" else 1024
    return held, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit


def _file_bytes(model: Model, prepared: PreparedSweep) -> int:
    """Bytes of the file that is left: of one with a single sequence, and of the numbers missing."""
    empty = prepared.complete(prepared.blank, np.zeros((len(prepared.schedules), 1), np.int32))
    first = empty.isel(sequence=slice(0, 1))
    kept = any(name in empty.attrs for name in resumable.TALLIED)
    tally = np.zeros((len(prepared.schedules), model.vocabulary), np.int32) if kept else None
    with tempfile.TemporaryDirectory() as directory:
        path = Path(directory) / "one.nc"
        netcdf.save(first, path, tally)
        return path.stat().st_size + empty.nbytes - first.nbytes


def _token_bytes(prepared: PreparedSweep) -> int:
    """Bytes of what is known and measured of every position of every window."""
    if not prepared.settings.per_token:
        return 0
    names = [metric.name for metric in (*prepared.readouts, *prepared.clean_readouts)]
    numbers = sum(prepared.blank[name].nbytes for name in names) * prepared.corpus.context
    return numbers + prepared.corpus.tokens.size * token_file.KNOWN_BYTES


class _Live(TorchDispatchMode):
    """Counts the bytes of all tensors that are made inside it and still there."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.most = 0
        self._now = 0
        self._tensors: dict[int, int] = {}

    def __torch_dispatch__(
        self, function: Any, types: Any, args: Any = (), kwargs: Any = None
    ) -> Any:
        made = function(*args, **(kwargs or {}))
        known = {
            self._key(each) for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)
        }
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                self._count(tensor, known)
        return made

    def _key(self, tensor: Tensor) -> int:
        return tensor.untyped_storage().data_ptr()

    def _count(self, tensor: Tensor, known: set[int]) -> None:
        key, size = self._key(tensor), tensor.untyped_storage().nbytes()
        if not size or (key in known and key not in self._tensors):
            return  # a view of what was there before
        if key not in self._tensors:
            self._now += size
            self.most = max(self.most, self._now)
        self._tensors[key] = self._tensors.get(key, 0) + 1
        finalize(tensor, self._drop, key, size)

    def _drop(self, key: int, size: int) -> None:
        self._tensors[key] -= 1
        if not self._tensors[key]:
            del self._tensors[key]
            self._now -= size
