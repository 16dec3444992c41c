"""Requests that are too large for a server are made smaller, and the numbers stay the same."""

from dataclasses import replace

import numpy as np
import pytest
from families import tiny
from strict import StrictBackend
from test_execution import corpus
from test_memory import means

from robustness.errors import Refusal, TooLarge
from robustness.files import netcdf, resumable
from robustness.files.labels import blank_dataset
from robustness.files.metrics import METRICS, TokenMetric
from robustness.files.provenance import file_attributes
from robustness.measurements import observation, short_texts
from robustness.measurements.clean_pass import Reading
from robustness.measurements.observation import observe
from robustness.measurements.short_texts import ShortTexts, fill
from robustness.models.opening import open_model
from robustness.ndif.limits import Limits
from robustness.ndif.report import Report
from robustness.ndif.room import Room
from robustness.runs import server_sizes
from robustness.runs.budget import Budget, budget_for
from robustness.runs.portions import Portions, Work
from robustness.runs.server_sizes import Reads
from robustness.runs.settings import RunOptions
from robustness.runs.sizes import ON_CPU, ON_SERVER, Sizes
from robustness.sweeps import execution, preparation, sweep
from robustness.sweeps.token_layout import beside

GB = 10**9


@pytest.fixture
def divided(monkeypatch):
    """Divide the schedules of every batch over a number of requests."""

    def arm(requests, text=24):
        sizes = Sizes(text, 4 * text, requests)
        monkeypatch.setattr(preparation, "choose_sizes", lambda *_: sizes)

    return arm


def drift(states, clean):
    return (states - clean).square().mean(-1)


RUNS = {
    "drop and swap": {},
    "pairs": {"interventions": ["drop-pair", "swap-pair"]},
    "free schedules": {"schedules": ["0-0..", "..", "0..2-1..", "0-(1+2)-3"]},
    "sublayers": {"interventions": ["mlp-drop", "attention-drop", "parallel-2"]},
}


def assert_same(found, whole):
    assert found.data_vars.keys() == whole.data_vars.keys()
    for name in whole.data_vars:
        np.testing.assert_allclose(found[name], whole[name], atol=1e-10, err_msg=name)


@pytest.mark.slow
@pytest.mark.parametrize("kind", RUNS)
@pytest.mark.parametrize("requests", [2, 99])
def test_in_several_requests_numbers_are_those_of_one(gpt2, divided, kind, requests):
    text = corpus(sequences=5)
    divided(1)
    whole = sweep(gpt2, text, **RUNS[kind])
    divided(requests)
    assert_same(sweep(gpt2, text, **RUNS[kind]), whole)


@pytest.mark.slow
def test_so_are_single_tokens_and_metrics_of_ones_own(gpt2, divided, tmp_path):
    drifts = TokenMetric(
        "drift", "1", "square of what changed", function=drift, reads="final states"
    )
    found = {}
    for requests in (1, 3):
        divided(requests)
        path = tmp_path / f"{requests}.nc"
        data = sweep(gpt2, corpus(4), metrics=[drifts], per_token=True, out=path)
        found[requests] = data, netcdf.load(beside(path))
    for whole, parts in zip(found[1], found[3], strict=True):
        assert_same(parts, whole)


@pytest.fixture
def server(monkeypatch):
    """Make traces too large for a server that holds, or has time for, some work only.

    `seen` has the sequences, the schedules and the widest call of every trace.
    """
    seen = []

    def arm(lacking, allows, times=1000):
        failures = []

        def check(*size):
            seen.append(size)
            if not allows(*size) and len(failures) < times:
                failures.append(size)
                raise TooLarge("the server gives up", lacking)

        measure, clean, observed = (
            execution.measure_batch, short_texts.run_clean, observation.measure_batch
        )  # fmt: skip

        def measuring(prepared, rows, plan, *rest):
            check(rows.stop - rows.start, plan.schedules, plan.widest)
            return measure(prepared, rows, plan, *rest)

        def observing(model, text, rows, *rest):
            check(rows.stop - rows.start, 1, 1)
            return observed(model, text, rows, *rest)

        def scanning(model, tokens, *rest):
            check(len(tokens), 1, 1)
            return clean(model, tokens, *rest)

        monkeypatch.setattr(execution, "measure_batch", measuring)
        monkeypatch.setattr(observation, "measure_batch", observing)
        monkeypatch.setattr(short_texts, "run_clean", scanning)
        return seen

    return arm


