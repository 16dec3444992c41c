"""Runs one schedule: as a rewired model to trace, or for its residual stream after every step."""

import warnings

import nnsight
import numpy as np
import torch
import xarray as xr
from nnsight import TransformersModel
from nnsight.intervention.iterator import Iterations
from numpy.typing import ArrayLike

from robustness.models import sublayer_calls
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs.batching import check_tokens
from robustness.schedules import Schedule, check, clean, lowest_block, plain, to_text
from robustness.trace import block_calls, interpreter

# A rewired model asks for its blocks at every step of a generation, and so for one step too many.
warnings.filterwarnings("ignore", message=".*was never reached: the loop asked for a step")


def rewire(model: Model, schedule: Schedule | str) -> TransformersModel:
    """Return an nnsight model that executes a schedule; the original is left as it is.

    In a trace of it, the natural pass hands the entering residual stream from block to block
    unchanged, and its last block leaves what the schedule makes of it; norm and head follow.

    Parameters
    ----------
    model : Model
        An opened model.
    schedule : tuple of int, Attention, Mlp or Parallel, or str
        The steps to execute, in order.

    Returns
    -------
    TransformersModel
        To be traced like any other, under the names of the original. It has no cache of keys and
        values: generate with `use_cache=False`.

    Raises
    ------
    Refusal
        If the schedule is empty or names a block that is not there, or executes a sublayer alone
        and blocks are not the sum of theirs.
    """
    schedule = check(schedule, model.layers)
    sublayer_calls.check_schedules(model, [schedule])
    order = [plain(step) for step in schedule]
    modules, attentions = sublayer_calls.called_parts(model, order)
    blocks, returns, last = model.blocks, model.returns, model.layers - 1
    with model.lock, model.traced.edit() as (_, edited):
        # Not the tracer's own `iter`, which would send the finished tracer along to a server.
        for _ in Iterations()[:]:
            of_blocks, of_attentions = [], {}
            for layer, block in enumerate(blocks):
                entering, context = block_calls.split_inputs(block.inputs)
                of_blocks.append(context)
                if layer in attentions:
                    # It has to run for its attention to be called; what it makes is replaced.
                    _, context = block_calls.split_inputs(attentions[layer].inputs)
                    of_attentions[layer] = context
                if layer == last:
                    contexts = interpreter.contexts_of(of_blocks, of_attentions)
                    for step in order:
                        entering = interpreter.execute(step, entering, contexts, modules)
                left = block_calls.as_returned(entering, returns)
                if layer in attentions:
                    block.output = left
                else:
                    block.skip(left)
    return edited


def residuals(
    model: Model, tokens: ArrayLike, schedule: Schedule | str | None = None
) -> xr.DataArray:
    """Return the residual stream before the first and after every step of a schedule.

    Parameters
    ----------
    model : Model
        An opened model.
    tokens : array_like of int, shape (sequence, token)
        Token ids.
    schedule : tuple of int, Attention, Mlp or Parallel, or str, optional
        The steps to execute; the clean schedule without it.

    Returns
    -------
    DataArray
        Dimensions (step, sequence, token, feature). Step k is the state after k steps, 0 what
        enters the first; the coordinate `block` names the block that was executed, the lowest of
        several, and `executed` the step as text; -1 and nothing at step 0.

    Raises
    ------
    Refusal
        As for `rewire`.
    """
    schedule = clean(model.layers) if schedule is None else check(schedule, model.layers)
    ids = torch.as_tensor(np.asarray(tokens), device=model.device)
    check_tokens(model, ids)
    sublayer_calls.check_schedules(model, [schedule])
    order = [plain(step) for step in schedule]
    modules, attentions = sublayer_calls.called_parts(model, order)
    blocks, head = model.blocks, model.head
    wanted = {"states": ((len(order) + 1, *ids.shape, model.width), answer.STATES)}
    request = model.asking(answer.size(wanted))
    with model.lock, torch.no_grad(), model.traced.trace(ids, use_cache=False, **request):
        entering, contexts = interpreter.enter(blocks, attentions)
        block_calls.pass_over(head)
        hidden = entering[0]
        states = [hidden.cpu()]
        for step in order:
            hidden = interpreter.execute(step, hidden, contexts, modules)
            states.append(hidden.cpu())
        stacked = nnsight.save(torch.stack(states))
    stacked = answer.take({"states": stacked}, wanted)["states"]
    return xr.DataArray(
        stacked.to(torch.promote_types(stacked.dtype, torch.float32)).numpy(),
        dims=("step", "sequence", "token", "feature"),
        coords={
            "step": np.arange(len(schedule) + 1),
            "block": ("step", [-1, *map(lowest_block, schedule)]),
            "executed": ("step", ["", *(to_text((step,)) for step in schedule)]),
            "schedule": to_text(schedule),
        },
        attrs={"long_name": "residual stream", "units": "1", **model.identity},
        name="residual",
    )
