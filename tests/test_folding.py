"""Factors, scales and maps folded into checkpoints, against the same done by hand."""

import pytest
import torch
from families import random_tokens, rebuilt, tiny
from test_execution import corpus
from tokenizers_for_tests import byte_tokenizer
from transformers import AutoModelForCausalLM

from robustness.errors import Refusal
from robustness.healing import heal
from robustness.models.opening import open_model
from robustness.reordered import rebuilding
from robustness.reordered.exporting import export
from robustness.reordered.generation import generate
from robustness.reordered.rebuilding import rebuild
from robustness.reordered.settings import Sampling
from robustness.schedules import Mapped, from_text
from robustness.sweeps import rewire

SEQUENTIAL = {"gpt2", "llama", "qwen2"}
FACTORS = {
    True: ("0-a1*0.5-m1*2-a2-m2*-1-3-a0*2-m0", "0-*1.5-a1*0.5-m1-3-*0.75-2"),
    False: ("0-1*0.5-3-2*-1", "0-*1.5-1*0.5-3-*0.75-2"),
}
"""Schedules without and with scales of the stream, by whether blocks are sequential."""


def logits(net, tokens):
    with torch.no_grad():
        return net(tokens, use_cache=False).logits


def test_factors_and_scales_are_folded_into_output_matrices(model, plain, family):
    """Norms add 1e-5 to the mean square, which is not scaled: the factors alone are exact."""
    tokens = random_tokens(2, 20)
    texts = FACTORS[family in SEQUENTIAL]
    for text, tolerance in zip(texts, (1e-12, 1e-3), strict=True):
        expected = logits(rebuilt(plain, from_text(text, 4)), tokens)
        found = logits(rebuild(model, text), tokens)
        assert (found - expected).abs().max() < tolerance * expected.abs().max()
    before = {name: weight.clone() for name, weight in model.traced._module.state_dict().items()}
    rebuild(model, texts[1])
    for name, weight in model.traced._module.state_dict().items():
        assert torch.equal(weight, before[name]), "the model stays as it is"


@pytest.mark.slow
@pytest.mark.parametrize("family", ["gpt2", "gpt_neox"])
def test_a_folded_map_is_loaded_by_plain_transformers(family, tmp_path):
    opened = open_model(tiny(family), tokenizer=byte_tokenizer())
    healed = heal(opened, "0-2", corpus(sequences=12), ["fold", "scale"])
    carrying = opened.with_maps(healed.maps)
    tokens = random_tokens(2, 20)
    for name, tolerance in (("fold", 1e-12), ("scale", 1e-4)):
        path = export(carrying, healed.schedules[name], tmp_path / name)
        loaded = AutoModelForCausalLM.from_pretrained(path, dtype="auto")
        assert loaded.config.num_hidden_layers == 2
        with torch.no_grad(), rewire(carrying, healed.schedules[name]).trace(tokens) as tracer:
            rewired = tracer.result.logits.save()
        found = logits(loaded, tokens)
        assert (found - rewired).abs().max() < tolerance * rewired.abs().max()
    # By hand, on a copy of the plain model: what block 0 adds goes through the map.
    blocks = tiny(family).get_submodule(opened.paths.block_list)
    (step, *_) = [step for step in healed.maps.matrices if step.first == 1]
    assert isinstance(step, Mapped)
    path = opened.paths.writers[0].partition(".0.")[2]
    old = blocks[0].get_submodule(path).weight.detach()
    new = AutoModelForCausalLM.from_pretrained(tmp_path / "fold", dtype="auto")
    new = new.get_submodule(opened.paths.block_list)[0].get_submodule(path).weight.detach()
    matrix = healed.maps.matrices[step]
    # GPT-2 keeps its matrices as (in, out).
    expected = old @ matrix if family == "gpt2" else matrix.T @ old
    torch.testing.assert_close(new, expected, atol=1e-12, rtol=0)
    card = (tmp_path / "fold" / "README.md").read_text()
    assert "folded into" in card and healed.maps.sha256() in card
    assert healed.maps.sha256() not in (tmp_path / "scale" / "README.md").read_text()


def test_generated_text_of_a_folded_model_is_that_of_the_rewired(gpt2, monkeypatch):
    schedule = from_text("0-a1*0.5-m1-*1.5-3", 4)
    prompt = random_tokens(1, 5)[0].tolist()
    (folded,) = generate(gpt2, prompt, [schedule], Sampling(tokens=6))
    monkeypatch.setattr(rebuilding, "folded_blocks", lambda *_: 1 / 0)

    def refused(*_):
        raise Refusal("not rebuilt")

    monkeypatch.setattr("robustness.reordered.generation.rebuild", refused)
    (rewired,) = generate(gpt2, prompt, [schedule], Sampling(tokens=6))
    assert folded.tokens == rewired.tokens


@pytest.mark.parametrize(
    ("name", "schedule", "problem"),
    [
        ("gpt2", "0-1*0.5-2", "a sum that no matrix makes: the MLP of block 1 reads"),
        ("gpt2", "0-a1-2", "a1 is no whole block"),
        ("gpt2", "0-m1*2-2", r"m1\*2 is no whole block"),
        ("gpt2", "0-a1-m2-2", "a1 is no whole block"),
        ("gpt2", "0-m1-a1-2", "m1 is no whole block"),
        ("gpt2", "(0+1)-2", "is no whole block"),
        ("gpt2", "0-*-1-2", "norms of another sign"),
        ("gpt2", "*2", "has no block"),
        ("gpt2", "0-~1-2", "has no fitted maps"),
        ("gpt_neox", "0-a1-m1*2-2", "a1 is no whole block"),
        ("olmo2", "0-*2-1-2-3", "does not read the residual stream through norms alone"),
        ("olmo2", "0-a1*2-m1-2-3", "has a norm between the output matrices of block 1"),
    ],
)
def test_what_no_matrix_carries_is_refused_with_the_reason(name, schedule, problem):
    with pytest.raises(Refusal, match=problem):
        rebuild(open_model(tiny(name)), schedule)


def test_a_map_of_the_stream_is_refused_and_a_wrong_fold_is_found(gpt2, monkeypatch):
    healed = heal(gpt2, "0-3", corpus(sequences=6))
    carrying = gpt2.with_maps(healed.maps)
    with pytest.raises(Refusal, match=r"~1\.\.2 maps the residual stream, which no matrix"):
        rebuild(carrying, healed.schedules["map"])
    net = rebuild(carrying, healed.schedules["fold"])
    assert logits(net, random_tokens(1, 5)).isfinite().all()
    monkeypatch.setattr(rebuilding, "fold", lambda *_: None)
    for name in ("fold", "scale"):
        with pytest.raises(Refusal, match="logits would be off by"):
            rebuild(carrying, healed.schedules[name])
