"""Runs a plan on a batch of text, in one trace, here or on a server."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustness.models import pass_check, sublayer_calls
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs.ahead import TokensAhead, tokens_of
from robustness.runs.batching import query_positions
from robustness.schedules import passes as schedule_passes
from robustness.schedules.plan import Plan
from robustness.sweeps import token_counts
from robustness.sweeps.metric_trial import travelling
from robustness.sweeps.preparation import PreparedSweep
from robustness.trace import block_calls, interpreter, passes, readings, unembedding
from robustness.trace.types import HeadThere, Matrix, Modules, ReadoutQueries

Read = Callable[..., dict[str, Tensor]]
"""A function such as `readings.measure`: from a plan, the clean run and queries to tensors."""


@dataclass(frozen=True)
class FinalReading:
    """What a trace reads of final states."""

    read: Read
    """Function that runs the plan and reads; it travels to a server."""
    queries: Mapping[str, Any]
    """What the function is given besides the plan and the clean run."""
    outputs: answer.Wanted
    """Shapes of the tensors that it returns, which are all that a server may send."""


def measure_batch(
    prepared: PreparedSweep,
    rows: slice,
    plan: Plan,
    matrix: Matrix | None,
    ahead: TokensAhead | None = None,
) -> dict[str, NDArray[Any]]:
    """Run a plan on some sequences, in one trace; see `readings.measure`."""
    model, corpus = prepared.model, prepared.corpus
    tokens = ahead.take(rows) if ahead else tokens_of(model, corpus, rows)
    queries: ReadoutQueries = {
        "vocabulary": model.vocabulary,
        "divergences": prepared.divergences,
        "per_token": prepared.settings.per_token,
        "metrics": [travelling(metric) for metric in prepared.further],
        **query_positions(corpus, rows, tokens),
    }
    queries["readout_tokens"] = {
        **queries["readout_tokens"],
        **{metric.name: metric.tokens for metric in prepared.further},
    }
    outputs = outputs_of(prepared, plan.schedules, *queries["targets"].shape)
    reading = FinalReading(readings.measure, queries, outputs)
    measured = run_plan(model, tokens, plan, matrix, reading)
    if model.request:
        token_counts.check(measured, model.vocabulary, queries["targets"].numel())
    return measured


def outputs_of(prepared: PreparedSweep, schedules: int, count: int, queries: int) -> answer.Wanted:
    """Return the shapes of what is kept of the values that `readings.measure` returns.

    Parameters
    ----------
    prepared : PreparedSweep
        As from `prepare`.
    schedules, count, queries : int
        Number of schedules, of sequences, and of queries in each of these.
    """
    sequences, tokens = (count,), (count, queries)
    outputs: dict[str, tuple[tuple[int, ...], tuple[torch.dtype, ...]]] = {}
    of_runs = dict.fromkeys(prepared.readouts, (schedules,))
    for metric, runs in (of_runs | dict.fromkeys(prepared.clean_readouts, ())).items():
        outputs[metric.name] = ((*runs, *sequences), answer.FLOATS)
        if prepared.settings.per_token:
            outputs[f"token_{metric.name}"] = ((*runs, *tokens), answer.FLOATS)
    outputs["nonfinite"] = ((schedules, *sequences), answer.INTEGERS)
    outputs.update(token_counts.outputs(schedules, count * queries))
    return outputs


def run_plan(
    model: Model, tokens: Tensor, plan: Plan, matrix: Matrix | None, reading: FinalReading
) -> dict[str, NDArray[Any]]:
    """Run a plan from the clean pass over tokens, in one trace, and read its final states there.

    Parameters
    ----------
    model : Model
        An opened model.
    tokens : int64 tensor of shape (sequence, token)
        On the model's device.
    plan : Plan
        What is executed.
    matrix : Matrix, optional
        The head's matrix; without it, the head is called.
    reading : FinalReading
        What is read.

    Returns
    -------
    dict of str to array
        What `reading.read` returns.
    """
    if model.sandboxed and pass_check.as_passes(model, plan):
        measured = _run_passes(model, tokens, plan, reading)
    else:
        measured = _run_calls(model, tokens, plan, matrix, reading)
    if model.request:
        measured = answer.take(measured, reading.outputs)
    return {name: value.numpy() for name, value in measured.items()}


def _run_calls(
    model: Model, tokens: Tensor, plan: Plan, matrix: Matrix | None, reading: FinalReading
) -> dict[str, Tensor]:
    """Run a plan by calls of blocks, in one trace."""
    # Everything that the trace needs is a plain value: a server gets no object of ours.
    blocks, norms, head, clean_states = model.blocks, model.norms, model.head, plan.clean_states
    called, attentions = sublayer_calls.called_parts(model, {step for _, step, *_ in plan.rows})
    modules: Modules = {
        **called,
        "norms": norms,
        "head": head,
        "squash": model.squash,
        "matrix": matrix,
        "apart": model.sandboxed,
    }
    growths = sublayer_calls.growth(model, attentions)
    rows = {"rows": plan.rows, "schedules": plan.schedules}
    read, queries, there = reading.read, reading.queries, _head_there(model, plan, reading)
    request = model.asking(answer.size(reading.outputs))
    with model.computing(), model.traced.trace(tokens, use_cache=False, **request):
        entering, contexts = interpreter.enter(blocks, attentions)
        final = norms[0].input if norms else head.input
        block_calls.pass_over(head)
        modules["matrix"] = matrix or unembedding.matrix_there(head, there)
        entering.append(final)
        contexts = interpreter.share(contexts, len(final))
        states = {depth: entering[depth] for depth in clean_states}
        # Clean states are freed as soon as no schedule starts from them.
        del entering
        clean = {
            "states": states,
            "final": final,
            "contexts": contexts,
            "growths": growths,
            "modules": modules,
        }
        measured = nnsight.save(read(rows, clean, queries))
    # Anything, if a server sent it.
    received: dict[str, Tensor] = measured
    return received


def _run_passes(
    model: Model, tokens: Tensor, plan: Plan, reading: FinalReading
) -> dict[str, Tensor]:
    """Run a plan as passes, each a trace within one session."""
    way, there = pass_check.walkway(model, tokens), _head_there(model, plan, reading)
    compiled = schedule_passes.compile_passes(plan, model.layers)
    rows = {"rows": compiled, "schedules": plan.schedules}
    entered = schedule_passes.takes_entry(compiled)
    # Names inside are sent along, and `plan` and `reading` are objects of ours.
    clean_states, squash = plan.clean_states, model.squash
    read, queries = reading.read, reading.queries
    request = model.asking(answer.size(reading.outputs))
    with model.computing(), model.traced.session(**request):
        clean = passes.begin(clean_states, entered, way, there, squash)
        measured = nnsight.save(read(rows, clean, queries))
    # Anything, if a server sent it.
    received: dict[str, Tensor] = measured
    return received


def _head_there(model: Model, plan: Plan, reading: FinalReading) -> HeadThere | None:
    """Return what a server's trace has to know of the head."""
    return model.head_there(reading.queries["targets"].numel() * (plan.schedules + 1))
