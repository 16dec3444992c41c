"""Benchmark tasks under many schedules: one trace scores continuations under all of them."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.files import changes, resumable
from robustness.files.labels import Labels, blank_dataset
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes, value_digest
from robustness.models import sublayer_calls
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs import remote_traffic, sizes
from robustness.runs.batching import SCHEDULES_PER_GROUP, batches
from robustness.runs.out_of_memory import Portions
from robustness.runs.settings import RunOptions
from robustness.schedules import Schedule, clean
from robustness.schedules.plan import Plan, compile_plan
from robustness.sweeps.preparation import lay_out_schedules, live_states
from robustness.sweeps.tracing import FinalReading, run_plan
from robustness.tasks.harness import (
    Request,
    Tasks,
    harness_version,
    load_tasks,
    longest_text,
    wanted_requests,
)
from robustness.tasks.settings import TaskSettings
from robustness.tasks.summary import Answers, summarise
from robustness.text.local_file import printable_name
from robustness.trace import readings
from robustness.trace.types import ContinuationQueries, Matrix

LOGLIKELIHOOD = Metric("loglikelihood", "nat", "log-likelihood of a continuation")

GREEDY = Metric("greedy", "1", "whether a continuation is the most likely", count=True)

LESS_TRAFFIC = "a lower `limit`, or fewer interventions"
"""Advice for less traffic through the socket of a sandboxed server."""

REMEDY = "`dtype` bfloat16, or another `device`"
"""Advice if not even one continuation fits into memory."""


@dataclass(frozen=True, eq=False)
class PreparedTasks:
    """A run of tasks before any continuation is scored."""

    settings: TaskSettings
    model: Model
    tasks: Tasks
    schedules: list[Schedule]
    """The clean schedule, then all others."""
    labels: Labels | None
    """Dimensions and coordinates of the other schedules; None without any."""
    requests: list[Request]
    """Continuations in the order in which the harness asks for them."""
    blank: xr.Dataset
    """Empty dataset of scores, with continuations in order of length."""
    batch_tokens: int
    """Maximum number of tokens in a trace."""
    chosen: sizes.Sizes
    """What suits the device."""

    @cached_property
    def order(self) -> list[int]:
        """Indices of the continuations in `requests`, in order of length."""
        places: list[int] = self.blank["request"].values.tolist()
        return places

    @cached_property
    def longest(self) -> int:
        """Maximum number of tokens of a context and a continuation."""
        return longest_text(self.model)

    @cached_property
    def lengths(self) -> list[int]:
        """Number of tokens that go through the model for each continuation, in order of length."""
        lengths = []
        for at in self.order:
            context, continuation = self.requests[at]
            # The last token is scored, but does not go through the model.
            lengths.append(min(self.longest, len(context) + len(continuation) - 1))
        return lengths

    def width(self, rows: slice) -> int:
        """Return the number of tokens of some continuations, with padding."""
        return (rows.stop - rows.start) * self.lengths[rows.stop - 1]

    def scored(self, rows: slice) -> int:
        """Return the number of tokens of some continuations that are scored."""
        return sum(len(self.requests[at][1]) for at in self.order[rows])

    def batches(self, done: int = 0) -> list[slice]:
        """Return the batches that are left after a number of continuations."""
        return batches(self.lengths, self.batch_tokens, done, self.model.bends)

    def plan(self, cap: int) -> Plan:
        """Compile the schedules into a plan that stacks at most `cap` states."""
        return compile_plan(
            self.schedules, clean(self.model.layers), cap=cap, per_group=SCHEDULES_PER_GROUP
        )

    def complete(self, dataset: xr.Dataset, _: Any) -> xr.Dataset:
        """Return the metrics that the harness makes of all scores."""
        scores = dataset.sortby("request")
        answers = []
        for at in range(len(self.schedules)):
            likelihoods = scores["loglikelihood"].values[at].tolist()
            greedy = (scores["greedy"].values[at] > 0).tolist()
            pairs = zip(likelihoods, greedy, strict=True)
            answer_to: Answers = dict(zip(self.requests, pairs, strict=True))
            answers.append(answer_to)
        limit = self.settings.limit
        summary = summarise(self.model, self.tasks, limit, answers, self.labels)
        return summary.assign_attrs(dataset.attrs)


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
        `progress` is called with the number of continuations that are scored.

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
        If lm-eval is not installed, there is no such task or data, a task generates text, or `out`
        holds other settings.
    """
    options = options or RunOptions()
    prepared = prepare_tasks(model, settings or TaskSettings(), options)
    run = resumable.Run(
        prepared.blank, path=options.out, fresh=options.fresh, complete=prepared.complete
    )
    with run:
        _score_batches(prepared, run, options)
        return run.finish()


