"""What a run of tasks is to do, laid out before anything is scored or written."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import xarray as xr

from robustness.errors import Refusal
from robustness.files import changes
from robustness.files.labels import Labels, blank_dataset
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes, value_digest
from robustness.models import sublayer_calls
from robustness.models.model import Model
from robustness.runs import sizes
from robustness.runs.batching import batches
from robustness.runs.request_cost import RequestCost, Text, of_plan
from robustness.runs.server_sizes import Reads
from robustness.runs.settings import RunOptions
from robustness.schedules import Schedule, clean
from robustness.schedules.division import Division
from robustness.schedules.plan import Plan
from robustness.sweeps.preparation import choose_sizes, divide, lay_out_schedules
from robustness.tasks.answering import Request, longest_text, wanted_requests
from robustness.tasks.harness import Tasks, harness_version, load_tasks
from robustness.tasks.prompts import Prompts, as_answer
from robustness.tasks.settings import TaskSettings
from robustness.tasks.summary import summarise
from robustness.text.local_file import printable_name

LOGLIKELIHOOD = Metric("loglikelihood", "nat", "log-likelihood of a continuation")

GREEDY = Metric("greedy", "1", "whether a continuation is the most likely", count=True)


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
    prompts: Prompts
    """Texts that are continued."""
    blank: xr.Dataset
    """Empty dataset of scores and of tokens written, each in order of length."""
    batch_tokens: int
    """Maximum number of tokens in a trace."""
    chosen: sizes.Sizes
    """What suits the device."""
    division: Division
    """The schedules, and how they are divided over requests."""

    @cached_property
    def order(self) -> list[int]:
        """Indices of the continuations in `requests`, in order of length."""
        places: list[int] = self.blank["request"].values.tolist() if self.requests else []
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

    def prompt_batches(self, done: int = 0) -> list[slice]:
        """Return the batches of prompts that are left after a number of them."""
        return batches(self.prompts.lengths, self.batch_tokens, done, self.model.bends)

    def plan(self, cap: int, group: slice | None = None) -> Plan:
        """Compile all schedules or a group, as a plan that stacks at most `cap` states."""
        return self.division.plan(cap, group)

    def cost(self, rows: slice, plan: Plan) -> RequestCost:
        """Return the cost of a request that scores some continuations under a plan's schedules."""
        count, scored = rows.stop - rows.start, self.scored(rows)
        text = Text(count, self.width(rows) // count, scored)
        return of_plan(self.model, plan, text, 2 * plan.schedules * scored, diverges=False)

    def complete(self, dataset: xr.Dataset, _: Any) -> xr.Dataset:
        """Return the metrics that the harness makes of all scores."""
        scores = dataset.sortby([name for name in ("request", "prompt") if name in dataset.dims])
        answers = []
        for at in range(len(self.schedules)):
            answers.append(self._scored_answers(scores, at) | self._written_answers(scores, at))
        limit = self.settings.limit
        summary = summarise(self.model, self.tasks, limit, answers, self.labels)
        return summary.assign_attrs(dataset.attrs)

    def _scored_answers(self, scores: xr.Dataset, at: int) -> dict[Any, Any]:
        """Return the scores of continuations under a schedule."""
        if not self.requests:
            return {}
        likelihoods = scores["loglikelihood"].values[at].tolist()
        greedy = (scores["greedy"].values[at] > 0).tolist()
        return dict(zip(self.requests, zip(likelihoods, greedy, strict=True), strict=True))

    def _written_answers(self, scores: xr.Dataset, at: int) -> dict[Any, Any]:
        """Return the texts that continue prompts under a schedule."""
        answers: dict[Any, Any] = {}
        for column, prompt in enumerate(self.prompts.asked):
            ids = scores["written"].values[at, :, column]
            answers[prompt] = as_answer(self.model.tokenizer, prompt, ids[ids >= 0].tolist())
        return answers


def prepare_tasks(model: Model, settings: TaskSettings, options: RunOptions) -> PreparedTasks:
    """Check that tasks can be run, and return what is to be scored and written.

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
    requests, asked = wanted_requests(model, tasks, settings.limit)
    prompts = Prompts(asked)
    if asked and model.request:
        raise Refusal(
            "tasks that generate text run on this machine: open the model here, or choose tasks "
            "that score continuations"
        )
    # In order of length, so that batches have little padding.
    order = sorted(range(len(requests)), key=lambda at: sum(map(len, requests[at])))
    longest = [sum(map(len, request)) for request in requests] + prompts.lengths
    widest = min(longest_text(model), max(longest))
    division = divide(model, schedules)
    reads = Reads(max((len(ids) for _, ids in requests), default=1))
    chosen = choose_sizes(model, division, widest, reads, options)
    batch_tokens = options.batch_tokens or chosen.text
    attributes = {
        **model.identity,
        **model.execution,
        **described,
        "tasks": ", ".join(settings.tasks),
        "task_data": "" if settings.data is None else printable_name(settings.data),
        "limit": settings.limit or "none",
        # Without the prompts where there are none, as in files of tasks that only score.
        "corpus_sha256": value_digest((requests, asked) if asked else requests),
        "batch_tokens": batch_tokens,
        changes.REQUESTS: len(division.groups(chosen.requests)) if model.request else None,
        "sequences": len(requests) + len(asked),
        "lm_eval": harness_version(),
    }
    scores = (LOGLIKELIHOOD, GREEDY) if requests else ()
    blank = blank_dataset(
        {metric.name: (metric, ("run", "request")) for metric in scores},
        {"run": np.arange(len(schedules))} | ({"request": order} if requests else {}),
        file_attributes(attributes, options.command),
        np.float64,
    )
    return PreparedTasks(
        settings, model, tasks, schedules, labels, requests, prompts,
        _with_prompts(blank, prompts), batch_tokens, chosen, division,
    )  # fmt: skip


def _with_prompts(blank: xr.Dataset, prompts: Prompts) -> xr.Dataset:
    """Add a place for the tokens that continue prompts, -1 where none is written."""
    if not len(prompts):
        return blank
    shape = (blank.sizes["run"], prompts.most, len(prompts))
    written = np.full(shape, -1, np.int32)
    blank = blank.assign_coords(place=np.arange(prompts.most), prompt=prompts.order)
    described = {"units": "1", "long_name": "tokens that continue a prompt"}
    return blank.assign(written=(("run", "place", "prompt"), written, described))


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
