import gc
import random
import tracemalloc
import weakref
from types import SimpleNamespace

import numpy as np
import pretended
import pytest
import torch
from families import tiny
from test_execution import corpus

from robustness.errors import Refusal, is_out_of_memory
from robustness.files import changes, netcdf, output, resumable
from robustness.files.labels import blank_dataset, layer_coords
from robustness.files.metrics import METRICS
from robustness.files.provenance import file_attributes
from robustness.files.sequences import sequence_coords
from robustness.measurements.clean_pass import Reading
from robustness.measurements.observation import observe
from robustness.measurements.short_texts import ShortTexts, fill
from robustness.models.model import Model
from robustness.models.opening import open_model
from robustness.runs import attempts
from robustness.runs.portions import HEAD, Portions
from robustness.runs.settings import RunOptions
from robustness.sweeps import sweep
from robustness.trace import block_calls, capture

OBSERVED = ("lens", "norms", "similarity", "cka")


def of_another():
    """Raise an error that came of another, in whose frames there is something large."""
    large = torch.zeros(1000)
    try:
        raise RuntimeError(f"CUBLAS_STATUS_ALLOC_FAILED after {len(large)}")
    except RuntimeError as error:
        raise MemoryError from error


ERRORS = {
    "a GPU's": lambda: torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB"),
    "torch's on a CPU": lambda: torch.empty(10**15),
    "Python's": lambda: MemoryError(),
    "of another": of_another,
}


@pytest.fixture
def scarce(monkeypatch):
    """Make traces run out of memory where a block sees more than some sequences."""
    call, see, failures = block_calls.call, capture._capture, []

    def arm(most, error=ERRORS["torch's on a CPU"], after=0, times=1000):
        calls = 0

        def check(hidden):
            nonlocal calls
            calls += 1
            if calls > after and len(hidden) > most and len(failures) < times:
                failures.append(len(hidden))
                raised = error()
                raise raised

        def calling(block, hidden, context):
            check(hidden)
            return call(block, hidden, context)

        def seeing(*arguments):
            captured = see(*arguments)
            check(captured["residual"])
            return captured

        monkeypatch.setattr(block_calls, "call", calling)
        monkeypatch.setattr(capture, "_capture", seeing)
        return failures

    return arm


def assert_close(found, expected):
    for name in expected.data_vars:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-10, err_msg=name)


