from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import BLOCKS, LAYERS, tiny
from test_execution import corpus
from torch.utils.flop_counter import FlopCounterMode, sdpa_flop_count

from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions
from robustness.schedules import clean, reverse
from robustness.schedules.plan import compile_plan
from robustness.sweeps import calibration, sweep
from robustness.sweeps.cost import describe, estimate
from robustness.sweeps.live_bytes import LiveBytes
from robustness.sweeps.preparation import prepare
from robustness.sweeps.settings import READOUT_NAMES, SweepSettings

ASKED = {"batch_tokens": 36, "state_cap": 3}


def prepared(model, text, names=None, *, schedules=(), readouts=READOUT_NAMES, **options):
    settings = SweepSettings(names, schedules=schedules, readouts=readouts)
    return prepare(model, text, settings, RunOptions(**options))


def attention(query, key, value, *_, out_val=None, **__):
    return sdpa_flop_count(query, key, value)


def products(run):
    """Floating-point operations of matrix products while something runs, as torch counts them.

    Without `bmm`, by which rotary embeddings multiply positions and frequencies, once in a batch.
    """
    # What attention calls on a CPU, torch does not count.
    own = {torch.ops.aten._scaled_dot_product_flash_attention_for_cpu: attention}
    with FlopCounterMode(display=False, custom_mapping=own) as counter:
        run()
    found = counter.get_flop_counts()["Global"]
    return sum(count for op, count in found.items() if op != torch.ops.aten.bmm)


def counted(plain, run):
    """Calls of blocks and the sequences in them, by hooks, while something runs."""
    seen = Counter()

    def note(_module, args, kwargs):
        hidden = args[0] if args else kwargs["hidden_states"]
        seen.update(calls=1, applications=len(hidden))

    hooks = [
        block.register_forward_pre_hook(note, with_kwargs=True)
        for block in plain.get_submodule(BLOCKS[plain.config.model_type])
    ]
    run()
    for hook in hooks:
        hook.remove()
    return seen


def run_once(plain, run):
    """What is `counted` while something runs, and its `products`."""
    seen = Counter()
    flops = products(lambda: seen.update(counted(plain, run)))
    return seen, flops


@pytest.mark.slow
@pytest.mark.parametrize("names", [("drop", "swap"), ("repeat-2", "reverse-3", "skip-2")])
def test_counts_are_those_of_a_real_run(family, names):
    plain = tiny(family)
    opened = open_model(plain)
    text = corpus(sequences=7)
    found = estimate(prepared(opened, text, names, **ASKED))
    seen, flops = run_once(plain, lambda: sweep(opened, text, names, **ASKED))
    assert (found.block_calls, found.block_applications) == (seen["calls"], seen["applications"])
    assert found.block_flops + found.head_flops == flops
    assert (found.sequences, found.tokens, found.batches) == (7, 84, 3)


@pytest.mark.slow
def test_sublayers_and_blocks_on_one_input_are_counted(family):
    plain, names = tiny(family), ("attention-drop", "mlp-drop", "parallel-2")
    work = prepared(open_model(plain), corpus(sequences=5), names, **ASKED)
    found = estimate(work)
    # What finds the sublayers has run, and is not counted.
    seen, flops = run_once(plain, lambda: sweep(work.model, corpus(sequences=5), names, **ASKED))
    assert (found.block_calls, found.block_applications) == (seen["calls"], seen["applications"])
    assert found.block_flops + found.head_flops == flops
    assert found.sublayer_calls == 2 * 2 * LAYERS
    assert (
        "8 of attentions and MLPs alone"
        in dict(describe(replace(found, sublayer_calls=8)))["block calls"]
    )


def test_free_schedules_and_texts_of_several_lengths_are_counted_too(gpt2):
    text = corpus(sequences=6, lengths=[12, 7, 3, 12, 9, 5])
    schedules = [reverse(clean(LAYERS)), (2, 2)]
    found = estimate(prepared(gpt2, text, schedules=schedules, **ASKED))
    flops = products(lambda: sweep(gpt2, text, schedules=schedules, **ASKED))
    assert found.block_flops + found.head_flops == flops


