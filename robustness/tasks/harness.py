"""Adapter to lm-eval: its tasks, the continuations that it asks for, and its metrics.

The harness runs once to collect the continuations that it asks for, and once for each schedule to
compute metrics of the answers. Its cache is not used, so that answers of two schedules cannot mix.
"""

import io
import logging
import os
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from functools import cache
from importlib.metadata import version
from itertools import islice
from pathlib import Path
from typing import Any

from datasets.exceptions import DatasetsError
from jinja2 import TemplateError

from robustness.errors import Refusal, first_line, reading
from robustness.models import checkpoint
from robustness.models.model import Model
from robustness.tasks.items import CHOICES, CONTINUATION, Items, check_choices, read_items
from robustness.tasks.settings import TaskSettings
from robustness.text.json_values import is_text
from robustness.text.local_file import expanded

LOADING_ERRORS = (
    *checkpoint.LOADING_ERRORS,
    AssertionError,
    ImportError,
    DatasetsError,
    TemplateError,
)
"""Errors that the harness, the hub's client and prompts raise for data that does not fit."""

FIELDS = "write the fields query, choices and gold, or context and continuation"
"""Advice for items with the fields of an original that do not fit their task."""

Request = tuple[tuple[int, ...], tuple[int, ...]]
"""Token ids of a context and of the continuation that is scored."""

Answer = tuple[float, bool]
"""Log-likelihood of a continuation in nats, and whether each of its tokens is the most likely."""

Respond = Callable[[Sequence[Request]], list[Answer]]
"""Function that returns the answers to continuations."""

Tasks = dict[str, Any]
"""Tasks of lm-eval by their names."""


def load_tasks(settings: TaskSettings) -> Tasks:
    """Load tasks; local items take the place of their own if the settings name a directory.

    Raises
    ------
    Refusal
        If lm-eval is not installed, there is no such task, or an item cannot be used.
    """
    _check_installed()
    # All local items are read before anything is loaded, which takes seconds.
    items: dict[str, Items] = {}
    if settings.data is not None:
        for name in settings.tasks:
            items[name] = read_items(expanded(settings.data) / f"{name}.jsonl")
    with quiet():
        tasks = {}
        for name in settings.tasks:
            tasks[name] = _load_task(name, items.get(name))
        for name, local in items.items():
            if not local.form:
                with reading(local.name, FIELDS):
                    _check_items(tasks[name], local, settings.limit)
    return tasks


def _check_installed() -> None:
    try:
        import lm_eval.tasks  # noqa: F401
    except ImportError as error:
        raise Refusal(
            'tasks come from lm-eval, which is not installed: pip install -e ".[bench]"'
        ) from error


def _load_task(name: str, items: Items | None) -> Any:
    """Load a task, with local items if there are any."""
    from lm_eval.tasks._factory import TaskFactory

    entry = _entry(name)
    remedy = f"give `data` with a {name}.jsonl in it" if items is None else FIELDS
    with reading(f"the data of {name}", remedy):
        try:
            task = TaskFactory().build(
                entry, overrides={} if items is None else _changes(items), registry={name: entry}
            )
        except LOADING_ERRORS as error:
            raise Refusal(
                f"the data of {name} cannot be loaded ({first_line(error)}): {remedy}"
            ) from error
    if task.OUTPUT_TYPE not in {"multiple_choice", "loglikelihood"}:
        raise Refusal(
            f"{name} generates text; only tasks that score continuations are run: choose another"
        )
    return task


@cache
def _entry(name: str) -> Any:
    """Return the entry of a task in lm-eval's index, and refuse a name that no task has."""
    from lm_eval import tasks
    from lm_eval.tasks._index import Entry, Kind, TaskIndex
    from lm_eval.tasks._yaml_loader import load_yaml

    # The whole index takes seconds to build: first, only files with the name are read for it.
    found: dict[str, Entry] = {}
    line = re.compile(rb"^.?task.?\s*:.*" + re.escape(name.encode()), re.MULTILINE)
    for path in TaskIndex._iter_yaml_files(Path(tasks.__file__).parent):
        if line.search(path.read_bytes()):
            # As in lm-eval, where files that are no tasks are passed over.
            with suppress(Exception):
                TaskIndex.process_cfg(load_yaml(path, resolve_func=False), path, found)
    if name in found and found[name].kind in {Kind.TASK, Kind.PY_TASK}:
        return found[name]
    manager = _manager()
    if name not in manager.all_subtasks:
        close = [task for task in manager.all_subtasks if name.lower() in task][:5]
        hint = f"; like it there are: {', '.join(close)}" if close else ""
        raise Refusal(f"lm-eval has no task {name!a}{hint}")
    return manager.task_index[name]


@cache
def _manager() -> Any:
    """Return lm-eval's index of all its tasks, built once: it takes seconds."""
    from lm_eval.tasks import TaskManager

    return TaskManager()


