from pathlib import Path

import pytest
from reference import differences

import robustness
from robustness.corpus import cut
from robustness.execution import sweep
from robustness.metrics import METRICS
from robustness.model import open_model


@pytest.mark.parametrize("name", ["sequential", "parallel"])
def test_every_variable_of_a_real_sweep_equals_the_plain_computation(tmp_path, name):
    builtin = Path(robustness.__file__).parent / "builtin"
    path = builtin / name
    model = open_model(path)
    corpus = cut("builtin", model.tokenizer, context=64).take(20)
    sweep(model, corpus, ("drop", "swap", "repeat-3"), out=tmp_path / "a.nc")
    worst = differences(tmp_path / "a.nc", path, builtin / "texts" / "prose.jsonl")
    assert worst.keys() == METRICS.keys()
    assert max(worst.values()) < 1e-5, worst
