import copy
from collections import Counter

import numpy as np
import pytest
import torch
import xarray as xr
from families import BLOCKS, LAYERS, random_tokens, rebuilt, tiny

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.schedules import clean, drop, repeat, reverse, swap
from robustness.schedules.built_in import FORMS
from robustness.schedules.intervention import Intervention
from robustness.schedules.interventions import schedules as sweep_schedules
from robustness.sweeps import residuals, rewire, sweep
from robustness.text.corpus import Corpus
from robustness.trace import numerics, paired

EVERY = tuple(form.replace("-D", "-2").replace("-B", "-2").replace("xK", "x2") for form in FORMS)
"""An intervention of every form."""


def corpus(sequences: int = 5, length: int = 12, lengths: list[int] | None = None) -> Corpus:
    tokens = random_tokens(sequences, length).numpy()
    return Corpus(
        tokens=tokens,
        lengths=np.array(lengths or [length] * sequences),
        document=np.arange(sequences) // 2,
        name="random",
        rule="windows",
        bos="none",
        seed=0,
        authors_alignment=lengths is not None,
    )


def reference(plain, schedule, text: Corpus, original=None) -> dict[str, np.ndarray]:
    """Readouts of a schedule by full log-softmax on the rebuilt plain model, float64."""
    found = {name: np.empty(len(text.tokens)) for name in READOUTS}
    before, after = original or logits(plain, text), logits(rebuilt(plain, schedule), text)
    for length, p in before.items():
        rows, q = text.lengths == length, after[length]
        last = length if text.authors_alignment else length - 1
        compared = slice(1, last)
        first = 0 if text.authors_alignment else 1
        following = torch.from_numpy(text.tokens[rows, first + 1 : length])
        predicted, top = q[:, first : length - 1], q.argmax(-1)
        for name, values in (
            ("kl", (p.exp() * (p - q)).sum(-1)[:, compared]),
            ("agreement", (p.argmax(-1) == top)[:, compared]),
            ("entropy", -(q.exp() * q).sum(-1)[:, compared]),
            ("loss", -predicted.gather(-1, following[..., None])[..., 0]),
            ("accuracy", predicted.argmax(-1) == following),
        ):
            found[name][rows] = values.double().mean(1)
    return found


READOUTS = ("kl", "agreement", "loss", "entropy", "accuracy")


def logits(net, text: Corpus) -> dict[int, torch.Tensor]:
    """Log-softmax of the sequences of every length, without padding."""
    found = {}
    for length in map(int, np.unique(text.lengths)):
        tokens = torch.from_numpy(text.tokens[text.lengths == length, :length])
        with torch.no_grad():
            found[length] = torch.log_softmax(net(input_ids=tokens, use_cache=False).logits, -1)
    return found


def assert_equals_surgery(data, plain, named, text: Corpus) -> None:
    # Some families give logits in float32 whatever the weights are.
    limit = 1e-10 if data.kl.dtype == np.float64 else 1e-6
    original = logits(plain, text)
    for (name, *at), schedule in named.items():
        found = data.sel(intervention=name, **dict(zip(("layer", "layer_to"), at, strict=False)))
        for metric, values in reference(plain, schedule, text, original).items():
            np.testing.assert_allclose(
                found[metric], values, atol=limit, rtol=0, err_msg=f"{name} {at} {metric}"
            )


@pytest.mark.slow
def test_every_intervention_equals_surgery_on_the_plain_model(model, plain):
    text = corpus()
    data = sweep(model, text, EVERY, batch_tokens=36, state_cap=3)
    named = sweep_schedules(EVERY, LAYERS)
    assert_equals_surgery(data, plain, named, text)
    clean_values = reference(plain, clean(LAYERS), text)
    for metric in ("loss", "entropy", "accuracy"):
        np.testing.assert_allclose(data[f"clean_{metric}"], clean_values[metric], atol=1e-10)
    assert data.kl.sel(intervention="drop").mean() > 0.1, "the interventions change nothing"


