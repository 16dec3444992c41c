"""Benchmark tasks under many schedules: one trace scores continuations under all of them."""

from functools import lru_cache
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from robustness.files import changes, resumable
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs.announcement import announce
from robustness.runs.budget import pace_of
from robustness.runs.portions import Piece, Portions, Work
from robustness.runs.request_cost import describe
from robustness.runs.settings import RunOptions
from robustness.schedules.division import Division
from robustness.schedules.plan import Plan
from robustness.sweeps.tracing import FinalReading, run_plan
from robustness.tasks.preparation import PreparedTasks, prepare_tasks
from robustness.tasks.requests import cap_of, foresee
from robustness.tasks.settings import TaskSettings
from robustness.tasks.writing import writing
from robustness.trace import readings
from robustness.trace.types import ContinuationQueries, Matrix

LESS_TRAFFIC = "a lower `limit`, or fewer interventions"
"""Advice for less traffic through the socket of a sandboxed server."""

REMEDY = "`dtype` bfloat16, or another `device`"
"""Advice if not even one continuation fits into memory."""


def evaluate_tasks(
    model: Model, settings: TaskSettings | None = None, options: RunOptions | None = None
) -> xr.Dataset:
    """Run benchmark tasks under interventions at every layer, or under free schedules.

    Parameters
    ----------
    model : Model
        An opened model with a tokenizer.
    settings : TaskSettings, optional
        Which tasks are run, on which items, and under which schedules.
    options : RunOptions, optional
        `out` is the file. Scores are kept beside it, and the same call resumes with them.
        `progress` is called with the number of continuations that are scored or written.

    Returns
    -------
    Dataset
        `value` and `standard_error` (task, metric, intervention, layer), as the harness computes
        them, and `clean_value` and `clean_standard_error` (task, metric). For each item, `correct`
        (metric, intervention, layer, item) and `clean_correct` (metric, item), NaN if its task does
        not have the metric or the metric does not say whether an item is right; `item_task` and
        `item_index` identify items. Free schedules are along `schedule` instead. For the clean
        model alone, the dataset has the clean variables only.

    Raises
    ------
    Refusal
        If lm-eval is not installed, there is no such task or data, a task asks for something that
        is not computed here, or `out` holds other settings.
    """
    options = options or RunOptions()
    prepared = prepare_tasks(model, settings or TaskSettings(), options)
    run = resumable.Run(
        prepared.blank, path=options.out, fresh=options.fresh, complete=prepared.complete
    )
    with run:
        _score_batches(prepared, run, options)
        _write_batches(prepared, run, options)
        return run.finish()


def _score_batches(prepared: PreparedTasks, run: resumable.Run, options: RunOptions) -> None:
    """Score the continuations that are left, batch by batch."""
    model, total = prepared.model, len(prepared.requests) + len(prepared.prompts)
    left = prepared.batches(run.done)
    if model.request or options.foresee is not None:
        announce(foresee(prepared, left, options), options, LESS_TRAFFIC)
    portions = Portions(run.lost, options.tell, REMEDY, pace_of(model, options.tell))
    portions.begin(changes.lowered(run.dataset.attrs))
    matrix = portions.matrix(model.unembedding, run.done) if left else None
    options.show(run.done, total)
    for rows in left:
        work = _work(prepared, cap_of(prepared, rows, options), matrix)
        for part, scores in portions.each(rows, work):
            joined = {name: np.concatenate([each[name] for each in scores]) for name in scores[0]}
            run.add(part, joined)
        options.show(run.done, total)


def _write_batches(prepared: PreparedTasks, run: resumable.Run, options: RunOptions) -> None:
    """Continue the prompts that are left, batch by batch."""
    # Prompts are counted after all continuations.
    begin = len(prepared.requests)
    portions = Portions(run.lost, options.tell, REMEDY)
    portions.begin(changes.lowered(run.dataset.attrs))
    work = writing(prepared, begin)
    for batch in prepared.prompt_batches(max(0, run.done - begin)):
        for part, written in portions.each(slice(begin + batch.start, begin + batch.stop), work):
            joined = {"written": np.concatenate([each["written"] for each in written])}
            run.add(part, joined, slice(part.start - begin, part.stop - begin))
        options.show(run.done, begin + len(prepared.prompts))


def _work(
    prepared: PreparedTasks, most: int, matrix: Matrix | None
) -> Work[dict[str, NDArray[Any]]]:
    """Return how a batch is scored whose plans stack at most a number of states."""

    def plan(piece: Piece) -> Plan:
        # After memory has run out, fewer states are stacked than the cap allows.
        cap = min(most, piece.cap or most)
        return _plan(prepared.division, cap, piece.group.start, piece.group.stop)

    return Work(
        lambda piece: score_batch(prepared, piece.rows, plan(piece), matrix),
        prepared.width,
        lambda piece: plan(piece).widest,
        prepared.division,
        prepared.chosen.requests,
        lambda piece: describe(prepared.cost(piece.rows, plan(piece))),
    )


@lru_cache(maxsize=8)
def _plan(division: Division, cap: int, start: int, stop: int) -> Plan:
    """Compile a group of schedules; most batches have the same cap, and it takes a while."""
    return division.plan(cap, slice(start, stop))


def score_batch(
    prepared: PreparedTasks, rows: slice, plan: Plan, matrix: Matrix | None
) -> dict[str, NDArray[Any]]:
    """Score continuations under every schedule of a plan, in one trace.

    Parameters
    ----------
    prepared : PreparedTasks
        Result of `prepare_tasks`.
    rows : slice
        Continuations, in order of length.
    plan : Plan
        The schedules.
    matrix : pair of tensors
        Unembedding and its bias.

    Returns
    -------
    dict of str to array
        `loglikelihood` and `greedy` (run, request).
    """
    model = prepared.model
    batch = [prepared.requests[at] for at in prepared.order[rows]]
    # A context that is too long is cut on the left, as the harness does. The one token more than
    # the model takes is the last, which is scored only.
    texts = [[*context, *ids][-(prepared.longest + 1) :] for context, ids in batch]
    tokens = torch.zeros(len(batch), max(map(len, texts)) - 1, dtype=torch.long)
    item: list[int] = []
    query: list[int] = []
    targets: list[int] = []
    for at, (ids, (_, continuation)) in enumerate(zip(texts, batch, strict=True)):
        tokens[at, : len(ids) - 1] = torch.tensor(ids[:-1])
        item += [at] * len(continuation)
        query += range(len(ids) - 1 - len(continuation), len(ids) - 1)
        targets += continuation
    queries: ContinuationQueries = {
        "vocabulary": model.vocabulary,
        "targets": torch.tensor(targets, device=model.device),
        "item": torch.tensor(item, device=model.device),
        "query": torch.tensor(query, device=model.device),
    }
    shape = (plan.schedules, len(targets))
    wanted = dict.fromkeys(("loss", "hit"), (shape, answer.FLOATS))
    tokens = tokens.to(model.device)
    reading = FinalReading(readings.score, queries, wanted)
    scores = run_plan(model, tokens, plan, matrix, reading)
    # Tokens of a continuation lie side by side: `reduceat` adds from each start to the next.
    starts = np.flatnonzero(np.diff(item, prepend=-1))
    return {
        "loglikelihood": -np.add.reduceat(scores["loss"].astype(np.float64), starts, axis=1),
        "greedy": np.minimum.reduceat(scores["hit"], starts, axis=1).astype(np.int32),
    }
