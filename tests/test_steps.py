"""Sublayers, blocks on one input, and sweeps over two layers, on models."""

from collections import Counter

import numpy as np
import pytest
import torch
import xarray as xr
from families import BLOCKS, DIFFERENT, LAYERS, random_tokens, rebuilt, tiny
from oracles.surgery import ATTENTIONS
from test_execution import assert_equals_surgery, corpus, reference
from tokenizers_for_tests import word_level

from recipes.views import as_text, draw, table
from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.files.labels import sweep_labels
from robustness.files.sequences import sequence_coords
from robustness.models.opening import open_model
from robustness.models.sublayer_calls import check_schedules
from robustness.reordered.rebuilding import rebuild as rebuild_plain
from robustness.runs import batching, operations
from robustness.runs.remote_traffic import of_plan
from robustness.schedules import Attention, Mlp, Parallel, clean, from_text, to_text
from robustness.schedules.built_in import PAIRS
from robustness.schedules.interventions import schedules as sweep_schedules
from robustness.schedules.plan import compile_plan
from robustness.statistics.paired import difference
from robustness.sweeps import residuals, rewire, sweep
from robustness.trace import changes

SEQUENTIAL = {"gpt2", "llama", "qwen2"}
FACTORS = "0*0.5-*1.3-a1*2-m1*-0.75-(2*1.5+*2+m3*0.5)-*0.8-3"
MIXED = (0, Mlp(2), Parallel((1, 2, Attention(3))), Attention(1), 3, Parallel((2, Parallel((3,)))))


@pytest.mark.slow
def test_pairs_and_spans_equal_surgery_on_the_plain_model(model, plain):
    text = corpus(sequences=2)
    data = sweep(model, text, tuple(PAIRS), batch_tokens=24, state_cap=3)
    named = sweep_schedules(tuple(PAIRS), LAYERS)
    assert data.kl.dims == ("intervention", "layer", "layer_to", "sequence")
    assert_equals_surgery(data, plain, named, text)
    there = {(name, *place) for name, *place in named}
    for name in PAIRS:
        for i, j in np.ndindex(LAYERS, LAYERS):
            here = data.sel(intervention=name, layer=i, layer_to=j)
            fits = (name, i, j) in there
            assert here.kl.notnull().all() == fits and bool(here.schedule.item()) == fits
            assert np.isnan(here.modal_share) == (not fits)


def test_a_pair_of_one_block_is_its_drop_and_a_span_of_one_its_repeat(gpt2):
    text = corpus()
    pairs = sweep(gpt2, text, ("drop-pair", "skip-span", "repeat-span"))
    singles = sweep(gpt2, text, ("drop", "repeat-1"))
    for layer in range(LAYERS):
        here = pairs.kl.sel(layer=layer, layer_to=layer)
        single = singles.kl.sel(layer=layer)
        for pair, alone in (
            ("drop-pair", "drop"), ("skip-span", "drop"), ("repeat-span", "repeat-1"),
        ):  # fmt: skip
            np.testing.assert_allclose(
                here.sel(intervention=pair), single.sel(intervention=alone), atol=1e-12
            )


@pytest.mark.parametrize("room", [1, 3])
def test_groups_of_schedules_change_no_number(gpt2, monkeypatch, room):
    text = corpus()
    whole = sweep(gpt2, text, ("drop-pair", "repeat-span"))
    monkeypatch.setattr(batching, "SCHEDULES_PER_GROUP", room)
    xr.testing.assert_allclose(
        whole, sweep(gpt2, text, ("drop-pair", "repeat-span")), atol=1e-11, rtol=0
    )


@pytest.mark.slow
def test_through_the_strict_backend_every_step_is_the_same(strict_model, plain):
    text = corpus(sequences=3)
    names = ("attention-drop", "mlp-drop", "parallel-2")
    data = sweep(strict_model, text, names, batch_tokens=24, state_cap=3)
    assert_equals_surgery(data, plain, sweep_schedules(names, LAYERS), text)
    data = sweep(strict_model, text, ("drop-pair",), layers=[1, 3], batch_tokens=24)
    assert_equals_surgery(data, plain, sweep_schedules(("drop-pair",), LAYERS, [1, 3]), text)


