"""Tasks that generate text have lm-eval's own answers, under every schedule."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from tokenizers_for_tests import byte_tokenizer

from recipes.views import as_text, draw, table
from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.reordered import many
from robustness.runs.portions import Piece
from robustness.runs.settings import RunOptions
from robustness.schedules import clean
from robustness.tasks import TaskSettings, evaluate_tasks
from robustness.tasks.answering import EXAMPLES, wanted_requests
from robustness.tasks.comparison import compare
from robustness.tasks.harness import load_tasks, quiet
from robustness.tasks.preparation import prepare_tasks
from robustness.tasks.prompts import as_answer, as_prompt
from robustness.tasks.writing import writing

NAMES = ("gsm8k", "triviaqa")

pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def written_data(tmp_path_factory):
    """Questions of several lengths, of a task with examples in its prompts and of one without."""
    path = tmp_path_factory.mktemp("generative")
    sums = [{"question": f"{i}+{i}?", "answer": f"#### {2 * i}"} for i in range(6)]
    texts = ["rain", "sun and sea", "a hill", "the cat on the hill", "dog"]
    questions = [{"context": text, "continuation": "sea"} for text in texts]
    for name, rows in zip(NAMES, (sums, questions), strict=True):
        (path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def texts_of(prepared, first=0):
    """What each prompt is answered under each schedule from the first on."""
    whole = slice(0, len(prepared.prompts)), slice(first, len(prepared.schedules))
    tokens = writing(prepared, 0).measure(Piece(*whole, None))["written"]
    found = []
    for of_schedule in tokens:
        answers = {}
        for column, prompt in enumerate(prepared.prompts[whole[0]]):
            ids = of_schedule[:, column]
            answers[prompt] = as_answer(prepared.model.tokenizer, prompt, ids[ids >= 0].tolist())
        found.append([answers[prompt] for prompt in prepared.prompts.asked])
    return found


def without(plain, block):
    """A copy of a plain GPT-2 whose cache fits the blocks that are left."""
    net = copy.deepcopy(plain)
    del net.transformer.h[block]
    net.config.n_layer = len(net.transformer.h)
    for place, each in enumerate(net.transformer.h):
        each.attn.layer_idx = place
    return net


def texts_of_harness(net, data):
    """What lm-eval itself makes a plain model write."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    loaded = load_tasks(TaskSettings(NAMES, data=data))
    texts = []
    for name, task in loaded.items():
        task.set_fewshot_seed(seed=EXAMPLES)
        settings = task.config.generation_kwargs
        # Its default is more than this model takes; here half of that is written.
        task.set_config("generation_kwargs", {**settings, "max_gen_toks": 48})
        with quiet():
            run = evaluate(
                HFLM(pretrained=net, tokenizer=byte_tokenizer(), batch_size=2),
                {"tasks": {name: task}, "groups": {}, "group_map": {}},
                log_samples=True,
            )
        samples = {sample["doc_id"]: sample["resps"][0][0] for sample in run["samples"][name]}
        texts += [samples[at] for at in sorted(samples)]
    return texts


@pytest.fixture(scope="module")
def prepared(model, written_data):
    settings = TaskSettings(NAMES, schedules=("0-2",), data=written_data)
    return prepare_tasks(model, settings, RunOptions())


@pytest.fixture(scope="module")
def texts(prepared):
    return texts_of(prepared)


@pytest.mark.slow
def test_texts_are_the_harnesss_own_on_a_rebuilt_model(texts, plain, written_data):
    for number, net in enumerate((copy.deepcopy(plain), without(plain, 1))):
        assert texts[number] == texts_of_harness(net, written_data)
    assert texts[0] != texts[1] and len(set(texts[0])) > 3


@pytest.mark.slow
def test_a_rewired_model_and_single_prompts_write_the_same(prepared, texts, monkeypatch):
    monkeypatch.setattr(many.Writer, "_padded", lambda *_: False)
    assert texts_of(prepared, 1) == texts[1:]

    def refuse(*_):
        raise Refusal("no checkpoint")

    monkeypatch.setattr(many, "rebuild", refuse)
    assert texts_of(prepared, 1) == texts[1:]


def test_a_model_that_padding_changes_is_given_single_prompts(model, monkeypatch):
    writer = many.Writer(model, clean(3))
    prompts = [(5, 6, 7), (8, 9)]
    assert writer._padded(prompts)
    other = many.Writer(model, clean(3))
    first, seen = other._first_logits, []
    monkeypatch.setattr(other, "_first_logits", lambda ids, mask: first(ids, mask * 0 + 1))
    write = other._write
    monkeypatch.setattr(other, "_write", lambda ids, *rest: seen.append(ids) or write(ids, *rest))
    other.write(prompts, [2, 2], lambda *_: False)
    assert seen == [[prompt] for prompt in prompts]


def test_each_prompt_has_its_own_end(model):
    writer = many.Writer(model, clean(3))
    prompts = [(5, 6, 7), (8, 9), (4,)]
    alone = [writer.write([prompt], [9], lambda *_: False)[0] for prompt in prompts]
    found = writer.write(prompts, [9, 4, 9], lambda row, new: row == 2 and len(new) == 2)
    assert found == [alone[0], alone[1][:4], alone[2][:2]]


