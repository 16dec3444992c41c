"""Benchmark tasks of lm-eval under every schedule: its prompts and metrics, our scoring.

The harness is run once to hear which continuations it wants scored, all of them are scored under
all schedules, a batch of them in each trace, and the harness is run once a schedule to make metrics
of the answers. Nothing of it is cached, so that answers of two schedules cannot mix.
"""

import io
import logging
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from functools import cache, partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
import xarray as xr
from datasets.exceptions import DatasetsError
from jinja2 import TemplateError
from numpy.typing import NDArray

from robustness.errors import Refusal, first_line, reading
from robustness.files import changes, resumable
from robustness.files.labels import Labels, blank_dataset, sweep_labels
from robustness.files.metrics import Metric
from robustness.files.provenance import file_attributes, value_digest
from robustness.models import checkpoint, sublayer_calls
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs import remote_traffic
from robustness.runs.batching import ROOM, batches, state_cap, tokens_of_text
from robustness.runs.out_of_memory import Matrix, Portions
from robustness.runs.settings import Progress
from robustness.schedules.interventions import schedules as sweep_schedules
from robustness.schedules.plan import Plan, compile_plan
from robustness.schedules.schedule import Schedule, clean
from robustness.sweeps.tracing import run_plan
from robustness.tasks.items import CHOICES, CONTINUATION, Items, check_choices, read_items
from robustness.text.json_values import is_text
from robustness.text.local_file import expanded, printable_name
from robustness.trace import scoring

TASKS = ("hellaswag", "arc_easy", "lambada_openai")
"""The paper's."""

LOADING_ERRORS = (
    *checkpoint.LOADING_ERRORS,
    AssertionError,
    ImportError,
    DatasetsError,
    TemplateError,
)
"""What the harness, the hub's client and prompts raise over data that does not fit."""

FORMS = "write the fields query, choices and gold, or context and continuation"
"""What would do where items with the fields of an original do not."""

BY_ITEM = ("acc", "acc_norm", "acc_bytes", "acc_mutual_info")
"""Metrics by which an item is answered right or wrong."""

BOOTSTRAP = 100
"""Samples for the errors of metrics that are no means, as of perplexity."""

Request = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a context and of the continuation that is scored."""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether each of its tokens is the most likely."""


