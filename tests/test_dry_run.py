"""What a run says of itself before it begins is what it then does."""

import json

import pytest
from test_execution import corpus

from probes.settings import WicSettings
from probes.wic import probe_wic
from robustness.measurements import clean_pass, observation, short_texts
from robustness.measurements.observation import observe
from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions


class Ended(Exception):
    """Ends a run before its first trace."""


@pytest.fixture
def traces(monkeypatch):
    """The number of texts of every trace of the clean run."""
    seen = []

    def run_clean(model, tokens, *rest):
        seen.append(len(tokens))
        return clean_pass_run(model, tokens, *rest)

    clean_pass_run = clean_pass.run_clean
    for module in (clean_pass, short_texts):
        monkeypatch.setattr(module, "run_clean", run_clean)
    assert observation.measure_batch is clean_pass.measure_batch
    return seen


@pytest.mark.slow
def test_as_many_traces_are_foreseen_as_are_run(gpt2, llama, traces):
    told = []
    options = RunOptions(batch_tokens=40, foresee=told.append)
    observe(gpt2, corpus(17, 18), ["lens", "cka"], options)
    model = open_model(llama)
    before = len(traces)
    probe_wic(model, WicSettings(), RunOptions(batch_tokens=2000, foresee=told.append))
    of_corpus, of_words = told
    assert of_corpus.texts == 17 and of_corpus.tokens == 17 * 18
    assert len(of_corpus.costs) == before > 1
    assert len(of_words.costs) == len(traces) - before > 1
    assert of_words.texts == sum(traces[before:])


def test_what_comes_back_is_what_a_file_holds(gpt2, tmp_path):
    told = []
    options = RunOptions(foresee=told.append)
    lens = observe(gpt2, corpus(17, 18), ["lens"], options)["lens"]
    numbers = sum(variable.size for variable in lens.data_vars.values())
    item = next(iter(lens.data_vars.values())).dtype.itemsize
    assert sum(cost.down_bytes for cost in told[0].costs) == numbers * item


def test_a_run_that_is_ended_before_it_begins_has_computed_nothing(gpt2, traces):
    def stop(_):
        raise Ended

    with pytest.raises(Ended):
        observe(gpt2, corpus(17, 18), ["cka"], RunOptions(foresee=stop))
    assert not traces


@pytest.mark.slow
@pytest.mark.parametrize(
    "words",
    [("observe", "lens", "cka"), ("probe", "wic"), ("probe", "subjoiner"), ("probe", "ing")],
)
def test_a_dry_run_computes_and_writes_nothing(run, monkeypatch, tmp_path, words):
    command, *rest = words
    texts = ("--tokens", 5000) if command == "observe" else ()
    more = ("--items", 400) if "ing" in rest or "subjoiner" in rest else ()
    code, out, err = run(command, "builtin", *rest, *texts, *more, "--dry-run", "--json")
    assert code == 0 and "nothing was run" in err
    rows = {row["what"]: row["cost"] for row in json.loads(out)["tables"][0]["rows"]}
    assert int(rows["batches"]) >= 1 and float(rows["floating-point operations"]) > 1e8
    assert not list(tmp_path.iterdir())


def test_neurons_have_no_dry_run(run):
    code, _, err = run("observe", "builtin", "neurons", "--dry-run")
    assert code == 2 and "leave out --dry-run" in err