@pytest.mark.slow
@pytest.mark.parametrize("readouts", [("kl",), ("agreement",)])
def test_a_head_on_a_server_is_counted_as_it_is_read_there(strict_model, readouts):
    text = corpus(sequences=4)
    found = estimate(prepared(strict_model, text, readouts=readouts, **ASKED))
    flops = products(lambda: sweep(strict_model, text, readouts=readouts, **ASKED))
    assert found.block_flops + found.head_flops == flops
    assert found.seconds is None and found.memory_bytes is None
    # What only the server can measure is left out here.
    assert not {"time", "memory at the peak"} & dict(describe(found)).keys()


def test_drop_and_swap_take_the_block_applications_that_are_promised(gpt2):
    found = estimate(prepared(gpt2, corpus(sequences=6), **ASKED))
    assert found.block_applications == 6 * (LAYERS + LAYERS * (LAYERS - 1))


def test_the_states_are_those_of_the_plan(gpt2):
    work = prepared(gpt2, corpus(sequences=7), **ASKED)
    found = estimate(work)
    assert found.states == compile_plan(work.schedules, clean(LAYERS), cap=3).peak
    assert found.state_bytes == found.states * 36 * 32 * 8  # tokens, width, float64


@pytest.mark.slow
@pytest.mark.parametrize("sequences", [5, 400])
def test_the_size_of_the_file_is_foretold(gpt2, tmp_path, sequences):
    text, path = corpus(sequences=sequences), tmp_path / "a.nc"
    found = estimate(prepared(gpt2, text, command="x" * 200))
    sweep(gpt2, text, out=path, command="x" * 200)
    assert found.file_bytes == pytest.approx(path.stat().st_size, rel=0.02)


def test_live_bytes_are_those_of_the_tensors_that_are_there():
    with LiveBytes() as live:
        first = torch.ones(1000, dtype=torch.float64)
        second = first + 1
        view = second[:10]
        del second
        assert live.most == 16_000
        third = torch.ones(500, dtype=torch.float64)
        assert live.most == 20_000, "a view keeps all that it is of"
        del view, third
        first.add_(1)
        fourth = first * 2
        assert live.most == 20_000, "what is gone is not counted"
        assert len(fourth) == 1000


def test_a_batch_takes_the_tensors_that_one_sequence_foretells(gpt2):
    text, matrix = corpus(sequences=8), gpt2.unembedding()
    work = prepared(gpt2, text, batch_tokens=96, state_cap=8)
    plan, most = work.plan(8), {}
    for count in (1, 8):
        with LiveBytes() as live:
            calibration.measure_batch(work, slice(0, count), plan, matrix)
        most[count] = live.most
    alone, all_of_them = (
        calibration.STRIPS_AT_ONCE * calibration.strip_bytes(work, plan, count, 12)
        for count in (1, 8)
    )
    assert (most[1] - alone) * 8 + all_of_them == pytest.approx(most[8], rel=0.2)


@pytest.mark.slow
def test_a_dry_run_prints_what_it_would_cost_and_writes_nothing(run, llama, stories):
    before = sorted(Path().rglob("*"))
    words = ["sweep", llama, "--data", stories, "--context", 32, "--tokens", 640]
    code, out, err = run(*words, "--dry-run")
    assert code == 0, err
    _, *lines = out.splitlines()  # below a line of headings
    rows = dict(line.split("  ", 1) for line in lines)
    assert rows.keys() == {
        "sequences", "batches", "block calls", "block applications", "floating-point operations",
        "states at the peak", "memory at the peak", "file", "time",
    }  # fmt: skip
    assert (
        rows["sequences"].strip() == "20, of 640 tokens"
        and rows["batches"].strip() == "1, of 1,024 tokens or less"
    )
    assert rows["block applications"].strip() == "320, to single sequences"
    assert "calibration" in rows["time"]
    assert sorted(Path().rglob("*")) == before
    code, out, _ = run(*words, "--dry-run", "--shard", "1/2", "--batch-tokens", 320)
    assert "10, of 320 tokens" in out
    code, _, err = run(*words, "--dry-run", "--schedule", "0..9")
    assert code == 1 and "there is no block 9" in err
