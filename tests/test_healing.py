"""Fitted scales and maps: against NumPy on states of plain transformers, and by laws."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from families import BLOCKS, LAYERS, random_tokens, tiny
from test_execution import corpus

from robustness.errors import Refusal
from robustness.healing import HEALINGS, fit, heal, size_ratios
from robustness.healing.capture import Captured, held_out
from robustness.healing.cuts import cuts
from robustness.healing.least_squares import Sums, choose_ridge
from robustness.healing.scales import Products
from robustness.models.maps import Maps
from robustness.models.opening import open_model
from robustness.schedules import Mapped, Mlp, StreamMap, StreamScale, from_text, to_text
from robustness.sweeps import residuals, rewire, sweep

SEQUENTIAL = {"gpt2", "llama", "qwen2"}


def plain_states(net, path, tokens):
    """Return what enters every block of a plain model, and what leaves the last, by hooks."""
    seen = []
    handles = [
        block.register_forward_pre_hook(
            lambda _, args, kwargs: seen.append(args[0] if args else kwargs["hidden_states"]),
            with_kwargs=True,
        )
        for block in net.get_submodule(path)
    ]
    last = net.get_submodule(path)[-1]
    out = []
    handles.append(last.register_forward_hook(lambda _m, _a, made: out.append(made)))
    with torch.no_grad():
        net(tokens, use_cache=False)
    for handle in handles:
        handle.remove()
    final = out[0][0] if isinstance(out[0], tuple) else out[0]
    return [state.numpy() for state in (*seen, final)]


def rows_of(states, weights=None):
    """Return all tokens of all sequences, each times the root of its weight."""
    flat = states.reshape(-1, states.shape[-1])
    return flat if weights is None else flat * weights[:, None]


def test_a_map_without_a_ridge_is_the_weighted_least_squares_solution(model, plain, family):
    text = corpus(sequences=24, length=9)
    states = plain_states(plain, BLOCKS[family], torch.from_numpy(text.tokens))
    entering, behind = rows_of(states[1]), rows_of(states[3])
    root = 1 / np.linalg.norm(behind, axis=1, keepdims=True)
    columns = np.hstack([entering, np.ones((len(entering), 1))])
    found = np.linalg.lstsq(columns * root, behind * root, rcond=None)[0]
    maps = fit(model, text, ["~1..2"], ridges=[0.0])
    step = StreamMap(1, 2)
    np.testing.assert_allclose(maps.matrices[step], found[:-1], atol=1e-7)
    np.testing.assert_allclose(maps.offsets[step], found[-1], atol=1e-7)
    # The law of least squares: what is left is orthogonal to what it was fitted from.
    left = (columns @ found - behind) * root
    ours = (entering @ maps.matrices[step].numpy() + maps.offsets[step].numpy() - behind) * root
    np.testing.assert_allclose((columns * root).T @ ours, 0, atol=1e-8)
    np.testing.assert_allclose(np.linalg.norm(ours), np.linalg.norm(left), rtol=1e-9)


def test_a_map_of_what_the_block_before_adds_is_least_squares_too(model, plain, family):
    text = corpus(sequences=24, length=9)
    states = plain_states(plain, BLOCKS[family], torch.from_numpy(text.tokens))
    name = "a0-m0~1..2-3" if family in SEQUENTIAL else "0~1..2-3"
    *before, step, _ = from_text(name, LAYERS)
    # What attention alone has left, where the MLP is what is mapped.
    stream = residuals(model, text.tokens, tuple(before)).values[-1] if before else states[0]
    added = rows_of(states[1]) - rows_of(stream)
    wanted = rows_of(states[3]) - rows_of(stream)
    root = 1 / np.linalg.norm(rows_of(states[3]), axis=1, keepdims=True)
    found = np.linalg.lstsq(added * root, wanted * root, rcond=None)[0]
    maps = fit(model, text, [step], ridges=[0.0])
    np.testing.assert_allclose(maps.matrices[step], found, atol=1e-6)
    assert step not in maps.offsets


def test_maps_in_a_schedule_are_products_with_their_matrices(model, plain, family):
    tokens = random_tokens(2, 7)
    generator = torch.Generator().manual_seed(0)
    matrices = {
        step: torch.randn(32, 32, generator=generator).double()
        for step in (StreamMap(1, 2), Mapped(0, 1, 1), Mapped(Mlp(3), 2, 2))
    }
    offset = torch.randn(32, generator=generator).double()
    carrying = model.with_maps(Maps(matrices, {StreamMap(1, 2): offset}))
    states = plain_states(plain, BLOCKS[family], tokens)
    mapped = residuals(carrying, tokens, "0-~1..2").values[-1]
    expected = states[1] @ matrices[StreamMap(1, 2)].numpy() + offset.numpy()
    np.testing.assert_allclose(mapped, expected, atol=1e-10)
    mapped = residuals(carrying, tokens, "0~1").values[-1]
    expected = states[0] + (states[1] - states[0]) @ matrices[Mapped(0, 1, 1)].numpy()
    np.testing.assert_allclose(mapped, expected, atol=1e-10)
    alone = residuals(model, tokens, "0-m3").values
    mapped = residuals(carrying, tokens, "0-m3~2").values[-1]
    expected = alone[1] + (alone[2] - alone[1]) @ matrices[Mapped(Mlp(3), 2, 2)].numpy()
    np.testing.assert_allclose(mapped, expected, atol=1e-10)


def test_a_block_that_is_linear_is_replaced_exactly():
    net = tiny("gpt2")
    block = net.get_submodule(BLOCKS["gpt2"])[2]
    with torch.no_grad():
        # Attention adds nothing, and the MLP the same vector everywhere: h -> h + b.
        block.attn.c_proj.weight.zero_()
        block.mlp.c_proj.weight.zero_()
        block.mlp.c_proj.bias.copy_(torch.linspace(-1, 1, 32))
    opened = open_model(net)
    maps = fit(opened, corpus(sequences=24), ["~2"])
    data = sweep(opened.with_maps(maps), corpus(sequences=4), schedules=["0-1-~2-3", "0-1-3"])
    assert data.kl[0].max() < 1e-12 < 1e-4 < data.kl[1].max()


def test_the_scale_is_the_weighted_least_squares_solution(model, plain, family):
    text = corpus(sequences=6, length=9)
    states = plain_states(plain, BLOCKS[family], torch.from_numpy(text.tokens))
    entering, behind = rows_of(states[1]), rows_of(states[3])
    root = 1 / np.linalg.norm(behind, axis=1, keepdims=True)
    column, target = (entering * root).reshape(-1, 1), (behind * root).reshape(-1)
    (found,) = np.linalg.lstsq(column, target, rcond=None)[0]
    healed = heal(model, "0-3", text, ["scale"])
    assert healed.schedules["scale"] == (0, StreamScale(float(f"{found:.5g}")), 3)


def test_a_stream_that_grows_at_right_angles_to_itself_keeps_its_scale_and_not_its_size():
    """Behind a span is f h + g, where g is orthogonal to h: least squares find f alone."""
    before = torch.zeros(5, 8).double()
    before[:, :4] = torch.randn(5, 4, generator=torch.Generator().manual_seed(0)).double()
    behind = 0.85 * before + before.roll(4, dims=1)
    products, weights = Products(), torch.linspace(1, 2, 5).double()
    for rows in (slice(0, 2), slice(2, 5)):
        products.add(Captured(before[rows], None, behind[rows]), weights[rows])
    assert products.scale == 0.85 and float(behind.norm() / before.norm()) > 1.3


def test_the_size_ratio_is_the_mean_ratio_of_mean_sizes(gpt2):
    text = corpus(sequences=6, length=9)
    states = plain_states(tiny("gpt2"), BLOCKS["gpt2"], torch.from_numpy(text.tokens))
    ratio = np.abs(states[2]).mean(1) / np.abs(states[1]).mean(1)
    first, second = size_ratios(gpt2, "0-2", text, batch_tokens=27)[1:4:2]
    assert first == StreamScale(float(f"{ratio.mean():.5g}"))
    # The second span's is that of the stream which the first leaves.
    entering = residuals(gpt2, text.tokens, (0, first, 2)).values[-1]
    ratio = np.abs(states[4]).mean(1) / np.abs(entering).mean(1)
    assert second == StreamScale(float(f"{ratio.mean():.5g}"))


def test_all_spans_are_healed_and_what_is_impossible_has_a_reason(model, family):
    text = corpus(sequences=6, length=9)
    told = []
    healed = heal(model, "0-2", text, batch_tokens=27, progress=lambda *done: told.append(done))
    assert told == [(3, 12), (6, 12), (9, 12), (12, 12)], "two passes over six sequences"
    first, second = healed.schedules["scale"][1], healed.schedules["scale"][3]
    assert to_text(healed.schedules["scale"]) == f"0-{first}-2-{second}"
    assert to_text(healed.schedules["map"]) == "0-~1-2-~3"
    folded = "a0-m0~1-a2-m2~3" if family in SEQUENTIAL else "0~1-2~3"
    assert to_text(healed.schedules["fold"]) == folded and not healed.impossible
    rewire(model.with_maps(healed.maps), healed.schedules["fold"])
    assert set(healed.maps.attributes["fitted"].split(", ")) >= {"~1 behind 0"}
    healed = heal(model, "1-2-3", text)
    assert set(healed.schedules) == {"scale", "map"}
    assert healed.impossible == {
        "fold": "no block comes before block 0, and blocks 0 to 0 are removed"
    }


def test_a_later_span_is_fitted_on_the_stream_that_enters_it(gpt2):
    """The second map predicts the clean stream from what the first map and block 2 leave."""
    text = corpus(sequences=24, length=9)
    healed = heal(gpt2, "0-2", text, ["map"], ridges=[0.0])
    carrying = gpt2.with_maps(healed.maps)
    clean = residuals(gpt2, text.tokens).values
    entering = rows_of(residuals(carrying, text.tokens, "0-~1-2").values[-1])
    root = 1 / np.linalg.norm(rows_of(clean[4]), axis=1, keepdims=True)
    columns = np.hstack([entering, np.ones((len(entering), 1))])
    found = np.linalg.lstsq(columns * root, rows_of(clean[4]) * root, rcond=None)[0]
    np.testing.assert_allclose(healed.maps.matrices[StreamMap(3, 3)], found[:-1], atol=1e-6)


def test_a_ridge_is_chosen_on_documents_that_nothing_was_fitted_to():
    generator = torch.Generator().manual_seed(1)
    fitted, other = Sums.empty(20), Sums.empty(20)
    x, noise = (torch.randn(2, 24, 20, generator=generator).double() for _ in range(2))
    for at, sums in enumerate((fitted, other)):
        sums.add(x[at], 0.1 * x[at] + 3 * noise[at], torch.ones(24).double())
    ridges = [0.0, 1e-2, 1.0, 100.0]
    solutions = {}
    for ridge in ridges:
        _, matrix, offset = choose_ridge(fitted, Sums.empty(20), [ridge], offset=True)
        missed = x[1] @ matrix + offset - (0.1 * x[1] + 3 * noise[1])
        solutions[ridge] = float(missed.square().sum())
        assert other.error(matrix, offset) == pytest.approx(solutions[ridge])
    chosen, *_ = choose_ridge(fitted, other, ridges, offset=True)
    assert chosen == min(solutions, key=solutions.get) > 0.0
    text = replace(corpus(sequences=10), document=np.array([7, 7, 2, 2, 9, 9, 4, 4, 5, 5]))
    assert held_out(text) == [True, True] + 8 * [False]
    assert sum(held_out(replace(text, document=np.zeros(10, int)))) == 2, "of a single document"


@pytest.mark.parametrize(
    ("schedule", "problem"),
    [
        ("0..3", "lacks no block"),
        ("0-2-1", "no model from which whole blocks were removed"),
        ("0-0-3", "no model from which whole blocks were removed"),
        ("0-a1-3", "no model from which whole blocks were removed"),
    ],
)
def test_what_lacks_no_blocks_is_not_healed(schedule, problem):
    with pytest.raises(Refusal, match=problem):
        cuts(from_text(schedule, LAYERS), LAYERS)


def test_maps_that_a_model_has_not_are_refused_with_what_it_has(gpt2):
    text = corpus(sequences=6)
    with pytest.raises(Refusal, match=r"GPT2LMHeadModel has no fitted maps, not ~1\.\.2"):
        sweep(gpt2, text, schedules=["0-~1..2-3"])
    carrying = gpt2.with_maps(fit(gpt2, text, ["~1"]))
    with pytest.raises(Refusal, match=r"has the maps ~1, not 0~1:"):
        rewire(carrying, "0~1-2-3")
    with pytest.raises(Refusal, match="maps what block 0 adds"):
        fit(gpt2, text, ["m2~1"])
    with pytest.raises(Refusal, match="a0~1 is followed by an MLP"):
        fit(gpt2, text, ["a0~1"])
    with pytest.raises(Refusal, match="is no map"):
        fit(gpt2, text, ["0..2"])
    with pytest.raises(Refusal, match="2 sequences at least"):
        fit(gpt2, text.take(1), ["~1"])
    with pytest.raises(Refusal, match="no healing 'maps'"):
        heal(gpt2, "0-2-3", text, ["maps"])
    with pytest.raises(Refusal, match=r"fitted to GPT2LMHeadModel, whose configuration GPTNeoX"):
        open_model(tiny("gpt_neox")).with_maps(carrying.maps)
    assert carrying.identity["maps_sha256"] == carrying.maps.sha256()
    assert set(HEALINGS) == {"scale", "map", "fold"}


@pytest.mark.slow
def test_a_stream_may_be_of_another_type_than_the_weights():
    """Mamba keeps its stream in float32, and has no attention before whose MLP a map could be."""
    opened = open_model(tiny("mamba"))
    healed = heal(opened, "0-3", corpus(sequences=24))
    assert set(healed.schedules) == {"scale", "map"} and "fold" in healed.impossible
    data = sweep(
        opened.with_maps(healed.maps), corpus(sequences=24), schedules=["0-3", "0-~1..2-3"]
    )
    cut, mapped = data.kl.mean("sequence").values
    assert mapped < cut


def test_a_server_is_not_sent_maps(gpt2, strict_model):
    with pytest.raises(Refusal, match="~1 is a fitted map, and maps are not sent to servers"):
        sweep(strict_model, corpus(), schedules=["0-~1-2-3"])
    with pytest.raises(Refusal, match="maps are fitted on this machine"):
        fit(strict_model, corpus(), ["~1"])
