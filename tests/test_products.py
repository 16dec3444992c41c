"""Products of half precision keep all their digits, and a process keeps its settings."""

import os
import shutil
from functools import partial

import pretended
import pytest
import torch
from families import tiny
from test_execution import corpus
from torch._dynamo.utils import counters

from robustness.measurements.observation import observe
from robustness.models import compiled_reduction
from robustness.models.exact_products import exact_products, has_fast_bfloat16
from robustness.models.opening import open_model
from robustness.reordered.exporting import export
from robustness.reordered.generation import generate
from robustness.reordered.settings import Sampling
from robustness.sweeps import residuals, sweep
from robustness.trace import numerics, paired, products, readout

ROWS, WIDTH, TOKENS = 30, 512, 700


def numbers(*shape: int, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pretended.needed)])
def device(request):
    if request.param == "cpu":
        yield "cpu"
        return
    with pretended.machine("cuda"):
        yield "cuda"


@pytest.mark.parametrize(
    ("states", "weight"),
    [
        (torch.bfloat16, torch.bfloat16),
        (torch.float32, torch.bfloat16),
        (torch.float16, torch.float16),
        (torch.float32, torch.float16),
        (torch.float32, torch.float32),
        (torch.bfloat16, torch.float32),
    ],
    ids=str,
)
def test_products_are_those_of_float64_but_for_the_rounding_of_float32_sums(states, weight, device):
    given = numbers(ROWS, WIDTH, seed=1).to(states)
    matrix = numbers(TOKENS, WIDTH, seed=2).to(weight)
    exact = given.double() @ matrix.double().T
    with exact_products():
        parts = products.factors(given.to(device), matrix.to(device))
        made = products.multiply(parts, matrix.to(device)).cpu()
    assert made.dtype == torch.float32
    assert (made - exact).abs().max() < 2e-6 * exact.abs().max()
    rounded = exact.bfloat16().double()
    assert (rounded - exact).abs().max() > 1e-3 * exact.abs().max(), "a called head loses this"


def test_in_float64_products_are_those_of_float64():
    given, matrix = numbers(ROWS, WIDTH, seed=1), numbers(TOKENS, WIDTH, seed=2).double()
    made = products.multiply(products.factors(given, matrix), matrix)
    assert made.dtype == torch.float64
    torch.testing.assert_close(made, given.double() @ matrix.T, rtol=0, atol=1e-12)


def test_three_bfloat16_numbers_are_a_float32_number():
    given = numbers(ROWS, WIDTH, seed=3) * numbers(ROWS, 1, seed=4).exp()
    parts = products.factors(given, torch.zeros(1, WIDTH, dtype=torch.bfloat16))
    assert len(parts) == products.PARTS
    assert torch.equal(parts.double().sum(0), given.double())
    assert torch.equal(parts, parts.bfloat16().float())


def test_what_a_process_has_chosen_is_put_back_and_does_not_reach_products():
    matmul = torch.backends.mkldnn.matmul
    given, matrix = numbers(ROWS, WIDTH, seed=1), numbers(TOKENS, WIDTH, seed=2)
    exact = (given.double() @ matrix.double().T).float()
    torch.set_float32_matmul_precision("medium")
    try:
        loose = given @ matrix.T
        before = matmul.fp32_precision
        with exact_products():
            made = given @ matrix.T
        with pytest.raises(RuntimeError), exact_products():
            products.multiply(torch.zeros(1, 2, 3), torch.zeros(2, 4, dtype=torch.bfloat16))
        assert matmul.fp32_precision == before
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.equal(given @ matrix.T, loose)
    finally:
        torch.set_float32_matmul_precision("highest")
    torch.testing.assert_close(made, exact, rtol=0, atol=2e-4)
    if has_fast_bfloat16():
        assert (loose - exact).abs().max() > 1e-2, "the choice has no effect on this processor"