@pytest.mark.slow
def test_through_the_strict_backend_it_is_the_same(strict_model, plain):
    text = corpus()
    data = sweep(strict_model, text, ("drop", "swap", "repeat-2"), batch_tokens=36, state_cap=3)
    assert_equals_surgery(data, plain, sweep_schedules(("drop", "swap", "repeat-2"), LAYERS), text)


@pytest.mark.slow
def test_eager_attention_equals_surgery_too(family):
    opened = open_model(tiny(family, attention="eager"))
    text = corpus()
    data = sweep(opened, text, ("drop", "repeat-2"), batch_tokens=36)
    named = sweep_schedules(("drop", "repeat-2"), LAYERS)
    assert_equals_surgery(data, tiny(family, attention="eager"), named, text)


@pytest.mark.slow
def test_sequences_of_different_length_are_read_as_the_authors_did(model, plain):
    text = corpus(lengths=[12, 7, 3, 12, 9])
    data = sweep(model, text, ("drop", "swap"), batch_tokens=60)
    assert_equals_surgery(data, plain, sweep_schedules(("drop", "swap"), LAYERS), text)


def test_the_numbers_do_not_depend_on_batch_or_cap(model):
    text = corpus()
    whole = sweep(model, text, ("drop", "swap"), batch_tokens=1000, state_cap=100)
    for batch_tokens, cap in ((1, 1), (24, 2), (36, 5)):
        other = sweep(model, text, ("drop", "swap"), batch_tokens=batch_tokens, state_cap=cap)
        for metric in ("kl", "agreement", "loss", "entropy", "accuracy", "modal_share"):
            np.testing.assert_allclose(whole[metric], other[metric], atol=1e-11)


def test_the_clean_schedule_and_swaps_undone_change_nothing(model):
    text = corpus()
    undone = swap(swap(clean(LAYERS), 1), 1)
    data = sweep(model, text, schedules=[clean(LAYERS), undone, drop(clean(LAYERS), 1)])
    assert data.schedule.values.tolist() == ["0..3", "0-2-3"], "the same twice is one"
    assert (data.kl[1] > 0.01).all()
    data = data.isel(schedule=[0])
    np.testing.assert_allclose(data.kl, 0, atol=1e-12)
    assert (data.agreement == 1).all()
    assert (abs(data.loss - data.clean_loss) < 1e-12).all()


def test_the_modal_share_is_that_of_the_most_frequent_prediction(gpt2):
    text = corpus()
    data = sweep(gpt2, text, ("drop",), batch_tokens=24)
    for layer, schedule in enumerate(drop(clean(LAYERS), at) for at in range(LAYERS)):
        with torch.no_grad():
            logits = rebuilt(tiny("gpt2"), schedule)(
                torch.from_numpy(text.tokens), use_cache=False
            ).logits
        counts = Counter(logits[:, 1:-1].argmax(-1).flatten().tolist())
        share = max(counts.values()) / counts.total()
        assert data.modal_share.sel(intervention="drop", layer=layer) == share


def test_a_real_run_applies_blocks_exactly_as_often_as_the_plan_says(family):
    plain = tiny(family)
    opened = open_model(plain)
    applied = Counter()
    for index, block in enumerate(plain.get_submodule(BLOCKS[family])):
        block.register_forward_pre_hook(
            lambda _, args, kwargs, index=index: applied.update(
                {index: len(args[0] if args else kwargs["hidden_states"])}
            ),
            with_kwargs=True,
        )
    sweep(opened, corpus(sequences=4), ("drop", "swap"), batch_tokens=24)
    assert applied.total() == 4 * (LAYERS + LAYERS * (LAYERS - 1))


