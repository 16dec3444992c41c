"""What is measured on tasks is what lm-eval itself makes of a rebuilt model."""

import json
from dataclasses import replace
from itertools import product

import numpy as np
import pytest
import torch
import xarray as xr
from families import rebuilt
from strict import StrictBackend
from tokenizers_for_tests import byte_tokenizer

from recipes.views import as_text, draw, table
from robustness.errors import Refusal, TooLarge
from robustness.files import netcdf
from robustness.runs.settings import RunOptions
from robustness.schedules import clean, drop, repeat, swap
from robustness.schedules.interventions import schedules
from robustness.tasks import TaskSettings, evaluate_tasks, evaluation, preparation, summary
from robustness.tasks.answering import run_harness
from robustness.tasks.harness import load_tasks, quiet
from robustness.trace import block_calls

NAMES = ("arc_easy", "hellaswag", "lambada_openai")


pytestmark = pytest.mark.filterwarnings("ignore")


@pytest.fixture(scope="module")
def found(model, data):
    settings = TaskSettings(NAMES, ("drop", "swap", "repeat-2"), data=data)
    return evaluate_tasks(model, settings, RunOptions(batch_tokens=900))


def by_harness(net, data, drawn=0):
    """What lm-eval itself makes of a plain model on the same items."""
    from lm_eval.evaluator import evaluate
    from lm_eval.models.huggingface import HFLM

    loaded = load_tasks(TaskSettings(NAMES, data=data))
    net.config.use_cache = False  # a cache is indexed by block, and wrong for one that is moved
    with quiet():
        return evaluate(
            HFLM(pretrained=net, tokenizer=byte_tokenizer(), batch_size=4),
            {"tasks": loaded, "groups": {}, "group_map": {}},
            bootstrap_iters=drawn,
            log_samples=True,
        )


def likelihoods(run):
    return {
        (name, sample["doc_id"], at): response[0][0]
        for name in NAMES
        for sample in run["samples"][name]
        for at, response in enumerate(sample["resps"])
    }


class Seen(Exception):
    """Raised where nothing more is wanted of a run."""


def ours(model, data, chosen):
    """Every log-likelihood under each of some schedules, through the harness's own samples."""
    kept = {}
    names = ("drop", "swap", "repeat-2")
    places = [clean(model.layers), *schedules(names, model.layers).values()]

    def spy(model, loaded, limit, answers, labels):
        for schedule in chosen:
            respond = summary._look_up(answers[places.index(schedule)])
            kept[schedule] = likelihoods(run_harness(model, loaded, limit, respond))
        raise Seen

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(preparation, "summarise", spy)
        settings = TaskSettings(NAMES, names, data=data)
        with pytest.raises(Seen):
            evaluate_tasks(model, settings, RunOptions(batch_tokens=700))
    return kept


SCHEDULES = {
    "clean": clean(3),
    "drop": drop(clean(3), 1),
    "swap": swap(clean(3), 0),
    "repeat": repeat(clean(3), 1, 2),
}


@pytest.fixture(scope="module")
def scored(model, data):
    return ours(model, data, [*SCHEDULES.values()])


@pytest.mark.slow
@pytest.mark.parametrize("name", SCHEDULES)
def test_log_likelihoods_are_the_harnesss_own_on_a_rebuilt_model(scored, plain, data, name):
    expected = likelihoods(by_harness(rebuilt(plain, SCHEDULES[name]), data))
    found = scored[SCHEDULES[name]]
    assert found.keys() == expected.keys() and len(found) == 12 * (3 + 4 + 1)
    for key, value in expected.items():
        assert found[key] == pytest.approx(value, abs=1e-4), key


@pytest.mark.slow
def test_metrics_and_errors_are_the_harnesss(found, plain, data):
    for schedule, chosen in (
        (clean(3), {"value": found.clean_value, "error": found.clean_standard_error}),
        (
            drop(clean(3), 2),
            {
                "value": found.value.sel(intervention="drop", layer=2),
                "error": found.standard_error.sel(intervention="drop", layer=2),
            },
        ),
    ):
        theirs = by_harness(rebuilt(plain, schedule), data, drawn=100)["results"]
        for task, metric in (
            ("arc_easy", "acc"),
            ("arc_easy", "acc_norm"),
            ("hellaswag", "acc_norm"),
            ("lambada_openai", "acc"),
            ("lambada_openai", "perplexity"),
        ):
            here = {"task": task, "metric": metric}
            expected = theirs[task][f"{metric},none"]
            assert float(chosen["value"].sel(here)) == pytest.approx(expected, rel=1e-3)
            expected = theirs[task][f"{metric}_stderr,none"]
            assert float(chosen["error"].sel(here)) == pytest.approx(expected, rel=1e-3)


