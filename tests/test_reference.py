from pathlib import Path

import numpy as np
import pytest
from oracles.reference import differences

import robustness
from robustness.files.metrics import METRICS
from robustness.models.opening import open_model
from robustness.sweeps import sweep
from robustness.text.corpus import cut


@pytest.mark.slow
@pytest.mark.parametrize("name", ["sequential", "parallel"])
def test_every_variable_of_a_real_sweep_equals_the_plain_computation(tmp_path, name):
    builtin = Path(robustness.__file__).parent / "builtin"
    path = builtin / name
    model = open_model(path)
    corpus = cut("builtin", model.tokenizer, context=32).take(6)
    sweep(model, corpus, ("drop", "swap", "repeat-3"), out=tmp_path / "a.nc")
    worst = differences(tmp_path / "a.nc", path, builtin / "texts" / "prose.jsonl", 6)
    assert worst.keys() == METRICS.keys()
    assert all(difference < 1e-5 for difference in worst.values()), worst


@pytest.mark.slow
@pytest.mark.parametrize("schedules", ["all", "one"])
def test_what_is_not_a_number_is_a_difference(tmp_path, schedules):
    builtin = Path(robustness.__file__).parent / "builtin"
    model = open_model(builtin / "sequential")
    corpus = cut("builtin", model.tokenizer, context=16).take(3)
    data = sweep(model, corpus, ("drop",))
    layers = slice(None) if schedules == "all" else slice(2, 3)
    measured = [
        name for name in METRICS if "layer" in data[name].dims and data[name].dtype.kind == "f"
    ]
    for name in measured:
        data[name][{"layer": layers}] = np.nan
    data.to_netcdf(tmp_path / "a.nc")
    worst = differences(
        tmp_path / "a.nc", builtin / "sequential", builtin / "texts" / "prose.jsonl", 3
    )
    unknown = {name for name, difference in worst.items() if np.isnan(difference)}
    assert unknown == set(measured)