def test_no_logits_exist_for_all_tokens_and_the_whole_vocabulary(gpt2):
    """The natural pass hands on a stand-in; the matrix is applied strip by strip."""
    widths = []
    head = gpt2.head._module
    handle = head.register_forward_hook(lambda _m, _i, out: widths.append(out.shape[-1]))
    try:
        sweep(gpt2, corpus(), ("drop",))
    finally:
        handle.remove()
    assert widths == [1]


def test_no_piece_of_logits_is_larger_than_the_readout_allows(gpt2, monkeypatch):
    sizes, absorb = [], numerics.absorb

    def counting(sums, logits, offset=0):
        sizes.append(logits.shape)
        return absorb(sums, logits, offset)

    monkeypatch.setattr(numerics, "absorb", counting)
    monkeypatch.setitem(paired.LOGITS_AT_ONCE, "cpu", 1)
    monkeypatch.setattr(paired, "NARROWEST_STRIP", 16)
    sweep(gpt2, corpus(), ("drop",))
    assert {shape[-1] for shape in sizes} == {16, 101 % 16}


def test_infinite_logits_are_counted_and_not_averaged_away(family):
    plain = tiny(family)
    opened = open_model(plain)
    with torch.no_grad():
        opened.head._module.weight[7] = torch.inf
    data = sweep(opened, corpus(), ("drop",))
    assert (data.nonfinite == 10).all()
    for name in set(data.data_vars) - {"nonfinite"}:
        assert data[name].isnull().all(), name


def test_a_sequence_with_a_bad_number_leaves_the_others_alone(gpt2):
    text = corpus()
    text.tokens[3, 5] = 50
    clean_data = sweep(gpt2, text, ("drop",))
    plain = tiny("gpt2")
    plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
    opened = open_model(plain)
    with torch.no_grad():
        plain.transformer.wte.weight[50] = torch.nan
    holds = (text.tokens == 50).any(1)
    data = sweep(opened, text, ("drop",))
    assert holds.any() and not holds.all()
    assert (data.nonfinite.sum(("intervention", "layer")) > 0).values.tolist() == holds.tolist()
    for name in ("kl", "agreement", "loss", "entropy", "accuracy"):
        np.testing.assert_allclose(
            data[name][..., ~holds], clean_data[name][..., ~holds], atol=1e-12
        )
        assert data[name][..., holds].isnull().any()


def test_a_large_moving_offset_of_the_logits_costs_no_digits():
    """GPT-2 adds about -100 to all logits, by a direction that all rows of its matrix share."""
    plain = tiny("gpt2")
    plain.lm_head.weight = torch.nn.Parameter(plain.lm_head.weight.detach().clone())
    with torch.no_grad():
        plain.lm_head.weight += 16 * torch.randn(32, dtype=torch.float64)
    text = corpus(sequences=8)
    logits = plain(torch.from_numpy(text.tokens), use_cache=False).logits
    assert logits.mean(-1).abs().mean() > 20 and logits.mean(-1).std() > 20
    precise = sweep(open_model(copy.deepcopy(plain)), text, ("drop", "swap"))
    data = sweep(open_model(plain.float()), text, ("drop", "swap"))
    for name in ("kl", "loss", "entropy"):
        np.testing.assert_allclose(data[name], precise[name], rtol=0, atol=1e-5, err_msg=name)


def test_a_rewired_model_generates_what_the_rebuilt_one_does(model, plain):
    schedule, prompt = (0, 2, 1, 1, 3), random_tokens(1, 5)
    edited = rewire(model, schedule)
    options = {"max_new_tokens": 6, "do_sample": False, "use_cache": False, "pad_token_id": 0}
    with torch.no_grad(), edited.generate(prompt, **options) as tracer:
        found = tracer.result.save()
    mask = torch.ones_like(prompt)
    expected = rebuilt(plain, schedule).generate(prompt, attention_mask=mask, **options)
    assert found.tolist() == expected.tolist()
    with (
        pytest.raises(Exception, match="use_cache=False"),
        torch.no_grad(),
        edited.generate(prompt, **(options | {"use_cache": True})) as tracer,
    ):
        found = tracer.result.save()