@pytest.mark.slow
def test_free_schedules_and_the_clean_model_alone_have_the_same_numbers(
    found, model, data, tmp_path
):
    schedules = ("0-2", (1, 0, 2))
    settings = TaskSettings(NAMES, schedules=schedules, data=data)
    free = evaluate_tasks(model, settings, RunOptions(out=tmp_path / "free.nc", batch_tokens=900))
    assert free.value.dims == ("task", "metric", "schedule")
    for schedule, name, layer in (("0-2", "drop", 1), ("1-0-2", "swap", 0)):
        one = found.sel(intervention=name, layer=layer)
        for variable in ("value", "standard_error", "correct"):
            np.testing.assert_allclose(free[variable].sel(schedule=schedule), one[variable])
    settings = TaskSettings(NAMES, clean_only=True, data=data)
    alone = evaluate_tasks(model, settings, RunOptions(out=tmp_path / "alone.nc"))
    assert "value" not in alone
    for variable in ("clean_value", "clean_standard_error", "clean_correct"):
        np.testing.assert_allclose(alone[variable], found[variable])
        np.testing.assert_allclose(free[variable], found[variable])
    for name, dataset in (("free", free), ("alone", alone)):
        xr.testing.assert_equal(netcdf.load(tmp_path / f"{name}.nc"), dataset)
        shown = as_text(table(dataset))
        assert f"{float(dataset.clean_value.sel(task='arc_easy', metric='acc')):.3f}" in shown
        assert ("1-0-2" in shown) == (name == "free")
        assert len(draw(dataset).axes) == len(NAMES)


@pytest.mark.slow
def test_some_layers_have_the_numbers_they_have_among_all(found, model, data):
    settings = TaskSettings(NAMES, ("drop",), layers=(0, 2), data=data)
    some = evaluate_tasks(model, settings, RunOptions(batch_tokens=900))
    assert some.layer.values.tolist() == [0, 2] and some.attrs["layers"] == "0, 2"
    expected = found.value.sel(intervention=["drop"], layer=[0, 2])
    np.testing.assert_allclose(some.value, expected)


def test_items_are_kept_for_paired_comparisons(found):
    assert found.correct.dims == ("metric", "intervention", "layer", "item")
    for task, metric in product(NAMES, ("acc", "acc_norm")):
        mine = (found.item_task == task).values
        mean = found.correct.sel(metric=metric).isel(item=mine).mean("item", skipna=False)
        np.testing.assert_allclose(mean, found.value.sel(task=task, metric=metric))
        clean = found.clean_correct.sel(metric=metric).isel(item=mine).mean("item", skipna=False)
        np.testing.assert_allclose(clean, found.clean_value.sel(task=task, metric=metric))
    assert found.correct.sel(metric="perplexity").isnull().all()
    assert np.isnan(found.value.sel(task="hellaswag", metric="perplexity")).all()
    assert np.isnan(found.value.sel(intervention="swap", layer=2)).all()


@pytest.mark.slow
def test_long_contexts_are_cut_off_on_the_left_as_the_harness_does(model, plain, data, tmp_path):
    for name in NAMES:
        (tmp_path / f"{name}.jsonl").write_text((data / f"{name}.jsonl").read_text())
    long = {"context": "rain on the hill " * 12, "continuation": "sea"}
    (tmp_path / "lambada_openai.jsonl").write_text(json.dumps(long) + "\n")
    expected = likelihoods(by_harness(plain, tmp_path))
    found = ours(model, tmp_path, [clean(3)])[clean(3)]
    assert found["lambada_openai", 0, 0] == pytest.approx(
        expected["lambada_openai", 0, 0], abs=1e-4
    )


