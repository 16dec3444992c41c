import pytest
import torch

from robustness.trace import numerics, paired, readout
from robustness.trace.types import Matrix

TOKENS, WIDTH, VOCABULARY = 40, 24, 2000


def head_of(kind: str, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor | None]:
    torch.manual_seed(3)
    weight = torch.randn(VOCABULARY, WIDTH, dtype=torch.float64)
    bias = torch.randn(VOCABULARY, dtype=torch.float64) if kind == "bias" else None
    if kind == "offset":
        bias = torch.full((VOCABULARY,), -100.0, dtype=torch.float64)
    return weight.to(dtype), None if bias is None else bias.to(dtype)


def states(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(4)
    clean = torch.randn(TOKENS, WIDTH, dtype=torch.float64)
    other = clean + torch.randn(3, TOKENS, WIDTH, dtype=torch.float64) * torch.tensor(
        [0.01, 0.3, 2.0], dtype=torch.float64
    ).reshape(3, 1, 1)
    targets = torch.randint(0, VOCABULARY, (TOKENS,))
    return clean.to(dtype), other.to(dtype), targets


def expected(kind: str) -> dict[str, torch.Tensor]:
    """Readouts by torch.distributions from the same states in float64."""
    clean, other, targets = (
        part.double() if part.is_floating_point() else part for part in states(torch.float32)
    )
    weight, bias = head_of(kind, torch.float32)
    bias = torch.zeros(VOCABULARY) if bias is None else bias
    before = torch.distributions.Categorical(logits=clean @ weight.double().T + bias.double())
    after = torch.distributions.Categorical(logits=other @ weight.double().T + bias.double())
    top = after.probs.argmax(-1)
    return {
        "kl": torch.distributions.kl_divergence(before, after),
        "entropy": after.entropy(),
        "loss": -after.log_prob(targets.expand(3, -1)),
        "agreement": (top == before.probs.argmax(-1)).double(),
        "accuracy": (top == targets).double(),
        "top": top,
    }


WAYS = ("centred", "paired", "calls")
"""Ways from states to readouts; see `readout`."""


def matrix_of(weight: torch.Tensor, bias: torch.Tensor | None, way: str) -> Matrix | None:
    centred = way == "centred"
    known = {"weight": weight, "bias": bias, "centred": centred, "squash": (1.0, None)}
    return None if way == "calls" else known


def found(kind: str, dtype: torch.dtype, way: str) -> dict[str, torch.Tensor]:
    clean, other, targets = states(torch.float32)
    weight, bias = (
        part if part is None else part.to(dtype) for part in head_of(kind, torch.float32)
    )

    def head(hidden: torch.Tensor) -> torch.Tensor:
        logits = hidden.to(dtype) @ weight.T
        return logits if bias is None else logits + bias

    given = matrix_of(weight, bias, way)
    kept = readout.reference(clean.to(dtype), targets, head, VOCABULARY, given)
    return readout.compare(other.to(dtype), kept)


LIMIT = 256 * 3 * TOKENS


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    """Several strips and several chunks, none of which divides the whole evenly."""
    for module in (readout, paired):
        monkeypatch.setitem(module.LOGITS_AT_ONCE, "cpu", LIMIT)
    monkeypatch.setitem(paired.ROWS_AT_ONCE, "cpu", 3 * TOKENS)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["plain", "bias", "offset"])
def test_in_float64_readouts_equal_torch_distributions(kind, way):
    values = found(kind, torch.float64, way)
    for name, reference in expected(kind).items():
        torch.testing.assert_close(values[name], reference, atol=1e-11, rtol=0, check_dtype=False)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("kind", ["plain", "bias", "offset"])
def test_in_float32_means_are_within_1e_5_and_tokens_within_5e_5(kind, way):
    values = found(kind, torch.float32, way)
    for name in ("kl", "entropy", "loss"):
        error = values[name].double() - expected(kind)[name]
        assert error.abs().max() < 5e-5, name
        assert error.mean(-1).abs().max() < 1e-5, name
        assert values[name].dtype == torch.float32