@pytest.mark.slow
def test_memory_is_made_room_in_by_states_then_sequences_then_schedules(gpt2, server):
    text, told = corpus(sequences=4), []
    whole = sweep(gpt2, text, batch_tokens=48, state_cap=4)
    seen = server("memory", lambda count, schedules, widest: count * schedules * widest <= 2)
    found = sweep(gpt2, text, batch_tokens=48, state_cap=4, tell=told.append)
    assert_same(found, whole)
    limits = [said.removeprefix("out of memory: from here on ") for said in told]
    assert limits == [
        "state cap 2",
        "state cap 1",
        "state cap 1, 2 sequence(s) at once",
        "state cap 1, 1 sequence(s) at once",
        *[f"state cap 1, 1 sequence(s) at once, {2**n} requests a batch" for n in (1, 2)],
    ]
    assert found.out_of_memory == "; ".join(f"from sequence 0 on {limit}" for limit in limits)
    assert "out_of_time" not in found.attrs
    # No schedule of a sequence is measured twice because another failed.
    done = [schedules for count, schedules, widest in seen if count * schedules * widest <= 2]
    assert sum(done) == 4 * len(whole.kl.stack(run=("intervention", "layer")).dropna("run").run)


@pytest.mark.slow
def test_time_is_made_room_in_by_sequences_then_schedules_and_is_not_called_memory(
    gpt2, server, tmp_path
):
    text, told, path = corpus(sequences=4), [], tmp_path / "a.nc"
    whole = sweep(gpt2, text, batch_tokens=48, state_cap=4)
    server("time", lambda count, schedules, widest: count * schedules <= 3)
    options = {"batch_tokens": 48, "state_cap": 4, "out": path}

    def stop(done, _total):
        if done:
            raise KeyboardInterrupt

    # One batch is all of the text, so that the run is interrupted when it is measured.
    with pytest.raises(KeyboardInterrupt):
        sweep(gpt2, text, tell=told.append, progress=stop, **options)
    steps = ["2 sequence(s) at once", "1 sequence(s) at once"]
    steps += [f"1 sequence(s) at once, {count} requests a batch" for count in (2, 4)]
    assert told == [f"out of time: from here on {step}" for step in steps]
    found = sweep(gpt2, text, **options)
    assert found.out_of_time == "; ".join(f"from sequence 0 on {step}" for step in steps)
    assert "out_of_memory" not in found.attrs
    assert_same(found, whole)


@pytest.mark.slow
def test_a_run_that_goes_on_begins_with_what_there_was_time_for(gpt2, server, tmp_path):
    text, path, told = corpus(sequences=8), tmp_path / "a.nc", []
    seen = server("time", lambda count, schedules, widest: count * schedules <= 4)

    def stop(done, _total):
        if done == 4:
            raise KeyboardInterrupt

    options = {"batch_tokens": 24, "out": path}
    with pytest.raises(KeyboardInterrupt):
        sweep(gpt2, text, progress=stop, **options)
    seen.clear()
    sweep(gpt2, text, tell=told.append, **options)
    assert not told and max(count * schedules for count, schedules, _ in seen) <= 4


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["memory", "time"])
def test_observations_and_probes_are_made_smaller_too(gpt2, server, lacking, tmp_path):
    text, named = corpus(sequences=40), {"memory": "out_of_memory", "time": "out_of_time"}
    whole = observe(gpt2, text, ["norms", "cka"])
    texts = ShortTexts([range(1, length) for length in (4, 4, 5, 7, 7, 9, 11, 11)])

    def scanned():
        blank = blank_dataset(
            {"mean": (METRICS["entropy"], ("depth", "sequence"))},
            {"depth": np.arange(gpt2.layers + 1), "sequence": np.arange(8)},
            file_attributes({"model": "m", "sequences": 8}),
            np.float64,
        )
        return fill(resumable.Run(blank), gpt2, texts, Reading(means, final=True), RunOptions())

    probed = scanned()
    server(lacking, lambda count, *_: count <= 2)
    for name, data in observe(gpt2, text, ["norms", "cka"], RunOptions(out=tmp_path)).items():
        assert_same(data, whole[name])
        assert data.attrs[named[lacking]].endswith("on 2 sequence(s) at once")
    found = scanned()
    assert_same(found, probed)
    assert found.attrs[named[lacking]].endswith("on 2 sequence(s) at once")