def test_what_runs_out_of_memory_is_told_from_other_errors():
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(torch.OutOfMemoryError("CUDA out of memory"))
    assert is_out_of_memory(MemoryError())
    for text in (
        "CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`",
        "MPS backend out of memory (MPS allocated: 3 GB)",
        "level_zero backend failed with error: 39 (UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY)",
        "HIP error: out of memory",
        "cuDNN error: CUDNN_STATUS_ALLOC_FAILED",
        "cuDNN error: CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
        "Invalid buffer size: 9.75 GB",
        "CUDA error: out of memory",
    ):
        assert is_out_of_memory(RuntimeError(text)), text
    assert not is_out_of_memory(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_out_of_memory(ValueError("out of memory"))


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_less_is_run_at_once_and_the_numbers_are_the_same(gpt2, scarce, error):
    """Where a trace of four sequences is too large, states are halved first, and then sequences."""
    text = corpus(sequences=8)
    whole = sweep(gpt2, text, batch_tokens=48, state_cap=5)
    told = []
    failures = scarce(3, ERRORS[error])
    found = sweep(gpt2, text, batch_tokens=48, state_cap=5, tell=told.append)
    assert failures == [4, 4, 4]
    assert_close(found, whole)
    steps = ("state cap 2", "state cap 1", "state cap 1, 2 sequence(s) at once")
    assert told == [f"out of memory: from here on {step}" for step in steps]
    assert found.out_of_memory == "; ".join(f"from sequence 0 on {step}" for step in steps)
    assert found.state_cap == 5, "the settings are those that were asked for"


@pytest.mark.slow
@pretended.needed
@pytest.mark.parametrize(("kind", "room"), [("cuda", 0.7), ("mps", 0.25)])
def test_where_a_device_is_full_less_is_run_at_once_and_all_of_it_is_given_back(kind, room):
    text, told = corpus(sequences=16), []
    options = {"batch_tokens": 16 * 12, "state_cap": 6, "tell": told.append}
    with pretended.machine(kind):
        model = open_model(tiny("gpt2", torch.float32).to(kind))
        sweep(model, text, **options)
        gc.collect()
        held = pretended.MEMORY.used
        pretended.MEMORY.peak = 0
        whole = sweep(model, text, **options)
        needed = pretended.MEMORY.peak - held
        gc.collect()
        pretended.MEMORY.most = held + int(room * needed)
        found = sweep(model, text, **options)
        assert pretended.MEMORY.refusals == len(told) > 0
        # The matrix of the head is the only thing that a run keeps.
        assert max(pretended.MEMORY.left) <= held + model.head.weight.numel() * 4
    for name in whole.data_vars:
        np.testing.assert_allclose(found[name], whole[name], atol=2e-5, err_msg=name)
    assert found.out_of_memory.count("from sequence 0") == len(told)
    assert ("at once" in found.out_of_memory) == (room < 0.3)


@pytest.mark.slow
def test_where_stacks_of_states_are_too_large_sequences_stay_together(model, scarce):
    text = corpus(sequences=8)
    whole = sweep(model, text, batch_tokens=48, state_cap=5)
    failures = scarce(4)
    found = sweep(model, text, batch_tokens=48, state_cap=5)
    assert failures and min(failures) > 4
    assert "at once" not in found.out_of_memory and found.out_of_memory.endswith("state cap 1")
    assert_close(found, whole)


@pytest.mark.slow
@pytest.mark.parametrize("call", [1, 2])
def test_a_model_that_there_is_no_room_for_is_not_called_unfit(call, monkeypatch):
    """Neither where its calls are recorded, nor where it is tried out."""
    net, calls = tiny("gpt2"), []
    forward = net.transformer.h[2].forward

    def fail(*args, **kwargs):
        calls.append(1)
        if len(calls) == call:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return forward(*args, **kwargs)

    monkeypatch.setattr(net.transformer.h[2], "forward", fail)
    with pytest.raises(RuntimeError, match="out of memory") as caught:
        open_model(net)
    assert is_out_of_memory(caught.value)


def test_it_is_noted_from_which_sequence_on_and_kept_when_interrupted(gpt2, scarce, tmp_path):
    path, text = tmp_path / "a.nc", corpus(sequences=8)
    whole = sweep(gpt2, text, batch_tokens=24, state_cap=2)
    calls = 22  # of blocks in a batch, so that the second one fails
    scarce(3, after=calls)

    def stop(done, _total):
        if done == 6:
            raise KeyboardInterrupt

    options = {"batch_tokens": 24, "state_cap": 2, "out": path}
    with pytest.raises(KeyboardInterrupt):
        sweep(gpt2, text, progress=stop, **options)
    found = sweep(gpt2, text, **options)
    first, *rest = found.out_of_memory.split("; ")
    assert first.endswith("on state cap 1") and int(first.split()[2]) in (2, 4)
    assert rest == [], "the rest begins with what there was room for"
    np.testing.assert_allclose(found.kl, whole.kl, atol=1e-11)
    stamp = path.stat().st_mtime_ns
    sweep(gpt2, text, **options)
    assert path.stat().st_mtime_ns == stamp, "the finished run is not found"


@pytest.mark.slow
def test_where_nothing_less_can_be_run_it_is_an_error(gpt2, scarce):
    failures = scarce(0)
    with pytest.raises(Refusal, match=r"one sequence of 12 tokens does not fit .*`context`"):
        sweep(gpt2, corpus(sequences=4), batch_tokens=48)
    assert failures[-1] == 1


def test_the_frames_of_a_failed_attempt_are_gone():
    seen = []

    def attempt():
        tensor = torch.zeros(9)
        seen.append(weakref.ref(tensor))
        raise MemoryError("out of memory")

    result = attempts.attempt(attempt)
    gc.collect()
    assert result.message == "out of memory" and seen[0]() is None


@pytest.mark.slow
@pytest.mark.parametrize("error", ERRORS)
def test_what_a_failed_trace_held_is_gone_when_caches_are_emptied(gpt2, scarce, monkeypatch, error):
    """Else the device could not be given back what is to be made room of."""
    seen, held = [], []
    scarce(7, ERRORS[error], times=1)
    watched = block_calls.call
    collect = gc.collect

    def calling(block, hidden, context):
        out = watched(block, hidden, context)
        seen.extend(map(weakref.ref, (hidden, out)))
        return out

    def emptying(*arguments):
        found = collect(*arguments)
        held.append(sum(ref() is not None for ref in seen))
        return found

    monkeypatch.setattr(block_calls, "call", calling)
    monkeypatch.setattr("robustness.runs.attempts.gc.collect", emptying)
    sweep(gpt2, corpus(sequences=8), schedules=["0-0..", "0..2-1..", "0..2-0.."], batch_tokens=96)
    assert len(seen) > 2 and held and held[-1] == 0


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(3))
def test_memory_may_run_out_anywhere_and_again(gpt2, scarce, seed):
    text, chance = corpus(sequences=16), random.Random(seed)

    def sometimes():
        return torch.empty(10**15) if chance.random() < 0.2 else RuntimeError("CUDA out of memory")

    whole, observed = sweep(gpt2, text, batch_tokens=48, state_cap=5), observe(gpt2, text, OBSERVED)
    scarce(2, sometimes, after=chance.randrange(60), times=4)
    assert_close(sweep(gpt2, text, batch_tokens=48, state_cap=5), whole)
    failures = scarce(2, sometimes, after=chance.randrange(8), times=20)
    found = observe(gpt2, text, OBSERVED)
    assert failures
    for name, data in observed.items():
        assert_close(found[name], data)


