"""Items that cannot be right or wrong are refused with their line; others are read as they are."""

import json
import os
import sys
from pathlib import Path

import pytest
from families import tiny

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.tasks import TaskSettings, evaluate_tasks, harness
from robustness.tasks.answering import wanted_requests
from robustness.tasks.harness import load_tasks

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"clean_only": True, "layers": (1,)}, "`clean_only` goes without"),
        ({"schedules": ("0-1",), "interventions": ("drop",)}, "cannot be run together"),
        ({"tasks": ("piqa", "piqa")}, "task 'piqa' was asked for twice"),
        ({"limit": 0}, "`limit` must be 1 or more"),
    ],
)
def test_settings_that_exclude_each_other_are_refused(settings, message):
    with pytest.raises(Refusal, match=message):
        TaskSettings(**settings)


def test_without_the_harness_it_says_what_to_install(model, monkeypatch):
    for name in [name for name in sys.modules if name.partition(".")[0] == "lm_eval"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(Refusal, match=r'pip install -e "\.\[bench\]"'):
        evaluate_tasks(model, TaskSettings(("arc_easy",)))


REFUSED = {
    "unknown task": (("arc_eazy",), None, "lm-eval has no task 'arc_eazy'$"),
    "half a name": (("arc_eas",), None, "no task 'arc_eas'; like it there are: arc_easy"),
    "no data": (("winogrande",), "DATA", r"there is no winogrande\.jsonl in .*arc_easy\.jsonl"),
    "no network": (("winogrande",), None, "the data of winogrande cannot be loaded .*`data`"),
    "no text": (("piqa",), "DATA", "the data of piqa cannot be loaded"),
    "bad item": (("copa",), "DATA", r"copa\.jsonl, line 2: choices is a list of 0"),
    "too few": (("gsm8k",), "DATA", "has 1 item.*, and gsm8k shows 5 others .*: write 6 or more"),
}


@pytest.fixture
def few_tasks(monkeypatch):
    """The tasks of one folder of lm-eval for all of them, whose index takes seconds."""
    from lm_eval import tasks

    arc = Path(tasks.__file__).with_name("arc")
    manager = tasks.TaskManager(include_path=arc, include_defaults=False)
    monkeypatch.setattr(harness, "_manager", lambda: manager)


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_be_run_is_refused(model, data, few_tasks, case):
    names, where, message = REFUSED[case]
    (data / "piqa.jsonl").write_text('{"foo": 1}\n')
    items = [
        {"query": "a", "choices": ["b", "c"], "gold": 0},
        {"query": "a", "choices": [], "gold": 1},
    ]
    (data / "copa.jsonl").write_text("\n".join(map(json.dumps, items)))
    (data / "gsm8k.jsonl").write_text('{"question": "1+1?", "answer": "#### 2"}\n')
    with pytest.raises(Refusal, match=message):
        evaluate_tasks(model, TaskSettings(names, data=data if where else None))


ITEM = {"query": "a", "choices": ["b", "c"], "gold": 0}


BAD_ITEMS = {
    "gold null": ("hellaswag", ITEM | {"gold": None}, "line 2: gold is None: .* 0 to 1"),
    "gold a text": ("hellaswag", ITEM | {"gold": "x"}, "line 2: gold is 'x': "),
    "gold the text of a number": ("hellaswag", ITEM | {"gold": "1"}, "line 2: gold is '1': "),
    "gold below": ("hellaswag", ITEM | {"gold": -1}, "line 2: gold is -1: "),
    "gold above": ("hellaswag", ITEM | {"gold": 2}, "line 2: gold is 2: "),
    "gold true": ("hellaswag", ITEM | {"gold": True}, "line 2: gold is True: "),
    "gold a fraction": ("hellaswag", ITEM | {"gold": 1.0}, "line 2: gold is 1.0: "),
    "gold a list": ("hellaswag", ITEM | {"gold": [0]}, "line 2: gold is a list: "),
    "no gold": ("hellaswag", {"query": "a", "choices": ["b", "c"]}, "line 2: there is no gold"),
    "query null": ("hellaswag", ITEM | {"query": None}, "line 2: query is None: write a text"),
    "choices a text": ("hellaswag", ITEM | {"choices": "bc"}, "line 2: choices is 'bc': "),
    "choices an object": ("hellaswag", ITEM | {"choices": {"a": "b"}}, "choices is an object: "),
    "one choice": ("hellaswag", ITEM | {"choices": ["b"]}, "line 2: choices is a list of 1: "),
    "a choice a number": ("hellaswag", ITEM | {"choices": ["b", 3]}, "line 2: a choice is 3: "),
    "a blank choice": ("hellaswag", ITEM | {"choices": ["b", " "]}, "line 2: a choice is ' ': "),
    "a list": ("hellaswag", [ITEM], "line 2, is a list: write an object"),
    "blank continuation": (
        "lambada_openai",
        {"context": "a", "continuation": " "},
        "line 2: the continuation is blank",
    ),
    "continuation a number": (
        "lambada_openai",
        {"context": "a", "continuation": 3},
        "line 2: continuation is 3: write a text",
    ),
}


@pytest.mark.parametrize("case", BAD_ITEMS)
def test_an_item_that_cannot_be_right_or_wrong_is_refused_with_its_line(model, tmp_path, case):
    name, item, message = BAD_ITEMS[case]
    first = ITEM if name == "hellaswag" else {"context": "a", "continuation": "b"}
    (tmp_path / f"{name}.jsonl").write_text(f"{json.dumps(first)}\n{json.dumps(item)}\n")
    with pytest.raises(Refusal, match=rf"^{name}\.jsonl, .*{message}"):
        evaluate_tasks(model, TaskSettings((name,), ("drop",), data=tmp_path))


ORIGINAL = {"question": "a", "choices": {"text": ["b", "c"], "label": ["A", "B"]}, "answerKey": "A"}


BAD_ORIGINALS = {
    "an answer that is none of them": (ORIGINAL | {"answerKey": "E"}, "line 2: no prompt"),
    "no answer": (ORIGINAL | {"answerKey": None}, "line 2: no prompt"),
    "fewer texts than labels": (
        ORIGINAL | {"choices": {"text": ["b"], "label": ["A", "B"]}},
        "line 2: choices is a list of 1",
    ),
    "choices of another kind": (ORIGINAL | {"choices": 3}, "the data of arc_easy cannot be loaded"),
    "half of a surrogate pair": (ORIGINAL | {"question": "\ud800"}, "line 2: half of a surrogate"),
    "nested deeply": (ORIGINAL | {"more": [[[[[[[[[[1]]]]]]]]]]}, "line 2: .* nested"),
}


@pytest.mark.parametrize("case", BAD_ORIGINALS)
def test_an_item_with_the_originals_fields_is_checked_as_the_task_reads_it(model, tmp_path, case):
    item, message = BAD_ORIGINALS[case]
    lines = [json.dumps(each) + "\n" for each in (ORIGINAL, item)]
    (tmp_path / "arc_easy.jsonl").write_text("".join(lines))
    with pytest.raises(Refusal, match=message):
        evaluate_tasks(model, TaskSettings(("arc_easy",), ("drop",), data=tmp_path))


def heard_of(model, data):
    return wanted_requests(model, load_tasks(TaskSettings(("hellaswag",), data=data)), None)[0]


@pytest.mark.slow
def test_other_items_under_the_same_name_and_time_are_read(model, tmp_path):
    path, found = tmp_path / "hellaswag.jsonl", []
    for query in ("one", "two"):
        path.write_text(json.dumps(ITEM | {"query": query}) + "\n")
        os.utime(path, ns=(10**18, 10**18))
        heard = heard_of(model, tmp_path)
        found.append(model.tokenizer.decode(heard[0][0]))
    assert found == ["one", "two"]


def test_the_directory_of_items_is_no_pattern_and_no_cache_is_kept(model, tmp_path, monkeypatch):
    import datasets

    monkeypatch.setattr(datasets, "load_dataset", None)
    for name, query in (("x?", "right"), ("xy", "wrong")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "hellaswag.jsonl").write_text(json.dumps(ITEM | {"query": query}))
    heard = heard_of(model, tmp_path / "x?")
    assert {model.tokenizer.decode(context) for context, _ in heard} == {"right"}


def test_a_query_that_looks_like_a_date_is_a_text(model, tmp_path):
    (tmp_path / "hellaswag.jsonl").write_text(json.dumps(ITEM | {"query": "2020-01-01"}))
    heard = heard_of(model, tmp_path)
    assert {model.tokenizer.decode(context) for context, _ in heard} == {"2020-01-01"}


def test_a_model_without_a_tokenizer_is_refused():
    with pytest.raises(Refusal, match="has no tokenizer"):
        evaluate_tasks(open_model(tiny("gpt2")))