@pytest.mark.slow
def test_sublayers_of_eager_attention_and_of_sequences_of_different_length(family):
    names = ("attention-drop", "mlp-drop")
    plain = tiny(family, attention="eager")
    text = corpus(lengths=[12, 7, 3, 12, 9])
    data = sweep(open_model(tiny(family, attention="eager")), text, names, batch_tokens=60)
    assert_equals_surgery(data, plain, sweep_schedules(names, LAYERS), text)


@pytest.mark.slow
@pytest.mark.parametrize("family", DIFFERENT)
@pytest.mark.parametrize("attention", ["sdpa", "eager"])
@pytest.mark.parametrize("sequences", [1, 4, 12])
def test_states_that_wait_for_the_same_step_go_through_it_together(family, attention, sequences):
    """What is as long as the batch (heads, tokens, features) is not taken for it."""
    text = corpus(sequences=sequences, length=12)
    opened = open_model(tiny(family, attention=attention))
    together = (Attention(3), Mlp(2), Parallel((Attention(1), 3)))
    schedules = [(first, *together) for first in (0, 1, 2)]
    plan = compile_plan(schedules, clean(LAYERS))
    assert (plan.calls, plan.applications) == (5, 11), "three states in each of three calls"
    whole = sweep(opened, text, schedules=schedules, batch_tokens=1000, state_cap=100)
    alone = sweep(opened, text, schedules=schedules, batch_tokens=1, state_cap=1)
    for metric in ("kl", "loss", "entropy"):
        np.testing.assert_allclose(whole[metric], alone[metric], atol=1e-11)
    plain = tiny(family, attention=attention)
    expected = np.stack([reference(plain, schedule, text)["kl"] for schedule in schedules])
    np.testing.assert_allclose(whole.kl, expected, atol=1e-10)