@pytest.mark.slow
def test_items_that_both_models_answer_are_told_apart(model, texts, written_data, tmp_path):
    # The answers of the clean model to the first two questions, and of the other to the last.
    clean_texts, other = texts[0][6:], texts[1][6:]
    rows = [json.loads(line) for line in (written_data / "triviaqa.jsonl").open()]
    for at, answer in ((0, clean_texts[0]), (1, clean_texts[1]), (4, other[4])):
        rows[at]["continuation"] = answer
    assert clean_texts[4] != other[4] and all(row["continuation"].strip() for row in rows)
    (tmp_path / "triviaqa.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "lambada_openai.jsonl").write_text('{"context": "a", "continuation": "b"}')
    settings = TaskSettings(("lambada_openai", "triviaqa"), data=tmp_path)
    options = RunOptions(out=tmp_path / "tasks-schedules.nc", batch_tokens=200)
    found = compare(model, ["0-2"], settings, options).squeeze()
    one = found.sel(task="triviaqa", metric="exact_match,remove_whitespace")
    lost = int(other[0] != clean_texts[0]) + int(other[1] != clean_texts[1])
    assert (int(one["items"]), int(one.lost), int(one.gained)) == (5, lost, 1) and lost
    assert float(one.difference) == pytest.approx((1 - lost) / 5)
    assert float(one.low) < float(one.difference) < float(one.high)
    assert int(found.sel(task="lambada_openai", metric="acc")["items"]) == 1
    dataset = netcdf.load(options.out)
    assert "minus clean, same 5 items" in as_text(table(dataset))
    assert len(draw(dataset).axes) == 2
    again = evaluate_tasks(model, replace(settings, schedules=("0-2",)), options)
    xr.testing.assert_equal(again, dataset)


@pytest.mark.slow
def test_a_run_goes_on_between_prompts(model, data, written_data, tmp_path):
    for path in (data / "lambada_openai.jsonl", written_data / "triviaqa.jsonl"):
        (tmp_path / path.name).write_text(path.read_text())
    settings = TaskSettings(("lambada_openai", "triviaqa"), schedules=("0-2",), data=tmp_path)
    options = RunOptions(out=tmp_path / "tasks.nc", batch_tokens=150)
    whole = evaluate_tasks(model, settings, replace(options, out=None))

    def stop(done, _total):
        if done > 13:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(model, settings, replace(options, progress=stop))
    partial = netcdf.load(tmp_path / "tasks.partial.nc")
    assert 13 < partial.sequences_done < 17 and (partial.written >= 0).any()
    seen = []
    found = evaluate_tasks(
        model, settings, replace(options, progress=lambda done, _: seen.append(done))
    )
    assert seen[0] == partial.sequences_done < seen[1]
    for name in ("clean_correct", "correct", "value"):
        np.testing.assert_array_equal(found[name], whole[name])
    assert sorted(path.name for path in tmp_path.glob("*.nc")) == ["tasks.nc"]


@pytest.mark.slow
def test_texts_are_the_same_where_memory_runs_out(model, written_data, monkeypatch):
    settings = TaskSettings(("triviaqa",), schedules=("0-2",), data=written_data)
    whole = evaluate_tasks(model, settings)
    write, told = many.Writer._write, []

    def failing(writer, prompts, *rest):
        if len(prompts) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return write(writer, prompts, *rest)

    monkeypatch.setattr(many.Writer, "_write", failing)
    found = evaluate_tasks(model, settings, RunOptions(tell=told.append))
    np.testing.assert_array_equal(found.correct, whole.correct)
    assert told == ["out of memory: from here on 2 sequence(s) at once"]
    assert found.attrs["out_of_memory"].startswith("from sequence 0 on 2 sequence(s)")


@pytest.mark.slow
def test_examples_in_prompts_are_drawn_anew_for_each_run(model, written_data):
    tasks = load_tasks(TaskSettings(("gsm8k",), data=written_data))
    first, second = (wanted_requests(model, tasks, None)[1] for _ in range(2))
    assert first == second and len(first) == 6


REFUSED = {
    "choices": ("triviaqa", {"query": "a", "choices": ["b", "c"], "gold": 0}, "has no choices"),
    "whole texts": ("wikitext", {"page": "a"}, "wikitext scores whole texts"),
    "code": ("humaneval", {"prompt": "a", "test": "b", "entry_point": "c"}, "runs the code"),
}


@pytest.mark.slow
@pytest.mark.parametrize("case", REFUSED)
def test_what_is_not_computed_is_refused(tmp_path, case):
    name, row, message = REFUSED[case]
    (tmp_path / f"{name}.jsonl").write_text(json.dumps(row))
    with pytest.raises(Refusal, match=message):
        load_tasks(TaskSettings((name,), data=tmp_path))


def test_settings_that_are_not_the_most_likely_token_are_refused():
    prompt = as_prompt(range(40), {"until": ["\n"], "do_sample": False}, "<end>", 32, "one")
    assert prompt.tokens == 16 and prompt.context == tuple(range(24, 40))
    assert prompt.stops == ("\n", "<end>")
    short = as_prompt(range(4), {"max_gen_toks": 8, "temperature": 0, "top_p": 1}, "", 32, "one")
    assert short.context == tuple(range(4)) and short.tokens == 8
    for settings in ({"do_sample": True}, {"temperature": 0.7}, {"num_beams": 4}):
        with pytest.raises(Refusal, match=r"one generates with .* choose another task"):
            as_prompt(range(4), settings, "<end>", 32, "one")


def test_on_a_server_nothing_is_generated(model, written_data):
    remote = replace(model, request={"backend": None})
    with pytest.raises(Refusal, match="generate text run on this machine"):
        prepare_tasks(remote, TaskSettings(("triviaqa",), data=written_data), RunOptions())
