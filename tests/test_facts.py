"""What is found out about a model is found once, and one thread at a time runs it."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest
from families import tiny
from test_execution import corpus
from xarray.testing import assert_identical

from robustness.measurements.observation import observe
from robustness.measurements.requirements import unfit
from robustness.models import block_structure
from robustness.models.block_structure import examine
from robustness.models.opening import open_model
from robustness.sweeps import sweep


@pytest.fixture
def tried(monkeypatch):
    """The trials by which models are examined, from here on."""
    trials = []
    real = block_structure._try_out

    def count(*words):
        trials.append(words)
        return real(*words)

    monkeypatch.setattr(block_structure, "_try_out", count)
    return trials


def test_a_fact_is_found_once_and_shared_by_copies_of_a_model():
    model = open_model(tiny("gpt2"))
    asked = []

    def count(of):
        asked.append(of)
        return len(asked)

    copy = replace(model, identity=model.identity | {"model": "another"})
    assert model.once(count) == copy.once(count) == 1 and len(asked) == 1
    assert open_model(tiny("gpt2")).once(count) == 2, "a model opened anew is another"


def test_a_model_is_examined_once_whatever_is_measured(tried):
    model, text = open_model(tiny("gpt2")), corpus()
    assert set(unfit(model, text, ("attention", "norms"))) == {"attention"}, "the text is short"
    first = observe(model, text, ("norms",))["norms"]
    sweep(model, text, ("attention-drop",))
    again = observe(model, text, ("norms", "lens"))["norms"]
    assert len(tried) == 1
    assert_identical(first.drop_attrs(), again.drop_attrs())


def test_attention_weights_are_looked_at_only_where_they_are_asked_for(tried):
    model = open_model(tiny("falcon"))
    assert not examine(model).missing and not any(examine(model).heads)
    assert "pattern" in examine(model, ("pattern",)).missing and len(tried) == 2
    assert examine(model) == examine(open_model(tiny("falcon"))), "as if they had not been"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "llama"])
def test_two_threads_that_sweep_one_model_get_what_one_gets(family):
    text = corpus()
    model = open_model(tiny(family))

    def measure(interventions):
        return sweep(model, text, interventions)

    asked = [("drop",), ("swap", "attention-drop"), ("repeat-2",), ("drop",)]
    alone = [measure(names) for names in asked]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(measure, asked))
    for one, other in zip(alone, together, strict=True):
        assert_identical(one.drop_attrs(), other.drop_attrs())