def prepare_tasks(model: Model, settings: TaskSettings, options: RunOptions) -> PreparedTasks:
    """Check that tasks can be run, and return the continuations to score.

    Parameters
    ----------
    model, settings, options
        As for `evaluate_tasks`.

    Raises
    ------
    Refusal
        As for `evaluate_tasks`.
    """
    _check_tokenizer(model)
    schedules, labels, described = _lay_out(model, settings)
    sublayer_calls.check_schedules(model, schedules)
    tasks = load_tasks(settings)
    requests = wanted_requests(model, tasks, settings.limit)
    # In order of length, so that batches have little padding.
    order = sorted(range(len(requests)), key=lambda at: sum(map(len, requests[at])))
    widest = min(longest_text(model), max(sum(map(len, request)) for request in requests))
    chosen = sizes.choose(model, lambda: live_states(model, schedules), widest)
    batch_tokens = options.batch_tokens or chosen.text
    attributes = {
        **model.identity,
        **model.execution,
        **described,
        "tasks": ", ".join(settings.tasks),
        "task_data": "" if settings.data is None else printable_name(settings.data),
        "limit": settings.limit or "none",
        "corpus_sha256": value_digest(requests),
        "batch_tokens": batch_tokens,
        "sequences": len(requests),
        "lm_eval": harness_version(),
    }
    of_score = ("run", "request")
    blank = blank_dataset(
        {metric.name: (metric, of_score) for metric in (LOGLIKELIHOOD, GREEDY)},
        {"run": np.arange(len(schedules)), "request": order},
        file_attributes(attributes, options.command),
        np.float64,
    )
    return PreparedTasks(
        settings, model, tasks, schedules, labels, requests, blank, batch_tokens, chosen
    )


def _check_tokenizer(model: Model) -> None:
    """Refuse a model whose tokenizer lm-eval cannot use."""
    if model.tokenizer is None:
        raise Refusal(f"{model.name} has no tokenizer, which tasks need")
    if model.tokenizer.bos_token_id is None and model.tokenizer.eos_token_id is None:
        raise Refusal(f"the tokenizer of {model.name} has neither BOS nor EOS, which tasks need")


def _lay_out(
    model: Model, settings: TaskSettings
) -> tuple[list[Schedule], Labels | None, dict[str, str]]:
    """Return all schedules, the labels of all but the clean one, and attributes of the file."""
    whole = clean(model.layers)
    if settings.clean_only:
        return [whole], None, {"measurement": "tasks-clean"}
    schedules, labels, described = lay_out_schedules(model, settings.sweep)
    if "layer_to" in labels.dims:
        names = ", ".join(settings.interventions or ())
        raise Refusal(f"tasks are run under interventions at every layer, not {names}")
    kind = "tasks-schedules" if settings.schedules else "tasks"
    return [whole, *schedules], labels, described | {"measurement": kind}


def _score_batches(prepared: PreparedTasks, run: resumable.Run, options: RunOptions) -> None:
    """Score the continuations that are left, batch by batch."""
    model, total = prepared.model, len(prepared.requests)
    left = prepared.batches(run.done)
    # Most batches have the same cap, and compiling a plan takes a while.
    plan = lru_cache(prepared.plan)
    caps = {rows.start: _cap(prepared, rows, options) for rows in left}
    _allow_traffic(prepared, left, lambda rows: plan(caps[rows.start]))
    portions = Portions(run.lost, options.tell, REMEDY)
    portions.begin(changes.lowered(run.dataset.attrs))
    matrix = portions.matrix(model.unembedding, run.done) if left else None
    options.show(run.done, total)

    # After memory has run out, fewer states are stacked than the cap allows.
    def planned(most: int, lower: int | None) -> Plan:
        return plan(min(most, lower or most))

    def score(most: int, part: slice, lower: int | None) -> dict[str, NDArray[Any]]:
        return score_batch(prepared, part, planned(most, lower), matrix)

    def widest(most: int, lower: int | None) -> int:
        return planned(most, lower).widest

    for rows in left:
        most = caps[rows.start]
        scored = portions.each(rows, partial(score, most), prepared.width, partial(widest, most))
        for part, scores in scored:
            run.add(part, scores)
        options.show(run.done, total)


def _cap(prepared: PreparedTasks, rows: slice, options: RunOptions) -> int:
    """Return the maximum number of states of a batch that go through a block together."""
    return options.state_cap or prepared.chosen.state_cap(prepared.width(rows))


def _allow_traffic(
    prepared: PreparedTasks, left: Sequence[slice], plan: Callable[[slice], Plan]
) -> None:
    """Refuse a run on a sandboxed server with more traffic than is allowed."""
    crossings = []
    for rows in left if prepared.model.sandboxed else ():
        width, scored = prepared.width(rows), prepared.scored(rows)
        crossings.append(remote_traffic.of_plan(prepared.model, plan(rows), width, scored, 0))
    remote_traffic.allow(prepared.model, crossings, LESS_TRAFFIC)


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
