"""Tasks of lm-eval, loaded with their own items or with those of local files."""

import io
import logging
import os
import re
from collections.abc import Iterator
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

GENERATES = "generate_until"
"""What lm-eval calls a task whose answers are texts that the model writes."""

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
    # Before it is loaded, since metrics that run code are themselves fetched and run.
    _check_code(name, (entry.cfg or {}).get("unsafe_code"))
    remedy = f"give `data` with a {name}.jsonl in it" if items is None else FIELDS
    changes: dict[str, Any] = {} if items is None else _changes(items)
    with reading(f"the data of {name}", remedy):
        try:
            task = TaskFactory().build(entry, overrides=changes, registry={name: entry})
            if task.OUTPUT_TYPE == GENERATES and items and items.form == CONTINUATION:
                # What is asked of a text that is written is compared with it as it stands.
                changes |= {"doc_to_target": "{{continuation}}"}
                task = TaskFactory().build(entry, overrides=changes, registry={name: entry})
        except LOADING_ERRORS as error:
            raise Refusal(
                f"the data of {name} cannot be loaded ({first_line(error)}): {remedy}"
            ) from error
    _check_kind(name, task, items)
    return task


def _check_code(name: str, runs_code: Any) -> None:
    if runs_code:
        raise Refusal(f"{name} runs the code that a model writes: choose another task")


def _check_kind(name: str, task: Any, items: Items | None) -> None:
    """Refuse a task that asks a model for something else than is computed here."""
    if task.OUTPUT_TYPE not in {"multiple_choice", "loglikelihood", GENERATES}:
        raise Refusal(
            f"{name} scores whole texts, not answers to them: choose another task, or sweep for "
            "the loss of a text"
        )
    _check_code(name, getattr(task, "UNSAFE_CODE", False))
    if getattr(task, "MULTIMODAL", False):
        raise Refusal(f"{name} shows pictures or sounds to a model: choose a task of text")
    shown = task.config.num_fewshot or 0
    if items is not None and 0 < len(items.rows) <= shown:
        raise Refusal(
            f"{items.name} has {len(items.rows)} item(s), and {name} shows {shown} others before "
            f"each: write {shown + 1} or more"
        )
    if task.OUTPUT_TYPE == GENERATES and items is not None and items.form == CHOICES:
        raise Refusal(
            f"{items.name}: {name} generates text and has no choices: write the fields "
            f"{', '.join(CONTINUATION)}"
        )


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
