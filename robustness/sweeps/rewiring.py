"""Rewiring: one schedule as an nnsight model to trace, or as its residual stream at every step."""

import warnings
from dataclasses import replace

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

# A rewired model asks for its blocks at every step of a generation. The number of steps is unknown
# beforehand, so that it asks for one step too many, of which nnsight warns.
warnings.filterwarnings("ignore", message=".*was never reached: the loop asked for a step")


def rewire(model: Model, schedule: Schedule | str) -> TransformersModel:
    """Return an nnsight model that executes a schedule; the original stays as it is.

    In a trace of it, every block of the forward pass hands the embeddings on unchanged, until the
    last block runs the whole schedule on them. The final norm and the head then run as usual.

    Parameters
    ----------
    model : Model
        An opened model.
    schedule : tuple of int, Attention, Mlp or Parallel, or str
        The steps to execute, in order.

    Returns
    -------
    TransformersModel
        Model to trace like any other, under the module names of the original. It has no cache of
        keys and values: generate with `use_cache=False`.

    Raises
    ------
    Refusal
        If the schedule is empty or names a block that does not exist, or if it executes a sublayer
        alone and the blocks are not sums of their sublayers.
    """
    schedule = check(schedule, model.layers)
    sublayer_calls.check_schedules(model, [schedule])
    order = [plain(step) for step in schedule]
    # What a user traces is differentiated and generates text, for which nothing was compiled.
    modules, attentions = sublayer_calls.called_parts(replace(model, compiled=()), order)
    blocks, returns, last = model.blocks, model.returns, model.layers - 1
    with model.lock, model.traced.edit() as (_, edited):
        # Not the tracer's own `iter`: a request for a later trace would contain this finished
        # tracer, which cannot be pickled.
        for _ in Iterations()[:]:
            of_blocks, of_attentions = [], {}
            for layer, block in enumerate(blocks):
                entering, context = block_calls.split_inputs(block.inputs)
                of_blocks.append(context)
                if layer in attentions:
                    # A skipped block never calls its attention, whose context is needed. So this
                    # block runs, and its output is replaced below.
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
        The steps to execute; by default the clean schedule.

    Returns
    -------
    DataArray
        Dimensions (step, sequence, token, feature). Step k is the state after k steps, and step 0
        the state that enters the first. The coordinate `block` is the block that was executed, the
        lowest of several, and `executed` the step as text. At step 0 they are -1 and empty.

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
    outputs = {"states": ((len(order) + 1, *ids.shape, model.width), answer.STATES)}
    request = model.asking(answer.size(outputs))
    with model.computing(), model.traced.trace(ids, use_cache=False, **request):
        entering, contexts = interpreter.enter(blocks, attentions)
        block_calls.pass_over(head)
        hidden = entering[0]
        # Moved at once, so that the device holds one state and not one for every step.
        states = [hidden.cpu()]
        for step in order:
            hidden = interpreter.execute(step, hidden, contexts, modules)
            states.append(hidden.cpu())
        stacked = nnsight.save(torch.stack(states))
    stacked = answer.take({"states": stacked}, outputs)["states"]
    # NumPy has no bfloat16.
    values = stacked.to(torch.promote_types(stacked.dtype, torch.float32)).numpy()
    return xr.DataArray(
        values,
        dims=("step", "sequence", "token", "feature"),
        coords={
            "step": np.arange(len(schedule) + 1),
            "block": ("step", [-1, *map(lowest_block, schedule)]),
            "executed": ("step", ["", *(to_text((step,)) for step in schedule)]),
            "schedule": to_text(schedule),
        },
        attrs={"long_name": "residual stream", "units": "1", **model.identity, **model.execution},
        name="residual",
    )
