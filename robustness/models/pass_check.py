"""Whether a model on a server runs as passes, in which some of its blocks are left out."""

import nnsight
import torch

from robustness.errors import Refusal, Unanswered
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.schedules import passes
from robustness.schedules.plan import Plan
from robustness.trace import numerics
from robustness.trace import passes as trace_passes
from robustness.trace.types import Walkway

TOLERANCE = 32
"""Largest relative error of a state that is computed twice, in units of its last digit."""


def walkway(model: Model, tokens: torch.Tensor) -> Walkway:
    """Return a model and tokens as `trace.passes` takes them."""
    return {
        "traced": model.traced,
        "tokens": tokens,
        "blocks": model.blocks,
        "norms": model.norms,
        "head": model.head,
        "returns": model.returns,
        "caches": [],
        "ends": ending_tokens(model),
    }


def ending_tokens(model: Model) -> list[int]:
    """Return the tokens with which a generated text of the model ends."""
    settings = getattr(model.traced._module, "generation_config", None)
    end = getattr(settings, "eos_token_id", None)
    return (
        [] if end is None else [int(token) for token in (end if isinstance(end, list) else [end])]
    )


def as_passes(model: Model, plan: Plan) -> bool:
    """Whether a plan runs as passes where every call would cross a socket."""
    return passes.suits(plan) and (not model.sandboxed or model.once(runs_as_passes))


def runs_as_passes(model: Model) -> bool:
    """Whether passes of a short text give the states of the clean pass.

    A model may keep something between its blocks that is lost where one is skipped. It takes a
    request of its own, since a model that does not run may end it with an error.
    """
    way = walkway(model, torch.tensor([model.trial_text]))
    layers, states = model.layers, sorted({0, 1, model.layers - 1})
    request, traced = model.asking(0), model.traced
    try:
        with model.computing(), traced.session(**request):
            measured = nnsight.save({"off": [], "eps": 0.0})
            clean, final, entry = trace_passes.enter(states, way)
            # One block alone, all but one, and the last.
            one, _ = trace_passes.forward(clean[0], (0, 1, ((0, 1),), False), entry, way)
            _, most = trace_passes.forward(clean[1], (1, layers, (), True), entry, way)
            row = (layers - 1, layers, (), True)
            _, last = trace_passes.forward(clean[layers - 1], row, entry, way)
            found = ((one[1], clean[1]), (most, final), (last, final))
            for ours, own in found:
                miss = (ours.double() - own.double()).abs().max() / own.double().abs().max()
                measured["off"].append(float(miss))
            measured["eps"] = max(torch.finfo(final.dtype).eps, torch.finfo(torch.float32).eps)
    except Unanswered:
        raise
    except Refusal:
        return False
    answer.plain(measured, {"off": [float], "eps": float})
    return bool(numerics.largest(measured["off"]) <= TOLERANCE * measured["eps"])