@pytest.mark.slow
@pytest.mark.parametrize("given", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("squash", [(1.0, None), (0.25, None), (1.0, 20.0), (2.0, 30.0)])
def test_paired_readouts_of_half_precision_are_those_of_float64(given, squash, device):
    """A mean over tokens is off by less than 1e-5 nat, at the width of models of 7B."""
    tokens, width, vocabulary = 24, 4096, 3000
    clean = numbers(tokens, width, seed=5)
    others = clean + numbers(2, tokens, width, seed=6) * torch.tensor([0.02, 0.5])[:, None, None]
    weight = (numbers(vocabulary, width, seed=7) * 3 / width**0.5).bfloat16()
    bias = numbers(vocabulary, seed=8).bfloat16() - 100
    clean, others = clean.to(given), others.to(given)
    scale, cap = squash

    def predicted(states: torch.Tensor) -> torch.distributions.Categorical:
        logits = (states.double() @ weight.double().T + bias.double()) * scale
        return torch.distributions.Categorical(
            logits=logits if cap is None else cap * torch.tanh(logits / cap)
        )

    before, after = predicted(clean), predicted(others)
    targets = torch.arange(tokens)
    expected = {
        "kl": torch.distributions.kl_divergence(before, after),
        "kl_reverse": torch.distributions.kl_divergence(after, before),
        "loss": -after.log_prob(targets),
        "entropy": after.entropy(),
    }
    matrix = {
        "weight": weight.to(device), "bias": bias.to(device), "centred": False, "squash": squash,
    }  # fmt: skip
    with exact_products():
        kept = readout.reference(clean.to(device), targets.to(device), None, vocabulary, matrix)
        values = readout.compare(others.to(device), kept, ("kl", "kl_reverse"))
    for name, exact in expected.items():
        off = (values[name].cpu().double() - exact).mean(-1).abs().max()
        assert off < 1e-5, (name, float(off))
    assert (values["top"].cpu() == after.probs.argmax(-1)).float().mean() > 0.99


def test_the_first_and_the_other_states_change_places_with_the_two_divergences():
    states = numbers(2, 9, 40, seed=9).double()
    matrix = {
        "weight": numbers(50, 40, seed=10).double(), "bias": None, "centred": False,
        "squash": (1.0, None),
    }  # fmt: skip
    both, targets = ("kl", "kl_reverse"), torch.zeros(9, dtype=torch.long)
    _, _, forth = paired.read(states, targets, matrix, both)
    _, _, back = paired.read(states.flip(0), targets, matrix, both)
    torch.testing.assert_close(forth["kl"], back["kl_reverse"], rtol=0, atol=1e-12)
    torch.testing.assert_close(forth["kl_reverse"], back["kl"], rtol=0, atol=1e-12)
    assert (forth["kl"] - forth["kl_reverse"]).abs().min() > 1e-3


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*is deprecated:DeprecationWarning")
@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor",
            marks=pytest.mark.skipif(
                not os.environ.get("STAGES_FUZZ") or shutil.which("c++") is None,
                reason="compiles for half a minute: with STAGES_FUZZ=1 and a C++ compiler",
            ),
        ),
    ],
)
def test_a_compiled_reduction_is_the_plain_one(monkeypatch, backend):
    """What a GPU runs is compiled here for the CPU, as one graph without breaks."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend=backend, fullgraph=True))
    compiled_reduction.compiled_absorb.cache_clear()
    reduce, both = compiled_reduction.compiled_absorb(), ("kl", "kl_reverse")
    before = dict(counters["stats"])
    # Other numbers of tokens, and a last strip, which is narrower and not worth compiling for.
    for tokens, columns in ((20, 512), (31, 512), (31, 300), (9, 512), (40, 512)):
        logits = [numbers(3, tokens, columns, seed=seed) for seed in (11, 12)]
        targets = torch.arange(tokens) % (2 * columns)
        absorbed = expected = paired.begin(logits[0], len(both))
        for index, strip in enumerate(logits):
            offset, kept = torch.tensor(index * columns), strip.clone()
            absorbed = reduce(absorbed, strip, targets, offset, both)
            expected = paired.absorb(expected, kept, targets, offset, both)
        for one, other in zip(absorbed, expected, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    compiled_reduction.compiled_absorb.cache_clear()
    made = counters["stats"]["unique_graphs"] - before.get("unique_graphs", 0)
    assert 1 <= made <= 2
    compiled_reduction.compiled_totals.cache_clear()
    totals = compiled_reduction.compiled_totals()
    for columns in (512, 300):
        strip = numbers(20, columns, seed=14)
        largest, kept = strip.amax(-1), strip.clone()
        for one, other in zip(totals(strip, largest), numerics.totals(kept, largest), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)
    compiled_reduction.compiled_totals.cache_clear()


def test_a_reduction_that_cannot_be_compiled_is_the_plain_one(monkeypatch):
    def broken(*arguments):
        raise RuntimeError("no compiler")

    monkeypatch.setattr(torch, "compile", lambda function: broken)
    compiled_reduction.compiled_absorb.cache_clear()
    logits = numbers(3, 5, 20, seed=13)
    given = paired.begin(logits, 1), logits, torch.arange(5), torch.tensor(0), ("kl",)
    reduce = compiled_reduction.compiled_absorb()
    wide = numbers(3, 5, paired.NARROWEST_STRIP, seed=15)
    begun = paired.begin(wide, 1)
    # Once, and not for a last strip, which is narrower and never compiled.
    with pytest.warns(UserWarning, match="not compiled \\(no compiler\\)"):
        first = reduce(begun, wide.clone(), *given[2:])
    assert torch.equal(reduce(begun, wide.clone(), *given[2:])[0], first[0])
    made = reduce(*given[:1], logits.clone(), *given[2:])
    compiled_reduction.compiled_absorb.cache_clear()
    for one, other in zip(made, paired.absorb(*given), strict=True):
        assert torch.equal(one, other)


@pytest.mark.slow
def test_whatever_a_process_has_chosen_models_run_with_exact_products(tmp_path):
    seen = set()

    def look(module, given):
        seen.add(torch.backends.mkldnn.matmul.fp32_precision)

    runs = {
        "sweep": lambda model: sweep(model, corpus(2), ("drop",)),
        "observe": lambda model: observe(model, corpus(2), ["lens", "norms"]),
        "residuals": lambda model: residuals(model, [[1, 2, 3]], (0, 2, 1)),
        "generate": lambda model: generate(model, [1, 2, 3], [(0, 2, 1)], Sampling(tokens=2)),
        "export": lambda model: export(model, (0, 2, 1), tmp_path / "exported"),
    }
    torch.set_float32_matmul_precision("medium")
    hook = torch.nn.modules.module.register_module_forward_pre_hook(look)
    try:
        for name, run in runs.items():
            model = open_model(tiny("llama", torch.float32))
            # Which modules there are is found out with tensors that have no numbers.
            seen.clear()
            run(model)
            assert seen == {"ieee"}, name
    finally:
        hook.remove()
        torch.set_float32_matmul_precision("highest")
