import tracemalloc

import numpy as np
import pytest
import torch
from test_execution import corpus

from robustness import interpreter, results
from robustness.execution import sweep
from robustness.memory import is_out_of_memory
from robustness.metrics import METRICS
from robustness.refusal import Refusal

ERRORS = {
    "a GPU's": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "torch's on a CPU": lambda: torch.empty(10**15),
    "Python's": lambda: MemoryError(),
}


@pytest.fixture
def scarce(monkeypatch):
    """Make blocks run out of memory on more than some sequences, in the trace itself."""
    call, failures = interpreter.call, []

    def arm(most, error=ERRORS["torch's on a CPU"], after=0):
        calls = 0

        def failing(block, hidden, context):
            nonlocal calls
            calls += 1
            if calls > after and len(hidden) > most:
                failures.append(len(hidden))
                raised = error()
                raise raised
            return call(block, hidden, context)

        monkeypatch.setattr(interpreter, "call", failing)
        return failures

    return arm


def test_what_runs_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.parametrize("error", ERRORS)
def test_less_is_run_at_once_and_the_numbers_are_the_same(gpt2, scarce, error):
    """Where a trace of four sequences is too large, states are halved first, and then sequences."""
    text = corpus(sequences=8)
    whole = sweep(gpt2, text, batch_tokens=48, cap=5)
    told = []
    failures = scarce(3, ERRORS[error])
    found = sweep(gpt2, text, batch_tokens=48, cap=5, tell=told.append)
    assert failures == [4, 4, 4]
    for name in whole.data_vars:
        np.testing.assert_allclose(found[name], whole[name], atol=1e-11, err_msg=name)
    steps = ("state cap 2", "state cap 1", "state cap 1, 2 sequence(s) at once")
    assert told == [f"out of memory: from here on {step}" for step in steps]
    assert found.out_of_memory == "; ".join(f"from sequence 0 on {step}" for step in steps)
    assert found.state_cap == 5, "the settings are those that were asked for"


def test_where_stacks_of_states_are_too_large_sequences_stay_together(model, scarce):
    text = corpus(sequences=8)
    whole = sweep(model, text, batch_tokens=48, cap=5)
    failures = scarce(4)
    found = sweep(model, text, batch_tokens=48, cap=5)
    assert failures and min(failures) > 4
    assert "at once" not in found.out_of_memory and found.out_of_memory.endswith("state cap 1")
    for name in whole.data_vars:
        np.testing.assert_allclose(found[name], whole[name], atol=1e-11, err_msg=name)


def test_it_is_noted_from_which_sequence_on_and_kept_when_interrupted(gpt2, scarce, tmp_path):
    path, text = tmp_path / "a.nc", corpus(sequences=8)
    whole = sweep(gpt2, text, batch_tokens=24, cap=2)
    calls = 22  # of blocks in a batch, so that the second one fails
    scarce(3, after=calls)

    def stop(done, _total):
        if done == 6:
            raise KeyboardInterrupt

    options = {"batch_tokens": 24, "cap": 2, "out": path}
    with pytest.raises(KeyboardInterrupt):
        sweep(gpt2, text, progress=stop, **options)
    found = sweep(gpt2, text, **options)
    first, *rest = found.out_of_memory.split("; ")
    assert first.endswith("on state cap 1") and int(first.split()[2]) in (2, 4)
    assert rest == ["from sequence 6 on state cap 1"]
    np.testing.assert_allclose(found.kl, whole.kl, atol=1e-11)
    stamp = path.stat().st_mtime_ns
    sweep(gpt2, text, **options)
    assert path.stat().st_mtime_ns == stamp, "the finished run is not found"


def test_where_nothing_less_can_be_run_it_is_an_error(gpt2, scarce):
    failures = scarce(0)
    with pytest.raises(Refusal, match=r"one sequence of 12 tokens does not fit .*--context"):
        sweep(gpt2, corpus(sequences=4), batch_tokens=48)
    assert failures[-1] == 1


def test_other_errors_are_raised_as_they_are(gpt2, scarce):
    failures = scarce(0, lambda: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sweep(gpt2, corpus(sequences=4))
    assert len(failures) == 1


def test_saving_on_the_way_does_not_copy_what_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(results, "KEEPING", float("inf"))
    sequences = 400_000
    blank = results.blank(
        {"kl": (METRICS["kl"], ("layer", "sequence"))},
        {**results.layer_coords(8), **results.sequence_coords(np.arange(sequences))},
        results.provenance({"model": "m", "sequences": sequences}),
    )
    values = np.ones((8, 1000), np.float32)
    with results.Run(blank, np.zeros((8, 1000), np.int32), path=tmp_path / "a.nc") as run:
        held = run.dataset["kl"].values
        run.add(slice(0, 1000), {"kl": values})
        tracemalloc.start()
        try:
            for start in range(1000, 6000, 1000):
                run.add(slice(start, start + 1000), {"kl": values})
            _, peak = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert run.dataset["kl"].values is held, "the array is another"
        assert peak < 0.1 * held.nbytes, (peak, held.nbytes)