@pytest.mark.parametrize(
    "schedule",
    [drop(clean(LAYERS), 1), swap(clean(LAYERS), 0), repeat(clean(LAYERS), 1, 2), (3, 3, 3)],
    ids=str,
)
def test_a_rewired_model_is_the_rebuilt_model(model, plain, schedule):
    tokens = random_tokens(3, 11)
    edited = rewire(model, schedule)
    with torch.no_grad(), edited.trace(tokens):
        logits = edited.output.logits.save()
    with torch.no_grad():
        expected = rebuilt(plain, schedule)(tokens, use_cache=False).logits
        original = plain(tokens, use_cache=False).logits
    torch.testing.assert_close(logits, expected, atol=1e-10, rtol=0)
    with torch.no_grad(), model.traced.trace(tokens):
        untouched = model.traced.output.logits.save()
    torch.testing.assert_close(untouched, original, atol=1e-10, rtol=0)


def test_residuals_are_the_hidden_states_of_the_rebuilt_model(model, plain):
    tokens = random_tokens(2, 9)
    for schedule in (clean(LAYERS), (2, 0, 0, 3, 1), reverse(clean(LAYERS))):
        found = residuals(model, tokens, schedule)
        assert found.dims == ("step", "sequence", "token", "feature")
        assert found.block.values.tolist() == [-1, *schedule]
        seen = []
        surgery = rebuilt(plain, schedule)
        for block in surgery.get_submodule(BLOCKS[plain.family]):
            block.register_forward_hook(lambda _m, _i, out, seen=seen: seen.append(out))
        with torch.no_grad():
            surgery(tokens, use_cache=False)
        np.testing.assert_allclose(found[1:], torch.stack(seen), atol=1e-10, rtol=0)


def test_rewire_and_residuals_travel(strict_model, plain):
    tokens, schedule = random_tokens(2, 9), (0, 2, 2, 3)
    expected = residuals(strict_model, tokens, schedule)
    with torch.no_grad():
        states = rebuilt(plain, schedule)(tokens, use_cache=False, output_hidden_states=True)
    np.testing.assert_allclose(expected[0], states.hidden_states[0], atol=1e-10)
    edited = rewire(strict_model, schedule)
    backend = strict_model.request["backend"]
    with torch.no_grad(), edited.trace(tokens, backend=backend):
        logits = edited.output.logits.save()
    torch.testing.assert_close(logits, states.logits, atol=1e-10, rtol=0)


def test_tokens_the_model_cannot_take_are_refused(gpt2):
    with pytest.raises(Refusal, match="longer than GPT2LMHeadModel takes: ask for `context` 32"):
        sweep(gpt2, corpus(length=33))
    text = corpus()
    text.tokens[0, 0] = 101
    with pytest.raises(Refusal, match=r"no token 101: .* 0 to 100"):
        sweep(gpt2, text)
    with pytest.raises(Refusal, match="no block 9"):
        sweep(gpt2, corpus(), schedules=[(0, 9)])


def test_a_schedule_may_be_a_text_wherever_one_is_taken(gpt2):
    tokens = random_tokens(2, 9)
    for text, schedule in (("0-2..", (0, 2, 3)), ("..", (0, 1, 2, 3)), ("3..0", (3, 2, 1, 0))):
        xr.testing.assert_identical(
            residuals(gpt2, tokens, text), residuals(gpt2, tokens, schedule)
        )
        found = []
        for each in (text, schedule):
            edited = rewire(gpt2, each)
            with torch.no_grad(), edited.trace(tokens):
                logits = edited.output.logits.save()
            found.append(logits)
        assert torch.equal(*found)
    data = sweep(gpt2, corpus(), schedules=["0-2..", (0, 2, 3), (np.int64(3),)])
    assert data.schedule.values.tolist() == ["0-2-3", "3"], "each once"