@pytest.mark.slow
@pytest.mark.parametrize("lacking", ["memory", "time"])
def test_one_sequence_under_one_schedule_that_is_too_large_is_refused_with_its_numbers(
    gpt2, server, lacking
):
    server(lacking, lambda *_: False)
    with pytest.raises(Refusal) as caught:
        sweep(gpt2, corpus(4))
    text = str(caught.value)
    assert text.startswith("one sequence of 12 tokens under one schedule is too large a request")
    assert "operations" in text and "GB of states" in text and "the server gives up" in text
    assert caught.value.lacking == lacking and "\n" not in text
    with pytest.raises(Refusal, match="one sequence of 12 tokens is too large a request, of "):
        observe(gpt2, corpus(20), ["norms"])


def test_of_requests_that_take_too_long_the_following_ones_are_smaller():
    told, noted, measured = [], [], []

    def pace():
        """Requests of more than four sequences take too long."""
        return 130.0 if measured and measured[-1] > 4 else None

    def measure(piece):
        measured.append(piece.rows.stop - piece.rows.start)

    portions = Portions(lambda *note: noted.append(note), told.append, pace=pace)
    for rows in (slice(0, 8), slice(8, 16)):
        for _ in portions.each(rows, Work(measure, lambda rows: rows.stop - rows.start)):
            pass
    assert measured == [8, 4, 4]
    assert told == ["requests take 130 s: from here on 4 sequence(s) at once"]
    assert noted == [(8, "4 sequence(s) at once", "time")]


@pytest.mark.slow
def test_slow_requests_are_known_by_what_the_server_reports(gpt2, monkeypatch):
    backend = StrictBackend(gpt2.traced)
    backend.room, backend.reports = Room(GB), []
    backend.limits = Limits(seconds=10.0)
    model, measure, told = replace(gpt2, request={"backend": backend}), execution.measure_batch, []
    counts = []

    def slow(prepared, rows, *rest):
        counts.append(rows.stop - rows.start)
        backend.reports.append(Report(5.0 + 10 * counts[-1], None, None))
        return measure(prepared, rows, *rest)

    monkeypatch.setattr(execution, "measure_batch", slow)
    text = corpus(12)
    found = sweep(model, text, batch_tokens=48, tell=told.append)
    assert counts == [4, 2, 1, 1, 1, 1, 1, 1]
    assert [said for said in told if said.startswith("requests take")] == [
        "requests take 45 s: from here on 2 sequence(s) at once",
        "requests take 25 s: from here on 1 sequence(s) at once",
    ]
    assert found.out_of_time.startswith("from sequence 4 on 2 sequence(s) at once")
    assert_same(found, sweep(gpt2, text, batch_tokens=48))


def remote(module=None, device="cuda", **known):
    model = open_model(module or tiny("llama"))
    backend = StrictBackend(model.traced)
    vars(backend).update({"room": Room(GB), "reports": [], "limits": Limits()} | known)
    identity = model.identity | {"device": device}
    return replace(model, identity=identity, request={"backend": backend})


