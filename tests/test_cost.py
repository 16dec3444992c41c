from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from families import BLOCKS, LAYERS, tiny
from test_execution import corpus
from torch.utils.flop_counter import FlopCounterMode

from robustness import cost, results
from robustness.cost import describe, estimate
from robustness.execution import lay_out, sweep
from robustness.model import open_model
from robustness.plan import compile_plan
from robustness.schedule import clean, reverse

ASKED = {"batch_tokens": 36, "cap": 3}


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


@pytest.mark.parametrize("names", [("drop", "swap"), ("repeat-2", "reverse-3", "skip-2")])
def test_counts_are_those_of_a_real_run(family, names):
    plain = tiny(family)
    opened = open_model(plain)
    text = corpus(sequences=7)
    found = estimate(opened, lay_out(opened, text, names, **ASKED))
    with FlopCounterMode(display=False) as counter:
        seen = counted(plain, lambda: sweep(opened, text, names, **ASKED))
    assert (found.block_calls, found.block_applications) == (seen["calls"], seen["applications"])
    assert found.block_flops + found.head_flops == counter.get_total_flops()
    assert (found.sequences, found.tokens, found.batches) == (7, 84, 3)


def test_free_schedules_and_texts_of_several_lengths_are_counted_too(gpt2):
    text = corpus(sequences=6, lengths=[12, 7, 3, 12, 9, 5])
    schedules = [reverse(clean(LAYERS)), (2, 2)]
    found = estimate(gpt2, lay_out(gpt2, text, schedules=schedules, **ASKED))
    with FlopCounterMode(display=False) as counter:
        sweep(gpt2, text, schedules=schedules, **ASKED)
    assert found.block_flops + found.head_flops == counter.get_total_flops()


@pytest.mark.parametrize("readouts", [("kl",), ("agreement",)])
def test_a_head_that_must_be_called_is_counted_as_it_is_called(strict_model, readouts):
    text = corpus(sequences=4)
    found = estimate(strict_model, lay_out(strict_model, text, readouts=readouts, **ASKED))
    with FlopCounterMode(display=False) as counter:
        sweep(strict_model, text, readouts=readouts, **ASKED)
    assert found.block_flops + found.head_flops == counter.get_total_flops()
    assert found.seconds is None and found.memory_bytes is None
    assert dict(describe(found))["minutes"] == "known to the server alone"


def test_drop_and_swap_take_the_block_applications_that_are_promised(gpt2):
    found = estimate(gpt2, lay_out(gpt2, corpus(sequences=6), **ASKED))
    assert found.block_applications == 6 * (LAYERS + LAYERS * (LAYERS - 1))


def test_the_states_are_those_of_the_plan(gpt2):
    work = lay_out(gpt2, corpus(sequences=7), **ASKED)
    found = estimate(gpt2, work)
    assert found.states == compile_plan(work.runs, clean(LAYERS), cap=3).peak
    assert found.state_bytes == found.states * 36 * 32 * 8  # tokens, width, float64


@pytest.mark.parametrize("sequences", [5, 400])
def test_the_size_of_the_file_is_foretold(gpt2, tmp_path, sequences):
    text, path = corpus(sequences=sequences), tmp_path / "a.nc"
    found = estimate(gpt2, lay_out(gpt2, text, command="x" * 200))
    sweep(gpt2, text, out=path, command="x" * 200)
    assert found.file_bytes == pytest.approx(path.stat().st_size, rel=0.02)


def test_live_bytes_are_those_of_the_tensors_that_are_there():
    with cost._Live() as live:
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


def test_what_memory_is_foretold_grows_with_the_batch(gpt2):
    def foretold(sequences):
        text = replace(corpus(sequences=8))
        work = lay_out(gpt2, text, batch_tokens=12 * sequences, cap=8)
        matrix = gpt2.unembedding()
        live = cost._Live()
        with live:
            one = text.part(slice(0, sequences))
            cost.measure(gpt2, one, slice(0, sequences), work.plan(8), matrix, work.divergences)
        alone = cost._piece_bytes(gpt2, work, work.plan(8), 1, 12)
        return live.most - cost.STRIPS * alone

    assert foretold(8) > 4 * foretold(1) > 0


def test_a_dry_run_prints_what_it_would_cost_and_writes_nothing(run, llama, stories):
    before = sorted(Path().rglob("*"))
    words = ["sweep", llama, "--data", stories, "--context", 32, "--tokens", 640]
    code, out, err = run(*words, "--dry-run")
    assert code == 0, err
    rows = dict(line.split("  ", 1) for line in out.splitlines())
    assert rows.keys() == {
        "sequences", "block calls", "block applications", "floating-point operations",
        "states at the peak", "memory at the peak", "file", "minutes",
    }  # fmt: skip
    assert rows["sequences"].strip() == "20 of 640 tokens in 1 batches"
    assert rows["block applications"].strip() == "320, to single sequences"
    assert "calibration" in rows["minutes"]
    assert sorted(Path().rglob("*")) == before
    code, out, _ = run(*words, "--dry-run", "--shard", "1/2", "--batch-tokens", 320)
    assert "10 of 320 tokens" in out
    code, _, err = run(*words, "--dry-run", "--schedule", "0..9")
    assert code == 1 and "there is no block 9" in err
    assert results.SCHEMA