@pytest.mark.parametrize("way", ["centred", "paired"])
def test_the_width_of_a_strip_changes_nothing(monkeypatch, way):
    whole = found("bias", torch.float64, way)
    monkeypatch.setitem(paired.LOGITS_AT_ONCE, "cpu", 2**40)
    monkeypatch.delitem(paired.ROWS_AT_ONCE, "cpu")
    other = found("bias", torch.float64, way)
    for name in whole:
        torch.testing.assert_close(whole[name], other[name], atol=1e-12, rtol=0)


@pytest.mark.parametrize("way", ["centred", "paired"])
def test_a_model_compared_with_itself_has_no_divergence(way):
    clean, _, targets = states(torch.float64)
    weight, bias = head_of("bias", torch.float64)
    kept = readout.reference(clean, targets, None, VOCABULARY, matrix_of(weight, bias, way))
    values = readout.compare(clean[None], kept)
    assert values["kl"].abs().max() < 1e-12
    assert (values["agreement"] == 1).all()
    for name in ("loss", "entropy", "accuracy", "top"):
        torch.testing.assert_close(values[name][0], kept["readout"][name])


def test_a_common_offset_changes_nothing():
    plain = found("plain", torch.float64, "centred")
    offset = found("offset", torch.float64, "paired")
    for name in plain:
        torch.testing.assert_close(plain[name], offset[name], atol=1e-11, rtol=0)


def test_the_entropy_of_equal_logits_is_the_logarithm_of_their_number():
    sums, _, _ = numerics.absorb(
        numerics.start(torch.zeros(5, 1, dtype=torch.float64)),
        torch.full((5, 1000), -3.7, dtype=torch.float64),
    )
    torch.testing.assert_close(numerics.entropy(sums), torch.full((5,), 1000.0).double().log())


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_a_bad_logit_does_not_pass_for_a_number(bad):
    logits = torch.randn(4, 50)
    logits[2, 7] = bad
    sums, _, _ = numerics.absorb(numerics.start(torch.zeros(4, 1)), logits)
    finite = torch.isfinite(numerics.entropy(sums) + numerics.log_sum_exp(sums))
    assert finite.tolist() == [True, True, False, True]


def test_half_precision_matrices_are_read_in_float32():
    assert numerics.precise(torch.zeros(2, dtype=torch.bfloat16)).dtype == torch.float32
    assert numerics.precise(torch.zeros(2, dtype=torch.float64)).dtype == torch.float64


@pytest.mark.parametrize("way", WAYS)
def test_no_piece_of_logits_is_larger_than_it_may_be(monkeypatch, way):
    sizes = []
    original = numerics.absorb

    def counting(sums, logits, offset=0):
        sizes.append(logits.numel())
        return original(sums, logits, offset)

    monkeypatch.setattr(numerics, "absorb", counting)
    found("plain", torch.float64, way)
    assert max(sizes) <= LIMIT < 3 * TOKENS * VOCABULARY


def test_autocast_rounds_nothing():
    """A server computes models of half precision under autocast; what is read of them is exact."""
    torch.manual_seed(0)
    hidden, other = torch.randn(2, 6, 16)
    weight = torch.randn(50, 16)

    def head(states: torch.Tensor) -> torch.Tensor:
        with torch.autocast("cpu", enabled=False):
            return states @ weight.T

    def read() -> dict[str, torch.Tensor]:
        clean = readout.reference(hidden, torch.arange(6), head, 50)
        found = readout.compare(other[None], clean, ("kl", "kl_reverse"))
        return {**found, **{f"clean {name}": value for name, value in clean["readout"].items()}}

    expected = read()
    with torch.autocast("cpu", torch.bfloat16):
        found = read()
    for name, value in expected.items():
        torch.testing.assert_close(found[name], value, atol=1e-6, rtol=1e-6)