def chosen(model, names=("drop", "swap"), length=12, **asked):
    settings = preparation.SweepSettings(names)
    schedules, _, _ = preparation.lay_out_schedules(model, settings)
    division = preparation.divide(model, schedules)
    reads = Reads(length - 2, diverges=True)
    run = server_sizes._Run(model, division, length, reads, asked.get("cap"))
    return server_sizes.choose(model, division, length, reads, **asked), run


def test_budgets_are_the_users_or_follow_from_what_the_server_says():
    assert budget_for(remote()) == Budget(0.6 * GB, 60.0)
    assert budget_for(remote(room=Room(GB, seconds=30.0))).seconds == 15.0
    assert budget_for(remote(room=Room(GB, seconds=900.0))).seconds == 60.0
    mine = Limits(memory=5.0, seconds=7.0)
    assert budget_for(remote(limits=mine, room=Room(GB, seconds=1.0))) == Budget(5.0, 7.0)
    # What the server reports is worth more than what was computed, unless it cannot be true.
    reports = [Report(1.0, None, GB // 2), Report(1.0, None, None), Report(1.0, None, -5)]
    assert budget_for(remote(reports=reports)).memory_bytes == 0.3 * GB
    assert budget_for(remote(room=None)) is None
    # A block may be too much on one of several cards.
    model = remote(room=Room(GB, cards=2))
    block = 8 * max(model.block_parameters)
    assert budget_for(model).memory_bytes == 0.6 * (GB - block)


@pytest.mark.slow
def test_sizes_stay_within_the_budget_and_more_room_never_means_less():
    texts, calls = [], []
    for free in (10**5, 10**6, 10**7, 10**8, GB):
        model = remote(limits=Limits(memory=float(free), seconds=60.0))
        sizes, run = chosen(model)
        texts.append(sizes.text)
        calls.append(sizes.text * sizes.call)
        if sizes.text > 8:
            assert budget_for(model).allows(run.cost(sizes, 1000))
    assert texts == sorted(texts) and calls == sorted(calls) and texts[0] < texts[-1] == 8192


@pytest.mark.slow
def test_schedules_are_divided_where_one_sequence_takes_too_long():
    alone, run = chosen(remote(), ("drop-pair", "swap-pair"))
    assert alone.requests == 1
    seconds = run.cost(Sizes(8, 8)).seconds
    model = remote(limits=Limits(seconds=seconds / 4))
    sizes, run = chosen(model, ("drop-pair", "swap-pair"))
    assert 4 < sizes.requests < len(run.division.schedules)
    assert run.cost(sizes, 1000).seconds <= seconds / 4
    # Where even one schedule takes more, each has a request of its own.
    sizes, run = chosen(remote(limits=Limits(seconds=seconds / 1e6)))
    assert sizes.requests == len(run.division.schedules)
    # Memory that one schedule exceeds is no reason to divide them.
    sizes, _ = chosen(remote(limits=Limits(memory=10.0)))
    assert sizes.requests == 1


def test_what_the_user_asks_for_holds_and_a_processor_has_its_own_sizes():
    sizes, _ = chosen(remote(), text=50, cap=3)
    assert sizes.text == 50
    assert chosen(remote(device="cpu"))[0] == ON_CPU
    assert chosen(remote(room=None))[0] == ON_SERVER


@pytest.mark.slow
def test_requests_are_recorded_for_servers_alone(gpt2):
    backend = StrictBackend(gpt2.traced)
    backend.room, backend.reports, backend.limits = Room(GB), [], Limits(seconds=6e-6)
    there = replace(gpt2, request={"backend": backend})
    text = corpus(2)
    found = sweep(there, text)
    here = sweep(gpt2, text)
    assert found.requests_per_batch > 1 and found.batch_tokens < 24
    assert len(backend.received) >= 2 * found.requests_per_batch
    assert "requests_per_batch" not in here.attrs
    assert_same(found, here)