@pytest.mark.slow
def test_what_is_observed_is_the_same_in_smaller_portions_and_groups_of_cka_stay(
    gpt2, scarce, tmp_path
):
    text = corpus(sequences=40)
    whole = observe(gpt2, text, OBSERVED)
    told = []
    failures = scarce(5)
    found = observe(gpt2, text, OBSERVED, RunOptions(out=tmp_path, tell=told.append))
    assert failures == [16, 8] and len(told) == 2
    for name, data in whole.items():
        assert_close(found[name], data)
        assert found[name].sizes == data.sizes
        steps = [f"from sequence 0 on {count} sequence(s) at once" for count in (8, 4)]
        assert netcdf.load(tmp_path / f"{name}.nc").out_of_memory == "; ".join(steps)


@pytest.mark.slow
def test_what_is_scanned_is_the_same_in_smaller_portions(gpt2, scarce, monkeypatch):
    items = [list(range(1, length)) for length in (4, 4, 5, 7, 7, 9, 11, 11)]
    metric = {METRICS["entropy"]: ("depth", "sequence")}

    def scanned(told):
        blank = blank_dataset(
            {"mean": (next(iter(metric)), ("depth", "sequence"))},
            {"depth": np.arange(gpt2.layers + 1), "sequence": np.arange(len(items))},
            file_attributes({"model": "m", "sequences": len(items)}),
            np.float64,
        )
        reading = Reading(means, final=True)
        options = RunOptions(tell=told.append)
        return fill(resumable.Run(blank), gpt2, ShortTexts(items), reading, options)

    whole, told = scanned([]), []
    failures = scarce(3)
    found = scanned(told)
    assert failures == [8, 4] and len(told) == 2
    assert_close(found, whole)
    assert found.out_of_memory.endswith("from sequence 0 on 2 sequence(s) at once")
    scarce(100)  # in blocks, which are tried beforehand
    monkeypatch.setattr(capture, "_capture", lambda *_: torch.empty(10**15))
    with pytest.raises(Refusal, match=r"one sequence of 3 tokens does not fit .*`dtype` bfloat16"):
        scanned([])


def means(captured, text):
    inside = torch.arange(captured["residual"].shape[1]) < text["lengths"][:, None]
    return {"mean": (captured["residual"].mean(-1) * inside).sum(-1)}


@pytest.mark.slow
@pytest.mark.parametrize("times", [1, 2])
def test_where_the_unembedding_cannot_be_copied_it_is_read_as_it_is(gpt2, monkeypatch, times):
    text, unembedding, calls = corpus(sequences=16), Model.unembedding, []

    def failing(model, copied=True):
        calls.append(1)
        if len(calls) <= times:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return unembedding(model, copied)

    whole, lens = sweep(gpt2, text), observe(gpt2, text, ["lens"])["lens"]
    monkeypatch.setattr(Model, "unembedding", failing)
    told = []
    found = sweep(gpt2, text, tell=told.append)
    calls.clear()
    seen = observe(gpt2, text, ["lens"], RunOptions(tell=told.append))["lens"]
    assert_close(found, whole)
    assert_close(seen, lens)
    expected = [f"out of memory: from here on {HEAD}"] * 2 if times == 2 else []
    assert told == expected
    assert found.attrs.get("out_of_memory") == (f"from sequence 0 on {HEAD}" if expected else None)


