"""Sizes of a model that runs a schedule: parameters, operations, and keys and values."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from robustness.models import sublayer_calls
from robustness.models.cache import cached_numbers
from robustness.models.model import Model, Parts
from robustness.runs import operations
from robustness.schedules import (
    Attention,
    Mapped,
    Mlp,
    Schedule,
    StreamMap,
    check,
    leaves,
    plain,
)
from robustness.schedules.steps import maps

Leaf = int | Attention | Mlp


@dataclass(frozen=True)
class Size:
    """What a schedule takes of a model."""

    parameters: int
    """Parameters without those of what is left out. A tensor counts once, however often it is used:
    tied embeddings, and a block that is executed twice. (An exported checkpoint holds such a block
    twice.) A fitted map of the stream counts too."""
    flops_share: float
    """Operations of the blocks for a token, and of maps of the stream, divided by those of the
    clean model's blocks. Head and embeddings are left out."""
    kv_bytes: int | None
    """Bytes that a cache of keys and values keeps for each token, in the dtype of the weights. A
    block that is executed twice has two caches. In blocks with a sliding window, this is until the
    window is full. None if no cache can be made without weights."""


def size_of(model: Model, schedule: Schedule | str, context: int) -> Size:
    """Return what a schedule takes of a model.

    Parameters
    ----------
    model : Model
        An opened model; its weights may be on a server.
    schedule : tuple of int or step, or str
        Blocks, and sublayers of blocks. A sublayer that is left out takes its norms along, unless
        the other sublayer reads them too.
    context : int
        Tokens of the sequences whose operations are counted.

    Raises
    ------
    Refusal
        If the model cannot run the schedule.
    """
    schedule = check(schedule, model.layers)
    sublayer_calls.check_schedules(model, [schedule])
    executed, whole = Counter[Leaf](), Counter[Leaf](range(model.layers))
    mapped = Counter[StreamMap | Mapped]()
    for step in schedule:
        executed.update(leaves(step))
        mapped.update(maps(step))
    # What is added by a step and then mapped is folded into matrices that are there.
    of_stream = [count for step, count in mapped.items() if isinstance(step, StreamMap)]
    flops = _flops(model, executed, context) + sum(of_stream) * 2 * context * model.width**2
    parameters = _parameters(model, set(executed))
    return Size(
        parameters=parameters + len(of_stream) * model.width * (model.width + 1),
        flops_share=flops / max(1, _flops(model, whole, context)),
        kv_bytes=_kv_bytes(model, executed),
    )


def _parameters(model: Model, executed: set[Leaf]) -> int:
    """Return the number of parameters of all but the blocks and sublayers that are not executed."""
    tensors = model.once(_tensors)
    used = dict(tensors.besides)
    for layer, block in enumerate(tensors.blocks):
        parts = {Attention(layer), Mlp(layer)} & executed
        if layer in executed or len(parts) == 2:
            used |= block
        elif parts:
            kept, lost = tensors.sublayers[layer]
            if Mlp(layer) in parts:
                kept, lost = lost, kept
            used |= {tensor: count for tensor, count in block.items() if tensor not in lost - kept}
    return sum(used.values())


@dataclass(frozen=True)
class _Tensors:
    """Tensors of a model by where they are, with the number of parameters in each."""

    blocks: tuple[dict[int, int], ...]
    besides: dict[int, int]
    """Tensors outside of the blocks."""
    sublayers: tuple[tuple[set[int], set[int]], ...]
    """Tensors of attention and MLP of every block, with their norms."""


def _tensors(model: Model) -> _Tensors:
    module, blocks = model.traced._module, model.paths.blocks
    counts: list[dict[int, int]] = [{} for _ in blocks]
    besides = dict[int, int]()
    inside = f"{model.paths.block_list}."
    for path, tensor in module.named_parameters(remove_duplicate=False):
        within = path.startswith(inside)
        block = int(path.removeprefix(inside).partition(".")[0]) if within else 0
        (counts[block] if within else besides)[id(tensor)] = tensor.numel()
    sublayers = []
    for attention, mlp in model.sublayers:
        sublayers.append((_of_parts(attention), _of_parts(mlp)))
    return _Tensors(tuple(counts), besides, tuple(sublayers))


def _of_parts(parts: Parts) -> set[int]:
    """Return the tensors of a sublayer."""
    before, main, after, _ = parts
    found = set[int]()
    for part in (*before, main, *after):
        found |= {id(tensor) for tensor in part._module.parameters()}
    return found


def _flops(model: Model, executed: Mapping[Leaf, int], context: int) -> int:
    """Return the operations of blocks and sublayers on a sequence."""
    times = {plain(leaf): count for leaf, count in executed.items()}
    return operations.of_leaves(model, times, 1, context)


def _kv_bytes(model: Model, executed: Mapping[Leaf, int]) -> int | None:
    numbers = model.once(cached_numbers)
    if numbers is None:
        return None
    attending = [
        numbers[leaf.block if isinstance(leaf, Attention) else leaf] * count
        for leaf, count in executed.items()
        if not isinstance(leaf, Mlp)
    ]
    width: int = getattr(torch, model.identity["dtype"]).itemsize
    return width * sum(attending)