@pytest.mark.parametrize(
    ("asked", "problem"),
    [
        ({"schedules": [("a",)]}, "'a' is no step of a schedule: .*Parallel, or is a text"),
        ({"schedules": [(1.5,)]}, "1.5 is no step"),
        ({"schedules": (1, 2)}, "1 is no schedule: it takes a tuple or a text"),
        ({"schedules": [(0,)], "layers": [0]}, "`layers` belong to interventions"),
        ({"schedules": "0-1"}, r"schedules are a list: \['0-1'\]"),
        ({"schedules": [(0,)], "interventions": ["drop"]}, "run them apart"),
        ({"interventions": "drop"}, r"interventions are a list, such as \['drop'\]"),
        ({"interventions": []}, "no intervention was asked for"),
    ],
)
def test_what_is_no_schedule_or_intervention_is_refused(gpt2, asked, problem):
    with pytest.raises(Refusal, match=problem):
        sweep(gpt2, corpus(), **asked)


def test_the_order_of_readouts_is_none(gpt2, tmp_path):
    out = tmp_path / "a.nc"
    whole = sweep(gpt2, corpus(), readouts=["kl", "loss"], out=out)
    xr.testing.assert_identical(
        sweep(gpt2, corpus(), readouts=["loss", "kl", "kl"], out=out), whole
    )


def test_an_array_is_a_schedule(gpt2):
    data = sweep(gpt2, corpus(), schedules=[np.array([0, 2, 3])])
    assert data.schedule.values.tolist() == ["0-2-3"]


def test_readouts_are_a_setting_of_a_run(gpt2, tmp_path):
    out = tmp_path / "a.nc"
    sweep(gpt2, corpus(), readouts=["kl"], out=out)
    sweep(gpt2, corpus(), readouts=["kl"], out=out)
    with pytest.raises(
        Refusal, match="was made with readouts kl, which is not asked for now; choose"
    ):
        sweep(gpt2, corpus(), out=out)


@pytest.mark.parametrize(
    ("name", "problem"), [("a.csv", "must end in .nc"), ("d.nc", "is a directory")]
)
def test_an_output_that_is_no_file_of_numbers_is_refused(gpt2, tmp_path, name, problem):
    (tmp_path / "d.nc").mkdir()
    with pytest.raises(Refusal, match=problem):
        sweep(gpt2, corpus(), out=tmp_path / name)


def test_an_intervention_of_ones_own_is_swept_and_resumed_like_any_other(gpt2, tmp_path):
    def behind(schedule, layer):
        return (*schedule[:layer], *schedule[layer : layer + 2][::-1], *schedule[layer + 2 :])

    own, out = Intervention("behind", 2, behind), tmp_path / "a.nc"
    swept = sweep(gpt2, corpus(), ["swap", own], out=out)
    assert swept.intervention.values.tolist() == ["swap", "behind"]
    assert swept.attrs["interventions"] == "swap, behind"
    same, ours = (swept.kl.sel(intervention=name, drop=True) for name in ("swap", "behind"))
    xr.testing.assert_identical(same, ours)
    xr.testing.assert_identical(sweep(gpt2, corpus(), ["swap", own], out=out), swept)


def test_another_intervention_of_the_same_name_is_not_taken_for_the_finished_one(gpt2, tmp_path):
    def first(schedule, layer):
        return (*schedule[:layer], *[schedule[layer]] * 2, *schedule[layer + 2 :])

    def second(schedule, layer):
        return (*schedule[:layer], *[schedule[layer + 1]] * 2, *schedule[layer + 2 :])

    out = tmp_path / "a.nc"
    sweep(gpt2, corpus(), [Intervention("own", 2, first)], out=out)
    before = out.read_bytes()
    with pytest.raises(Refusal, match="has another schedule than its settings say"):
        sweep(gpt2, corpus(), [Intervention("own", 2, second)], out=out)
    assert out.read_bytes() == before