def _changes(items: Items) -> dict[str, Any]:
    """Return the changes to a task's configuration that make it score local items."""
    from datasets import Dataset

    changes: dict[str, Any] = {
        # From memory: datasets caches the files that it reads, and takes their names for patterns.
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
    """Check the prompts that a task makes of items with the fields of its original."""
    docs = list(islice(task.test_docs(), limit))
    # A task may leave out items; the lines of the others are then unknown.
    same = len(task.test_docs()) == len(items.rows)
    for at, doc in enumerate(docs):
        place = f"line {items.numbers[at]}" if same else f"item {at + 1}"
        _check_item(task, doc, f"{items.name}, {place}")


def _check_item(task: Any, doc: Any, where: str) -> None:
    """Check the prompt that a task makes of an item."""
    try:
        text, target = task.doc_to_text(doc), task.doc_to_target(doc)
        choices = task.doc_to_choice(doc) if task.OUTPUT_TYPE == "multiple_choice" else None
    except (*LOADING_ERRORS, RecursionError) as error:
        raise Refusal(
            f"{where}: no prompt can be made of it ({first_line(error)}): {FIELDS}"
        ) from error
    if choices is None:
        if not is_text(text) or not is_text(target):
            raise Refusal(f"{where}: its text or continuation is no text: {FIELDS}")
        return
    # In tasks with several contexts, such as winogrande, these are the choices, and the text is
    # the number of the right one.
    gold = text if getattr(task, "multiple_input", 0) else target
    for right in gold if isinstance(gold, list) else [gold]:
        index = choices.index(right) if isinstance(right, str) and right in choices else right
        check_choices(choices, int(index) if isinstance(index, bool) else index, where)


def wanted_requests(model: Model, tasks: Tasks, limit: int | None) -> list[Request]:
    """Return every continuation that the harness asks for, each once.

    Raises
    ------
    Refusal
        If no prompts can be made of the items, or a continuation is too long for the model.
    """
    # A dictionary keeps the order in which requests are added, which a set does not.
    wanted: dict[Request, None] = {}

    def collect(requests: Sequence[Request]) -> list[Answer]:
        wanted.update(dict.fromkeys(requests))
        return [(0.0, False)] * len(requests)

    what, remedy = f"the items of {', '.join(tasks)}", "see that each fits its task"
    with reading(what, remedy):
        try:
            run_harness(model, tasks, limit, collect)
        except LOADING_ERRORS as error:
            raise Refusal(
                f"{what} cannot be made into prompts ({first_line(error)}): {remedy}"
            ) from error
    longest = longest_text(model)
    for _, continuation in wanted:
        if len(continuation) > longest:
            raise Refusal(
                f"a continuation of {len(continuation)} tokens is longer than {model.name} takes"
            )
    return list(wanted)


def longest_text(model: Model) -> int:
    """Return lm-eval's maximum number of tokens of a context and a continuation."""
    from lm_eval.models.utils import resolve_max_length

    return int(resolve_max_length(model.config, model.tokenizer))


def run_harness(
    model: Model, tasks: Tasks, limit: int | None, respond: Respond, bootstrap: int = 0
) -> dict[str, Any]:
    """Run the harness on a model that answers with a given function.

    Parameters
    ----------
    model : Model
        The model, whose tokenizer is used.
    tasks : dict
        Result of `load_tasks`.
    limit : int, optional
        Maximum number of items of each task.
    respond : callable
        Function that returns the answers.
    bootstrap : int
        Number of samples for the errors of metrics that are no means.

    Returns
    -------
    dict
        `results` and `samples` by task, among others.
    """
    from lm_eval.evaluator import evaluate

    with quiet():
        evaluated: dict[str, Any] = evaluate(
            _answering_model(model.tokenizer, respond),
            {"tasks": dict(tasks), "groups": {}, "group_map": {}},
            limit=limit,
            bootstrap_iters=bootstrap,
            log_samples=True,
        )
    return evaluated


def _answering_model(tokenizer: Any, respond: Respond) -> Any:
    """Return a model for lm-eval that tokenizes as its own do, and answers with a function."""
    from lm_eval.api.model import TemplateLM
    from lm_eval.models.utils import has_bos_prefix

    # Made in a function, since lm-eval may not be installed and takes seconds to import.
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
            # Prompts that begin with BOS do not get another one.
            special = add_special_tokens
            if special is None and has_bos_prefix(string, tokenizer.decode(self.prefix_token_id)):
                special = False
            chosen = {} if special is None else {"add_special_tokens": special}
            ids: list[int] = tokenizer.encode(string, **chosen)
            return ids

        def _loglikelihood_tokens(self, requests: Any, **_: Any) -> list[Answer]:
            return respond([(tuple(context), tuple(ids)) for _, context, ids in requests])

        def loglikelihood_rolling(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise Refusal("tasks that score whole texts are not run")

        def generate_until(self, requests: Any, disable_tqdm: bool = False) -> Any:
            raise Refusal("tasks that generate text are not run")

    return Answering()


def harness_version() -> str:
    """Return the version of lm-eval."""
    return version("lm-eval")


@contextmanager
def quiet() -> Iterator[None]:
    """Suppress the harness's messages and progress bars, and its worker processes."""
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
