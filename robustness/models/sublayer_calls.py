"""What schedules call besides blocks: whether a model allows it, and what a trace needs for it."""

from collections.abc import Iterable, Sequence
from itertools import chain
from typing import Any

import nnsight
import torch

from robustness.errors import Refusal
from robustness.models import block_structure
from robustness.models.maps import check_fitted
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.schedules import Attention, Mlp, Schedule, leaves, plain, to_text
from robustness.trace import block_calls, interpreter
from robustness.trace.types import FittedMap, Growths, Modules


def check_schedules(model: Model, schedules: Sequence[Schedule]) -> None:
    """Refuse schedules that take fitted maps or sublayers which a model has not.

    Sublayers are executed alone only where blocks are the sum of their sublayers.
    The facts that take running the model are found here, before the first batch.

    Raises
    ------
    Refusal
        With the first map or sublayer that is missing, and why.
    """
    # Of millions of steps few are distinct.
    steps = tuple(dict.fromkeys(chain.from_iterable(schedules)))
    check_fitted(model.name, model.maps, steps, remote=bool(model.request))
    alone = _first_alone(steps)
    if alone is None:
        return
    missing = block_structure.examine(model).missing
    for need in block_structure.SUBLAYERS:
        if need in missing:
            raise Refusal(f"{to_text((alone,))} cannot be executed alone: {missing[need]}")
    model.once(_find_growth)


def called_parts(model: Model, steps: Iterable[Any]) -> tuple[Modules, dict[int, Any]]:
    """Return the parts that plain steps call, and the attentions that are called alone, by layer.

    The parts, and the model's maps, are those that `interpreter.execute` takes. Whole blocks are
    compiled ones where the model has these; sublayers never are.
    """
    alone: set[tuple[str, int]] = set()
    for step in steps:
        alone |= _called_alone(step)
    called: Modules = {}
    if alone:
        called = block_structure.named_parts(model) | block_structure.examine(model).known()
    called["blocks"] = model.compiled or model.blocks
    if model.maps is not None:
        called["maps"] = _fitted_maps(model)
    attentions = {}
    for kind, layer in alone:
        if kind == "attention":
            attentions[layer] = model.attentions[layer]
    return called, attentions


def growth(model: Model, attentions: dict[int, Any]) -> Growths:
    """Return which tensors in the contexts of blocks and of attentions grow with the batch."""
    return {"blocks": model.grows, "attentions": model.once(_find_growth) if attentions else {}}


def _first_alone(steps: Schedule) -> Attention | Mlp | None:
    """Return the first sublayer that a step executes alone, if there is one."""
    for step in steps:
        for leaf in leaves(step):
            if isinstance(leaf, (Attention, Mlp)):
                return leaf
    return None


def _called_alone(step: Any) -> set[tuple[str, int]]:
    """Return the sublayers that a plain step calls."""
    if not isinstance(step, tuple):
        return set()
    kind, inner = step
    if kind == "parallel":
        return set().union(*map(_called_alone, inner))
    if kind == "scaled" or kind == "mapped":
        return _called_alone(inner[0])
    return set() if kind == "scale" or kind == "map" else {(kind, inner)}


def _fitted_maps(model: Model) -> dict[Any, FittedMap]:
    """Return the maps of a model by plain step, as a trace takes them."""
    maps, fitted = model.maps, {}
    where = {"device": model.device, "dtype": getattr(torch, model.precision)}
    for step, matrix in maps.matrices.items() if maps else ():
        offset = maps.offsets.get(step) if maps else None
        moved = None if offset is None else offset.to(**where)
        fitted[plain(step)] = matrix.to(**where), moved
    return fitted


def _find_growth(model: Model) -> dict[Any, bool]:
    """Find which tensors in the contexts of attentions grow, on batches of two and three."""
    # Not known from the blocks: an attention is called with other tensors than its block.
    ids = [model.trial_text]
    three, two = (torch.tensor(ids * size, device=model.device) for size in (3, 2))
    blocks, head, traced = model.blocks, model.head, model.traced
    attentions = dict(enumerate(model.attentions))
    request = model.asking(0)
    with model.computing(), traced.session(**request):
        found = nnsight.save({})
        with traced.trace(three, use_cache=False):
            _, contexts = interpreter.enter(blocks, attentions)
            larger = block_calls.sizes(list(contexts["attentions"].values()))
            block_calls.pass_over(head)
        with traced.trace(two, use_cache=False):
            _, contexts = interpreter.enter(blocks, attentions)
            smaller = block_calls.sizes(list(contexts["attentions"].values()))
            found["grows"] = block_calls.growing(smaller, larger)
            block_calls.pass_over(head)
    answer.plain(found, {"grows": dict})
    grows: dict[Any, bool] = found["grows"]
    return grows