def test_a_finished_run_needs_no_unembedding(gpt2, tmp_path, monkeypatch):
    text = corpus(sequences=16)
    sweep(gpt2, text, out=tmp_path / "sweep.nc")
    observe(gpt2, text, ["lens"], RunOptions(out=tmp_path))

    def failing(model):
        raise MemoryError

    monkeypatch.setattr(Model, "unembedding", failing)
    told = []
    sweep(gpt2, text, out=tmp_path / "sweep.nc", tell=told.append)
    observe(gpt2, text, ["lens"], RunOptions(out=tmp_path, tell=told.append))
    assert not told


@pytest.mark.slow
@pytest.mark.parametrize("command", ["sweep", "observe"])
def test_a_run_that_is_gone_on_with_begins_with_what_there_was_room_for(
    gpt2, scarce, tmp_path, command
):
    text, failures = corpus(sequences=32), scarce(2)

    def stop(done, _total):
        if done >= 16:
            raise KeyboardInterrupt

    def run(**options):
        if command == "sweep":
            return sweep(gpt2, text, batch_tokens=96, out=tmp_path / "a.nc", **options)
        settings = RunOptions(batch_tokens=96, out=tmp_path, **options)
        return observe(gpt2, text, ["norms"], settings)["norms"]

    with pytest.raises(KeyboardInterrupt):
        run(progress=stop)
    count, told = len(failures), []
    found = run(tell=told.append)
    assert count and len(failures) == count and not told
    assert all(note.startswith("from sequence 0 ") for note in found.out_of_memory.split("; "))
    whole = sweep(gpt2, text) if command == "sweep" else observe(gpt2, text, ["norms"])["norms"]
    assert_close(found, whole)


def test_portions_begin_with_the_least_that_was_recorded():
    recorded = "state cap 4; state cap 1, 8 sequence(s) at once; " + HEAD
    portions = Portions(lambda *_: None)
    portions.begin(recorded)
    assert (portions.cap, portions.sequences) == (1, 8)
    portions.begin("state cap 0, 99999999999999999999 sequence(s) at once")
    assert (portions.cap, portions.sequences) == (1, 8)
    notes = changes.noted({}, changes.LOST, 3, str(portions))
    other = Portions(lambda *_: None)
    other.begin(changes.lowered(notes))
    assert str(other) == str(portions)
    for changed, lowered in ((2, str(portions)), (3, "")):
        later = notes | changes.noted({}, changes.CHANGED, changed, "batch_tokens 5")
        assert changes.lowered(later) == lowered


def test_other_errors_are_raised_as_they_are(gpt2, scarce):
    failures = scarce(0, lambda: RuntimeError("shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        sweep(gpt2, corpus(sequences=4))
    assert len(failures) == 1


def test_more_counts_than_there_is_memory_for_are_refused(gpt2, monkeypatch):
    free = 3 * 4 * gpt2.vocabulary * 7 - 1
    monkeypatch.setattr(
        "robustness.sweeps.preparation.psutil.virtual_memory",
        lambda: SimpleNamespace(available=free),
    )
    with pytest.raises(Refusal, match=r"101 tokens under 7 schedules takes .* `layers`"):
        sweep(gpt2, corpus(), ("drop", "swap"))
    sweep(gpt2, corpus(), ("drop",))


@pytest.mark.slow
def test_saving_on_the_way_does_not_copy_what_is_measured(tmp_path, monkeypatch):
    monkeypatch.setattr(output, "SAVING_SHARE", float("inf"))
    sequences = 100_000
    blank = blank_dataset(
        {"kl": (METRICS["kl"], ("layer", "sequence"))},
        {**layer_coords(8), **sequence_coords(np.arange(sequences))},
        file_attributes({"model": "m", "sequences": sequences}),
    )
    values = np.ones((8, 1000), np.float32)
    with resumable.Run(blank, np.zeros((8, 1000), np.int32), path=tmp_path / "a.nc") as run:
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