@pytest.mark.slow
def test_on_a_server_it_is_the_same(model, data):
    remote = replace(model, request={"backend": StrictBackend(model.traced)})
    settings = TaskSettings(("hellaswag",), ("drop",), data=data, limit=4)
    here = evaluate_tasks(model, settings)
    there = evaluate_tasks(remote, settings)
    xr.testing.assert_allclose(here, there)


def spying(seen):
    """Score a batch, and note its continuations."""
    score = evaluation.score_batch

    def spy(prepared, rows, plan, matrix):
        seen.extend(prepared.requests[at] for at in prepared.order[rows])
        return score(prepared, rows, plan, matrix)

    return spy


@pytest.mark.slow
def test_a_run_goes_on_where_it_stopped(model, data, tmp_path, monkeypatch):
    settings = TaskSettings(NAMES, ("drop",), data=data)
    options = RunOptions(out=tmp_path / "tasks.nc", batch_tokens=300)

    def stop(done, _total):
        if done > 20:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        evaluate_tasks(model, settings, replace(options, progress=stop))
    assert netcdf.load(tmp_path / "tasks.partial.nc").sequences_done > 20
    seen = []
    monkeypatch.setattr(evaluation, "score_batch", spying(seen))
    data_of = evaluate_tasks(model, settings, options)
    assert 0 < len(seen) < 80
    xr.testing.assert_equal(data_of, netcdf.load(tmp_path / "tasks.nc"))
    xr.testing.assert_allclose(data_of, evaluate_tasks(model, settings))
    assert [file.name for file in tmp_path.iterdir()] == ["tasks.nc"]


@pytest.mark.slow
def test_scores_are_the_same_where_memory_runs_out(model, data, monkeypatch, tmp_path):
    settings = TaskSettings(NAMES[1:], ("drop",), data=data)
    options = RunOptions(batch_tokens=900, state_cap=4)
    whole = evaluate_tasks(model, settings, options)
    call, told, failures = block_calls.call, [], []

    def failing(block, hidden, context):
        if len(hidden) > 5:
            failures.append(len(hidden))
            raise torch.OutOfMemoryError("CUDA out of memory")
        return call(block, hidden, context)

    monkeypatch.setattr(block_calls, "call", failing)
    path = tmp_path / "tasks.nc"
    found = evaluate_tasks(model, settings, replace(options, out=path, tell=told.append))
    xr.testing.assert_allclose(found, whole)
    assert failures and len(told) == len(failures)
    assert all(said.startswith("out of memory: from here on state cap") for said in told)
    assert "sequence(s) at once" in netcdf.load(path).out_of_memory
    monkeypatch.setattr(block_calls, "call", lambda *_: torch.empty(10**15))
    with pytest.raises(Refusal, match=r"one sequence of .* tokens does not fit .*`device`"):
        evaluate_tasks(model, settings, options)


@pytest.mark.slow
def test_scores_are_the_same_where_a_servers_time_runs_out(model, data, monkeypatch, tmp_path):
    settings = TaskSettings(NAMES[1:2], ("drop",), data=data, limit=4)
    options, score = RunOptions(batch_tokens=900, out=tmp_path / "a.nc"), evaluation.score_batch
    whole = evaluate_tasks(model, settings, replace(options, out=None))

    def failing(prepared, rows, plan, matrix):
        if (rows.stop - rows.start) * plan.schedules > 2:
            raise TooLarge("Execution timeout after 9 s", "time")
        return score(prepared, rows, plan, matrix)

    monkeypatch.setattr(evaluation, "score_batch", failing)
    found = evaluate_tasks(model, settings, options)
    xr.testing.assert_allclose(found, whole)
    assert found.out_of_time.endswith(
        "from sequence 0 on 1 sequence(s) at once, 2 requests a batch"
    )


@pytest.mark.slow
def test_every_continuation_is_scored_once_and_its_tokens_alone_are_unembedded(
    model, data, monkeypatch
):
    batches = []
    monkeypatch.setattr(evaluation, "score_batch", spying(batches))
    evaluate_tasks(model, TaskSettings(("hellaswag", "arc_easy"), ("drop",), data=data))
    assert len(batches) == len(set(batches)) <= 12 * 7