def evaluate_tasks(
    model: Model,
    tasks: Sequence[str] = TASKS,
    interventions: Sequence[str] = ("drop", "swap"),
    *,
    data: str | Path | None = None,
    limit: int | None = None,
    batch_tokens: int | None = None,
    cap: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Progress | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> xr.Dataset:
    """Run benchmark tasks under interventions at every layer.

    Parameters
    ----------
    model : Model
        An opened model with a tokenizer.
    tasks : sequence of str
        Names of lm-eval tasks that score continuations.
    interventions : sequence of str
        Names as in `robustness.schedules.interventions.FORMS`.
    data : str or path, optional
        A directory with `TASK.jsonl` files that take the place of the tasks' data sets: lines of
        `query`, `choices` and `gold`, of `context` and `continuation`, or with the fields of the
        original.
    limit : int, optional
        Items of each task; all without it.
    batch_tokens : int, optional
        Tokens of text in a trace.
    cap : int, optional
        The most states that go through a block together.
    out : str or path, optional
        The file; what is scored is kept beside it, and the same call goes on from there.
    fresh : bool
        Whether to throw away what is there.
    command : str
        The command line, for the record.
    progress : callable, optional
        Told how many continuations are scored, and how many there are.
    tell : callable
        Told when memory ran out and less is run at once from there on.

    Returns
    -------
    Dataset
        `value` and `standard_error` (task, metric, intervention, layer), as the harness gives them,
        `clean_value` and `clean_standard_error` (task, metric); per item `correct` (metric,
        intervention, layer, item) and `clean_correct` (metric, item), NaN where a task has no such
        metric or an item is neither right nor wrong by it; `item_task` and `item_index` tell items
        apart.

    Raises
    ------
    Refusal
        If lm-eval is not installed, there is no such task or data, a task generates text, or `out`
        holds other settings.
    """
    if model.tokenizer is None:
        raise Refusal(f"{model.name} has no tokenizer, which tasks need")
    if model.tokenizer.bos_token_id is None and model.tokenizer.eos_token_id is None:
        raise Refusal(f"the tokenizer of {model.name} has neither BOS nor EOS, which tasks need")
    named = sweep_schedules(interventions, model.layers)
    labels = sweep_labels(named, model.layers)
    if "layer_to" in labels.dims:
        raise Refusal(f"tasks are run under interventions at every layer, not {interventions[0]}")
    runs: list[Schedule] = [clean(model.layers), *named.values()]
    sublayer_calls.check_schedules(model, runs)
    loaded = _load(tasks, data, limit)
    requests = _wanted(model, loaded, limit)
    order = sorted(range(len(requests)), key=lambda at: sum(map(len, requests[at])))
    batch_tokens = batch_tokens or tokens_of_text(model)
    settings = {
        **model.identity,
        "measurement": "tasks",
        "tasks": ", ".join(tasks),
        "task_data": "" if data is None else printable_name(data),
        "limit": limit or "none",
        "interventions": ", ".join(interventions),
        "corpus_sha256": value_digest(requests),
        "batch_tokens": batch_tokens,
        "sequences": len(requests),
        "lm_eval": _version(),
    }
    found = Metric("loglikelihood", "nat", "log-likelihood of a continuation")
    greedy = Metric("greedy", "1", "whether a continuation is the most likely", count=True)

    def complete(dataset: xr.Dataset, _: Any) -> xr.Dataset:
        scores = dataset.sortby("request")
        answers = [
            dict(
                zip(
                    requests,
                    zip(
                        scores["loglikelihood"].values[at].tolist(),
                        (scores["greedy"].values[at] > 0).tolist(),
                        strict=True,
                    ),
                    strict=True,
                )
            )
            for at in range(len(runs))
        ]
        return _summarise(model, loaded, limit, answers, labels).assign_attrs(dataset.attrs)

    run = resumable.Run(
        blank_dataset(
            {
                "loglikelihood": (found, ("run", "request")),
                "greedy": (greedy, ("run", "request")),
            },
            {"run": np.arange(len(runs)), "request": order},
            file_attributes(settings, command),
            np.float64,
        ),
        path=None if out is None else Path(out),
        fresh=fresh,
        complete=complete,
    )
    longest = _longest(model)
    lengths = [min(longest, sum(map(len, requests[at])) - 1) for at in order]

    def width(rows: slice) -> int:
        return (rows.stop - rows.start) * lengths[rows.stop - 1]

    @cache
    def plan(cap: int) -> Plan:
        return compile_plan(runs, clean(model.layers), cap=cap, room=ROOM)

    def planned(most: int, lower: int | None) -> Plan:
        return plan(min(most, lower or most))

    def stacked(most: int, lower: int | None) -> int:
        return planned(most, lower).widest

    def score(most: int, part: slice, lower: int | None) -> dict[str, NDArray[Any]]:
        batch = [requests[at] for at in order[part]]
        return _score(model, batch, planned(most, lower), matrix, longest)

    with run:
        left = batches(lengths, batch_tokens, run.done, model.bends)
        crossings = [
            remote_traffic.of_plan(
                model,
                plan(cap or state_cap(model, width(rows))),
                width(rows),
                sum(len(requests[at][1]) for at in order[rows]),
                0,
            )
            for rows in (left if model.sandboxed else [])
        ]
        remote_traffic.allow(model, crossings, "a lower --limit, or fewer interventions")
        portions = Portions(run.lost, tell, "--dtype bfloat16, or another --device")
        portions.begin(changes.lowered(run.dataset.attrs))
        matrix = portions.matrix(model.unembedding, run.done) if left else (None, None)
        if progress is not None:
            progress(run.done, len(order))
        for rows in left:
            most = cap or state_cap(model, width(rows))
            parts = portions.each(rows, partial(score, most), width, partial(stacked, most))
            for part, scores in parts:
                run.add(part, scores)
            if progress is not None:
                progress(run.done, len(order))
        return run.finish()


def _score(
    model: Model, batch: Sequence[Request], plan: Plan, matrix: Matrix, longest: int
) -> dict[str, NDArray[Any]]:
    """Score continuations under every schedule of a plan, in one trace."""
    texts = [[*context, *continuation][-(longest + 1) :] for context, continuation in batch]
    width = max(map(len, texts)) - 1
    tokens = torch.zeros(len(batch), width, dtype=torch.long)
    item: list[int] = []
    query: list[int] = []
    targets: list[int] = []
    for at, (ids, (_, continuation)) in enumerate(zip(texts, batch, strict=True)):
        tokens[at, : len(ids) - 1] = torch.tensor(ids[:-1])
        item += [at] * len(continuation)
        query += range(len(ids) - 1 - len(continuation), len(ids) - 1)
        targets += continuation
    device = model.device
    text = {
        "vocabulary": model.vocabulary,
        "targets": torch.tensor(targets, device=device),
        "item": torch.tensor(item, device=device),
        "query": torch.tensor(query, device=device),
    }
    shape = (plan.schedules, len(targets))
    wanted = {name: (shape, answer.FLOATS) for name in ("loss", "hit")}
    found = run_plan(model, tokens.to(device), plan, text, matrix, scoring.score, wanted)
    ends = np.flatnonzero(np.diff(item, prepend=-1))
    return {
        "loglikelihood": -np.add.reduceat(found["loss"].astype(np.float64), ends, axis=1),
        "greedy": np.minimum.reduceat(found["hit"], ends, axis=1).astype(np.int32),
    }


def _longest(model: Model) -> int:
    """Return the most tokens of a context and a continuation, as the harness has it."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(model.config, model.tokenizer))


def _load(
    tasks: Sequence[str], data: str | Path | None, limit: int | None = None
) -> dict[str, Any]:
    """Load tasks, with local data in the place of their own where a directory is given."""
    try:
        from lm_eval.tasks._factory import TaskFactory
    except ImportError as error:
        raise Refusal(
            "tasks come from lm-eval, which is not installed: "
            "pip install 'stages-of-inference[bench]'"
        ) from error
    with _quiet():
        manager = _manager()
        found = {}
        for name in tasks:
            if name not in manager.all_subtasks:
                close = [task for task in manager.all_subtasks if name.lower() in task][:5]
                hint = f"; like it there are: {', '.join(close)}" if close else ""
                raise Refusal(f"lm-eval has no task {name!a}{hint}")
            here = None if data is None else read_items(expanded(data) / f"{name}.jsonl")
            remedy = f"give --task-data with a {name}.jsonl in it" if here is None else FORMS
            with reading(f"the data of {name}", remedy):
                try:
                    found[name] = TaskFactory().build(
                        manager.task_index[name],
                        overrides={} if here is None else _changes(here),
                        registry=manager.task_index,
                    )
                except LOADING_ERRORS as error:
                    raise Refusal(
                        f"the data of {name} cannot be loaded ({first_line(error)}): {remedy}"
                    ) from error
            if found[name].OUTPUT_TYPE not in {"multiple_choice", "loglikelihood"}:
                raise Refusal(
                    f"{name} generates text; only tasks that score continuations are run: "
                    "choose another"
                )
            if here is not None and not here.form:
                with reading(here.name, FORMS):
                    _check_items(found[name], here, limit)
    return found


@cache
def _manager() -> Any:
    """Return lm-eval's index of its tasks, which takes seconds to build."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _changes(items: Items) -> dict[str, Any]:
    """Return what is changed of a task's configuration to score local items."""
    from datasets import Dataset

    changes: dict[str, Any] = {
        # In memory: the library keeps what it reads from a file, and takes its name for a pattern.
        "custom_dataset": lambda **_: {"test": Dataset.from_list(items.rows)},
        "dataset_kwargs": None,
        "training_split": None,
        "validation_split": None,
        "test_split": "test",
        "fewshot_split": None,
    }
    plain = {"process_docs": None, "should_decontaminate": False}
    if items.form == CHOICES:
        changes |= plain | {
            "doc_to_text": "{{query}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "{{gold}}",
        }
    elif items.form == CONTINUATION:
        changes |= plain | {
            "doc_to_text": "{{context}}",
            "doc_to_target": "{{' ' + continuation.lstrip()}}",
        }
    return changes


def _check_items(task: Any, items: Items, limit: int | None) -> None:
    """Check what a task makes of items with the fields of its original."""
    docs = list(islice(task.test_docs(), limit))
    same = len(task.test_docs()) == len(items.rows)
    for at, doc in enumerate(docs):
        where = f"{items.name}, {f'line {items.numbers[at]}' if same else f'item {at + 1}'}"
        try:
            text, target = task.doc_to_text(doc), task.doc_to_target(doc)
            choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else None
        except (*LOADING_ERRORS, RecursionError) as error:
            raise Refusal(
                f"{where}: no prompt can be made of it ({first_line(error)}): {FORMS}"
            ) from error
        gold = text if getattr(task, "multiple_input", 0) else target
        if choices is None:
            if not is_text(text) or not is_text(target):
                raise Refusal(f"{where}: its text or continuation is no text: {FORMS}")
            continue
        for right in gold if isinstance(gold, list) else [gold]:
            index = choices.index(right) if isinstance(right, str) and right in choices else right
            check_choices(choices, int(index) if isinstance(index, bool) else index, where)


def _wanted(model: Model, tasks: Mapping[str, Any], limit: int | None) -> list[Request]:
    """Return every continuation that the harness wants scored, each once."""
    heard: dict[Request, None] = {}

    def hear(requests: Sequence[Request]) -> list[Answer]:
        heard.update(dict.fromkeys(requests))
        return [(0.0, False)] * len(requests)

    names = ", ".join(tasks)
    with reading(f"the items of {names}", "see that each fits its task"):
        try:
            _harness(model, tasks, limit, hear)
        except LOADING_ERRORS as error:
            raise Refusal(
                f"the items of {names} cannot be made into prompts ({first_line(error)}): "
                "see that each fits its task"
            ) from error
    longest = _longest(model)
    for _, continuation in heard:
        if len(continuation) > longest:
            raise Refusal(
                f"a continuation of {len(continuation)} tokens is longer than {model.name} takes"
            )
    return list(heard)


def _harness(
    model: Model,
    tasks: Mapping[str, Any],
    limit: int | None,
    answer: Callable[[Sequence[Request]], list[Answer]],
    bootstrap: int = 0,
) -> dict[str, Any]:
    """Run the harness over a model that answers as it is told; return its results and samples."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.evaluator import evaluate
    from lm_eval.models.utils import has_bos_prefix

    tokenizer = model.tokenizer

    class Answering(TemplateLM):  # type: ignore[misc]
        @property
        def eot_token_id(self) -> int:
            last = tokenizer.eos_token_id
            return int(tokenizer.bos_token_id if last is None else last)

        @property
        def prefix_token_id(self) -> int:
            first = tokenizer.bos_token_id
            return int(tokenizer.eos_token_id if first is None else first)

        def tok_encode(
            self, string: str, add_special_tokens: bool | None = None, **_: Any
        ) -> list[int]:
            options = (
                {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
            )
            if add_special_tokens is None:
                if has_bos_prefix(string, tokenizer.decode(self.prefix_token_id)):
                    options["add_special_tokens"] = False
            ids: list[int] = tokenizer.encode(string, **options)
            return ids

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[Answer]:
            return answer([(tuple(context), tuple(ids)) for _, context, ids in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise Refusal("tasks that score whole texts are not run")

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise Refusal("tasks that generate text are not run")

    with _quiet():
        found: dict[str, Any] = evaluate(
            Answering(),
            {"tasks": dict(tasks), "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=bootstrap,
            log_samples=True,
        )
    return found


def _summarise(
    model: Model,
    tasks: Mapping[str, Any],
    limit: int | None,
    answers: Sequence[Mapping[Request, Answer]],
    labels: Labels,
) -> xr.Dataset:
    """Make the harness's metrics of the answers of every schedule, the clean one first."""
    harness = [
        _harness(model, tasks, limit, partial(_look_up, known), BOOTSTRAP) for known in answers
    ]
    metrics = sorted(
        {
            key.partition(",")[0]
            for name in tasks
            for key in harness[0]["results"][name]
            if key.endswith(",none") and "_stderr" not in key
        }
    )
    shape = (len(harness), len(tasks), len(metrics))
    value, error = np.full(shape, np.nan), np.full(shape, np.nan)
    for at, found in enumerate(harness):
        for row, name in enumerate(tasks):
            for column, metric in enumerate(metrics):
                value[at, row, column] = _number(found["results"][name].get(f"{metric},none"))
                error[at, row, column] = _number(
                    found["results"][name].get(f"{metric}_stderr,none")
                )
    items = [
        (name, sample["doc_id"])
        for name in tasks
        for sample in sorted(harness[0]["samples"][name], key=lambda sample: sample["doc_id"])
    ]
    correct = np.array(
        [
            [
                [_number(sample.get(metric)) if metric in BY_ITEM else np.nan for metric in metrics]
                for name in tasks
                for sample in sorted(found["samples"][name], key=lambda sample: sample["doc_id"])
            ]
            for found in harness
        ]
    ).transpose(0, 2, 1)
    dims = ("task", "metric")

    def described(name: str) -> dict[str, str]:
        return {"units": "1", "long_name": name}

    metric_text = "metric as lm-eval defines it"
    return xr.Dataset(
        {
            "value": ((*labels.dims, *dims), labels.spread(value[1:]), described(metric_text)),
            "standard_error": (
                (*labels.dims, *dims),
                labels.spread(error[1:]),
                described("standard error of value, as lm-eval gives it"),
            ),
            "clean_value": (dims, value[0], described(f"{metric_text}, clean model")),
            "clean_standard_error": (dims, error[0], described("standard error of clean_value")),
            "correct": (
                (*labels.dims, "metric", "item"),
                labels.spread(correct[1:]),
                described("whether an item is answered right"),
            ),
            "clean_correct": (
                ("metric", "item"),
                correct[0],
                described("whether an item is answered right, clean model"),
            ),
        },
        coords={
            **labels.coords,
            "task": list(tasks),
            "metric": metrics,
            "item": np.arange(len(items)),
            "item_task": ("item", [name for name, _ in items]),
            "item_index": ("item", [index for _, index in items]),
        },
    ).transpose("task", "metric", *labels.dims, "item")


def _look_up(known: Mapping[Request, Answer], requests: Sequence[Request]) -> list[Answer]:
    return [known[request] for request in requests]


def _number(value: Any) -> float:
    return float(value) if isinstance(value, (int, float, np.number)) else float("nan")


def _version() -> str:
    from importlib.metadata import version

    return version("lm-eval")


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep the harness's notes and bars from the terminal, and its processes to this one."""
    before, alone = logging.root.manager.disable, os.environ.get("DISABLE_MULTIPROC")
    logging.disable(logging.WARNING)
    os.environ["DISABLE_MULTIPROC"] = "1"
    try:
        with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
            yield
    finally:
        logging.disable(before)
        if alone is None:
            del os.environ["DISABLE_MULTIPROC"]
