"""The benchmark of GPUs, with tiny models on the CPU."""

import importlib
import sys
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from robustness.files.netcdf import load
from robustness.runs.settings import RunOptions
from robustness.sweeps.cost import estimate
from robustness.sweeps.preparation import prepare
from robustness.sweeps.settings import SweepSettings

pytestmark = pytest.mark.slow

BENCHMARKS = Path(__file__).parents[1] / "benchmarks"
MODULES = ("gpu", "gpu_cases", "gpu_rows", "card", "floors", "shapes", "ways")


@pytest.fixture(scope="module")
def bench():
    """The benchmark's modules, which are scripts and not installed."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(BENCHMARKS))
        found = importlib.import_module("gpu")
        assert Path(found.__file__).parent == BENCHMARKS
        yield found
    for name in MODULES:
        sys.modules.pop(name, None)


@pytest.fixture
def call(bench, monkeypatch, capsys, tmp_path):
    """Run it with words of a command line."""

    def run(*words):
        shared = ["gpu.py", "--device", "cpu", "--tiny", "--out", str(tmp_path / "gpu.nc")]
        monkeypatch.setattr(sys, "argv", [*shared, *words])
        with pytest.raises(SystemExit) as stop:
            bench.main()
        return stop.value.code, capsys.readouterr().out

    return run


def test_every_way_has_a_row_with_the_same_numbers(call, tmp_path):
    code, out = call("--only", "gpt2-small", "gemma-2-9b", "readout")
    assert code == 0 and "| gpt2-small | ours |" in out and "| 64 |" in out
    assert "No module named 'transformer_lens'" in out
    data = load(tmp_path / "gpu.nc").set_index(row=["shape", "way", "tokens"])
    for shape in ("gpt2-small", "gemma-2-9b"):
        found = [float(data.kl.sel(shape=shape, way=way)[0]) for way in ("ours", "loop", "authors")]
        np.testing.assert_allclose(found, found[0], atol=2e-6)
        assert found[0] > 1e-5
    assert (data.seconds > 0).all() and (data.operations > 0).all()


def test_a_case_is_measured_once_whatever_interrupts_the_run(call, bench, monkeypatch, tmp_path):
    measure, seen = bench.measure, []

    def killed(at, case):
        seen.append(case)
        if len(seen) == 2:
            raise KeyboardInterrupt
        return measure(at, case)

    monkeypatch.setattr(bench, "measure", killed)
    with pytest.raises(KeyboardInterrupt):
        call("--only", "readout")
    assert load(tmp_path / "gpu.nc").sizes["row"] == 2
    code, _ = call("--only", "readout")
    assert code == 0 and len({*seen}) == 16
    times = Counter(seen)
    assert [case for case in times if times[case] > 1] == [seen[1]]
    # What is not possible here is asked for anew.
    call("--only", "readout")
    assert all(case.way == "fused" for case in seen[17:])
    code, _ = call("--only", "readout", "--dtype", "bfloat16")
    assert "is of dtype float32, not bfloat16: choose another --out" in code


def test_what_would_not_end_within_the_budget_is_named(call):
    code, out = call("--budget", "0.001")
    assert code == 0 and "Largest product" in out
    assert "left out: pythia-6.9b ours, 128 tokens" in out.splitlines()


@pytest.mark.parametrize("name", ["gpt2-small", "pythia-410m", "llama-3.1-8b", "gemma-2-9b"])
def test_operations_are_those_of_the_plan(bench, name):
    case, made = bench.Case(name, "ours", 128), bench.Bench("cpu", bench.torch.float32, True)
    model, shape = made.opened(name), made.described(name)
    text = bench.make_corpus(128, model.vocabulary, made.context)
    cost = estimate(prepare(model, text, SweepSettings(), RunOptions()))
    predictions = 2 * model.layers * 128 * 30 / 32
    of_heads = 2 * predictions * model.vocabulary * model.width
    found = bench.operations_of(shape, case, made.context)
    assert found == pytest.approx(cost.block_flops + of_heads, rel=1e-9)