def test_a_rewired_model_and_its_residuals_are_those_of_surgery(model, plain, family):
    tokens = random_tokens(3, 11)
    surgery = rebuilt(plain, MIXED)
    edited = rewire(model, MIXED)
    with torch.no_grad(), edited.trace(tokens):
        logits = edited.output.logits.save()
    with torch.no_grad():
        expected = surgery(tokens, use_cache=False).logits
        original = plain(tokens, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    with torch.no_grad(), model.traced.trace(tokens):
        untouched = model.traced.output.logits.save()
    torch.testing.assert_close(untouched, original, atol=1e-10, rtol=0)
    states = residuals(model, tokens, MIXED)
    assert states.block.values.tolist() == [-1, 0, 2, 1, 1, 3, 2]
    assert states.executed.values.tolist() == ["", *map(to_text, [(step,) for step in MIXED])]
    head = surgery.get_output_embeddings()
    (norm,) = [
        part
        for part in surgery.get_submodule(BLOCKS[family].rpartition(".")[0]).children()
        if "norm" in type(part).__name__.lower()
    ]
    with torch.no_grad():
        last = head(norm(torch.from_numpy(states[-1].values)))
    torch.testing.assert_close(last, expected, atol=1e-10, rtol=0)


def test_factors_are_those_of_surgery(model, plain):
    text = corpus(sequences=3)
    schedule = from_text(FACTORS, LAYERS)
    data = sweep(model, text, schedules=[schedule, "0..2-3*2"], batch_tokens=24)
    for at, steps in enumerate((schedule, from_text("0..2-3*2", LAYERS))):
        expected = reference(plain, steps, text)
        np.testing.assert_allclose(data.kl[at], expected["kl"], atol=1e-10)
        np.testing.assert_allclose(data.loss[at], expected["loss"], atol=1e-10)
    assert data.schedule.values.tolist() == [FACTORS, "0..2-3*2"]


def test_a_factor_of_1_is_the_step_and_of_0_nothing_and_scales_undo_each_other(model):
    tokens = random_tokens(2, 9)

    def left(text: str) -> np.ndarray:
        return residuals(model, tokens, text).values[-1]

    for factors, same in (("0-1*1-a2*1-3", "0-1-a2-3"), ("0-1*0-a2*0-m2*0-3", "0-3")):
        assert np.array_equal(left(factors), left(same))
    np.testing.assert_allclose(left("0-*1.7-*0.5882352941176471-1"), left("0-1"), atol=1e-12)
    # What precedes a norm may be scaled; the sum of a block and its negative is the stream.
    np.testing.assert_allclose(left("0-(1*3+1*-1)"), left("0-1"), atol=1e-12)
    states = residuals(model, tokens, "0-*2-a1*2")
    assert states.block.values.tolist() == [-1, 0, -1, 1]
    assert states.executed.values.tolist() == ["", "0", "*2", "a1*2"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("factor", [0.3, -0.7, 1.3])
def test_factors_of_half_precision_are_rounded_once(dtype, factor):
    torch.manual_seed(0)
    hidden, other = torch.randn(2, 1000).to(dtype)
    h, o = hidden.double(), other.double()
    for made, exact in (
        (changes.times(hidden, factor), factor * h),
        (changes.part_way(hidden, other, factor), h + factor * (o - h)),
        (changes.plus_times(hidden, other, factor), h + factor * o),
    ):
        digit = torch.finfo(dtype).eps * 2.0 ** exact.abs().clamp(min=1e-3).log2().floor()
        assert made.dtype == dtype
        assert ((made.double() - exact).abs() / digit).max() < 0.51


def test_factors_and_maps_are_counted(gpt2):
    schedules = [from_text(text, LAYERS) for text in ("0-*2-~1..2-m0~1-3", "0-a1*2-(2*0.5+*3)-3")]
    plan = compile_plan(schedules, clean(LAYERS))
    # *2, ~1..2, m0~1 and 3; a1*2, the two on one input, and 3.
    assert (plan.applications, plan.block_calls, plan.sublayer_calls) == (7, 3, 2)
    width, parameters = gpt2.width, gpt2.sublayer_parameters
    blocks = sum(operations.clean_flops(gpt2, 2, 8)) + sum(
        operations.clean_flops(gpt2, 2, 8)[layer] for layer in (3, 2, 3)
    )
    pattern = operations.pattern_flops(gpt2, 2, 8)
    sublayers = 2 * 16 * (parameters[0][1] + parameters[1][0]) + pattern
    expected = blocks + sublayers + 2 * (2 * 16 * width**2)
    assert operations.block_flops(gpt2, plan, 2, 8) == expected


@pytest.mark.slow
@pytest.mark.parametrize("family", ["llama"], scope="session")
def test_factors_travel_and_generate(strict_model, plain):
    text = corpus(sequences=3)
    schedule = from_text(FACTORS, LAYERS)
    data = sweep(strict_model, text, schedules=[schedule, "0-*2-1-3"], batch_tokens=24)
    np.testing.assert_allclose(data.kl[0], reference(plain, schedule, text)["kl"], atol=1e-10)
    prompt = random_tokens(1, 5)
    options = {"max_new_tokens": 5, "do_sample": False, "use_cache": False, "pad_token_id": 0}
    opened = open_model(plain)
    with torch.no_grad(), rewire(opened, schedule).generate(prompt, **options) as tracer:
        found = tracer.result.save()
    mask = torch.ones_like(prompt)
    expected = rebuilt(plain, schedule).generate(prompt, attention_mask=mask, **options)
    assert found.tolist() == expected.tolist()


def test_a_rewired_model_of_sublayers_generates(model, plain):
    schedule, prompt = (0, Attention(1), Mlp(3), 2, Mlp(1)), random_tokens(1, 5)
    edited = rewire(model, schedule)
    options = {"max_new_tokens": 5, "do_sample": False, "use_cache": False, "pad_token_id": 0}
    with torch.no_grad(), edited.generate(prompt, **options) as tracer:
        found = tracer.result.save()
    mask = torch.ones_like(prompt)
    expected = rebuilt(plain, schedule).generate(prompt, attention_mask=mask, **options)
    assert found.tolist() == expected.tolist()


@pytest.mark.slow
def test_rewire_and_residuals_of_every_step_travel(strict_model, plain):
    tokens = random_tokens(2, 9)
    with torch.no_grad():
        expected = rebuilt(plain, MIXED)(tokens, use_cache=False).logits
    edited = rewire(strict_model, MIXED)
    with torch.no_grad(), edited.trace(tokens, backend=strict_model.request["backend"]):
        logits = edited.output.logits.save()
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    here = residuals(open_model(plain), tokens, MIXED)
    np.testing.assert_allclose(residuals(strict_model, tokens, MIXED), here, atol=1e-12)


def test_a_block_is_its_sublayers_one_after_the_other_or_side_by_side(model, family):
    """In a parallel block both read what enters: their mean, twice as far from it, is the block."""
    tokens = random_tokens(2, 9)
    for layer in range(LAYERS):
        entering, whole = residuals(model, tokens, (layer,)).values
        after = residuals(model, tokens, (Attention(layer), Mlp(layer))).values[-1]
        beside = residuals(model, tokens, (Parallel((Attention(layer), Mlp(layer))),)).values[-1]
        sequential = abs(after - whole).max() < 1e-12
        parallel = abs(2 * beside - entering - whole).max() < 1e-12
        assert (sequential, parallel) == (family in SEQUENTIAL, family not in SEQUENTIAL), layer


def test_blocks_on_one_input_are_averaged(model):
    tokens = random_tokens(2, 9)
    states = residuals(model, tokens, (0, Parallel((1, 2, 3)))).values
    apart = [residuals(model, tokens, (0, layer)).values[-1] for layer in (1, 2, 3)]
    np.testing.assert_allclose(states[-1], sum(apart) / 3, atol=1e-12)
    for step in (Parallel((2,)), Parallel((2, 2)), Parallel((Parallel((2, 2)), 2))):
        alone = residuals(model, tokens, (0, step)).values
        np.testing.assert_allclose(alone[-1], apart[1], atol=1e-12)


def test_a_real_run_calls_blocks_and_sublayers_exactly_as_often_as_the_plan_says(family):
    plain = tiny(family)
    names = ("attention-drop", "mlp-drop", "parallel-3", "drop")
    named = sweep_schedules(names, LAYERS)
    opened = open_model(plain)
    check_schedules(opened, list(named.values()))
    called = Counter()

    def count(part: torch.nn.Module, kind: str) -> None:
        part.register_forward_pre_hook(
            lambda _, args, kwargs: called.update(
                {kind: len(args[0] if args else kwargs["hidden_states"])}
            ),
            with_kwargs=True,
        )

    for block in plain.get_submodule(BLOCKS[family]):
        count(block, "block")
        for name, part in block.named_children():
            if name in ("mlp", *ATTENTIONS):
                count(part, "sublayer")
    sweep(opened, corpus(sequences=4), names, batch_tokens=24)
    plan = compile_plan(list(named.values()), clean(LAYERS))
    assert called["block"] == 4 * (LAYERS + plan.block_calls)
    assert called["sublayer"] == 2 * called["block"] + 4 * plan.sublayer_calls
    # Drop and both its halves; and two spans of three blocks, the first before one more.
    assert plan.block_calls == 3 * LAYERS * (LAYERS - 1) // 2 + 2 * 3 + 1
    assert plan.sublayer_calls == 2 * LAYERS


OTHERS = ("bloom", "cohere", "falcon", "gemma", "gemma2", "granite", "mpt", "olmo2", "opt")
"""Families with parallel sublayers, norms behind them, factors, or sums of their own."""


@pytest.mark.parametrize("family", OTHERS)
def test_other_families_equal_surgery(family):
    """Outputs are zeroed after the norm that some families put behind a sublayer."""
    names, text = ("attention-drop", "mlp-drop"), corpus(sequences=2)
    net = tiny(family, torch.float64)
    data = sweep(open_model(tiny(family, torch.float64)), text, names)
    for (name, layer), schedule in sweep_schedules(names, LAYERS).items():
        with torch.no_grad():
            before, after = (
                torch.log_softmax(each(torch.from_numpy(text.tokens), use_cache=False).logits, -1)
                for each in (net, rebuilt(net, schedule))
            )
        kl = (before.exp() * (before - after)).sum(-1)[:, 1:-1].mean(-1)
        assert kl.min() > 1e-6
        np.testing.assert_allclose(data.kl.sel(intervention=name, layer=layer), kl, atol=1e-10)


def test_a_family_that_norms_its_sums_is_refused_before_anything_is_measured(tmp_path):
    normed = open_model(tiny("opt-350m", torch.float64))
    with pytest.raises(Refusal, match=r"m0 cannot be executed alone: OPT.*found in 0 of 4 blocks"):
        sweep(normed, corpus(), ("attention-drop",), out=tmp_path / "a.nc")
    with pytest.raises(Refusal, match="a2 cannot be executed alone"):
        rewire(normed, (0, Parallel((1, Attention(2)))))
    with pytest.raises(Refusal, match="m1 cannot be executed alone"):
        residuals(normed, random_tokens(1, 5), (0, Mlp(1)))
    assert not list(tmp_path.iterdir())
    assert residuals(normed, random_tokens(1, 5), (Parallel((0, 1)),)).notnull().all()
    assert sweep(normed, corpus(), ("drop", "parallel-2")).kl.sel(layer=0).notnull().all()


def test_schedules_of_ones_own_take_every_step(gpt2):
    own = [(0, Mlp(1), 2, 3), (Parallel((0, 1)), 2, 3)]
    data = sweep(gpt2, corpus(), schedules=own)
    assert data.schedule.values.tolist() == ["0-m1-2-3", "(0+1)-2-3"]
    named = sweep(gpt2, corpus(), ("attention-drop", "parallel-2")).kl
    np.testing.assert_allclose(
        data.kl[0], named.sel(intervention="attention-drop", layer=1), atol=1e-12
    )
    np.testing.assert_allclose(
        data.kl[1], named.sel(intervention="parallel-2", layer=0), atol=1e-12
    )


@pytest.mark.slow
def test_a_sweep_over_two_layers_is_resumed_and_some_layers_restrict_both(gpt2, tmp_path):
    path, done = tmp_path / "pairs.nc", []

    def stop(count: int, _total: int) -> None:
        done.append(count)
        if len(done) == 3:
            raise KeyboardInterrupt

    options = {"layers": [0, 3], "batch_tokens": 12, "out": path}
    names = ("drop-pair", "swap-pair")
    with pytest.raises(KeyboardInterrupt):
        sweep(gpt2, corpus(), names, progress=stop, **options)
    assert "layer" in as_text(table(netcdf.load(tmp_path / "pairs.partial.nc")))
    data = sweep(gpt2, corpus(), names, progress=stop, **options)
    assert done[3] == 2
    xr.testing.assert_identical(data, netcdf.load(path))
    whole = sweep(gpt2, corpus(), names, batch_tokens=12)
    assert data.sizes == {"intervention": 2, "layer": 2, "layer_to": 2, "sequence": 5}
    assert data.layer.values.tolist() == data.layer_to.values.tolist() == [0, 3]
    xr.testing.assert_allclose(data.kl, whole.kl.sel(layer=[0, 3], layer_to=[0, 3]), atol=1e-12)
    assert data.attrs["measurement"] == "pairs" and data.attrs["layers"] == "0, 3"
    with pytest.raises(Refusal, match=r"was made with interventions drop-pair, swap-pair, not"):
        sweep(gpt2, corpus(), ("drop-pair",), **options)


@pytest.mark.slow
def test_sweeps_over_two_layers_are_heat_maps_and_their_table_the_least_and_most_changed(gpt2):
    data = sweep(gpt2, corpus(), tuple(PAIRS))
    figure = draw(data)
    images = [axis.images[0] for axis in figure.axes if axis.images]
    assert len(images) == 2 * len(PAIRS), "KL and agreement of each"
    shown = np.ma.masked_invalid(np.asarray(images[0].get_array()))
    # Drawn with the first layer across, and the second upwards.
    mean = data.kl.isel(intervention=0).mean("sequence").transpose("layer_to", "layer")
    np.testing.assert_allclose(shown.filled(np.nan), mean, atol=1e-12)
    text = as_text(table(data))
    for name, both in (("drop-pair", "two layers"), ("repeat-span", "several layers")):
        assert f"{name}, {both}: all 6 by kl" in text
        assert f"{name}, one layer alone: all 4 by kl" in text
    mean = data.kl.sel(intervention="drop-pair").mean("sequence")
    alone = xr.DataArray(np.diagonal(mean), dims="layer")
    mean = mean.where(mean.layer != mean.layer_to)
    best = mean.argmin(("layer", "layer_to"))
    row = text.partition("drop-pair, two layers: all 6 by kl")[2].splitlines()[2].split()
    assert row[0] == f"{int(best['layer'])},{int(best['layer_to'])}"
    assert row[1] == f"{float(mean.min()):.3f}"
    sum_of_both = float(alone[best["layer"]] + alone[best["layer_to"]])
    assert float(row[3]) == pytest.approx(float(mean.min()) - sum_of_both, abs=1e-3)
    assert row[-1] == data.schedule.sel(intervention="drop-pair").isel(best).item()


def test_a_table_of_many_pairs_keeps_to_the_least_and_the_most_changed():
    layers, names = 9, ["drop-pair"]
    named = sweep_schedules(names, layers)
    labels = sweep_labels(named, layers)
    random = np.random.default_rng(0).random((len(named), 6))
    data = xr.Dataset(
        {name: ((*labels.dims, "sequence"), labels.spread(random)) for name in ("agreement",)},
        {**labels.coords, **sequence_coords(np.arange(6))},
        {"measurement": "pairs", "model": "x", "architecture": "X", "context": 8},
    )
    text = as_text(table(data))
    ranked = sorted(zip(random.mean(1), named, strict=True))
    both = [each for each in ranked if each[1][1] != each[1][2]]
    alone = [each for each in ranked if each not in both]
    for heading, rows in (
        ("drop-pair, two layers: 10 of 36, with the lowest agreement", both[:10]),
        ("drop-pair, two layers: 10 of 36, with the highest agreement", both[:-11:-1]),
        ("drop-pair, one layer alone: all 9 by agreement", alone),
    ):
        lines = text.partition(heading)[2].splitlines()[2 : 2 + len(rows)]
        assert [line.split()[0] for line in lines] == [f"{i},{j}" for _, (_, i, j) in rows]


def test_sweeps_over_two_layers_are_taken_less_one_another(gpt2):
    data = sweep(gpt2, corpus(), ("drop-pair", "skip-span", "swap-pair"))
    less = difference(data, "swap-pair")
    both = (data.kl.sel(intervention=name).mean("sequence") for name in ("drop-pair", "swap-pair"))
    expected = next(both) - next(both)
    (image, *_) = [axis.images[0] for axis in draw(less).axes if axis.images]
    shown = np.ma.masked_invalid(np.asarray(image.get_array())).filled(np.nan)
    np.testing.assert_allclose(shown, expected.transpose("layer_to", "layer"), atol=1e-12)
    assert image.norm.vmin == -image.norm.vmax, "zero is in the middle"
    assert "drop-pair, two layers: all 6 by kl" in as_text(table(less)), "where both fit"


def test_what_crosses_a_sandboxs_socket_grows_with_what_is_called(gpt2):
    """A sublayer is called behind its norm, and every one of several blocks."""
    costs = {}
    for name, schedule in {
        "block": (Parallel((3,)),), "sublayer": (Mlp(3),), "three": (Parallel((1, 2, 3)),),
    }.items():  # fmt: skip
        plan = compile_plan([schedule], clean(LAYERS))
        costs[name] = of_plan(gpt2, plan, 24, 24, 1)
    assert costs["sublayer"].calls - costs["block"].calls == 1
    assert costs["three"].calls - costs["block"].calls == 2
    state = costs["sublayer"].bytes - costs["block"].bytes
    assert costs["three"].bytes - costs["block"].bytes == 2 * state > 0


def test_a_checkpoint_is_of_whole_blocks_alone(gpt2):
    with pytest.raises(Refusal, match="a1 is no whole block: a checkpoint is made of whole"):
        rebuild_plain(gpt2, (0, Attention(1), 2, 3))


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_weights_that_are_offloaded_are_loaded_for_sublayers_too(family, tmp_path):
    tiny(family).save_pretrained(tmp_path)
    word_level(101).save_pretrained(tmp_path)
    names, text = ("attention-drop", "mlp-drop", "parallel-2"), corpus(sequences=2)
    data = sweep(open_model(tmp_path, dtype="auto", device_map="disk"), text, names)
    expected = sweep(open_model(tmp_path, dtype="auto"), text, names)
    for metric in ("kl", "loss", "entropy"):
        xr.testing.assert_equal(data[metric], expected[metric])
