import io
import sys

import pytest
import torch
from families import BLOCKS, DEEP, random_tokens, tiny
from loopback import configure, serving
from test_export import greedy, surgery
from tokenizers_for_tests import byte_tokenizer

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.reordered import generation
from robustness.reordered.generation import generate
from robustness.reordered.rebuilding import rebuild
from robustness.reordered.settings import Sampling
from robustness.schedules import clean, drop, repeat, swap

SCHEDULES = (clean(4), drop(clean(4), 1), swap(clean(4), 0), repeat(clean(4), 1, 2), (3, 3, 3))


def no_plain_model(*_):
    raise Refusal("there is none")


@pytest.mark.parametrize("name", [*DEEP, "bloom", "falcon", "gemma", "olmo", "olmo2"])
@pytest.mark.parametrize("cached", [True, False])
def test_what_is_written_is_what_surgery_writes(monkeypatch, name, cached):
    net = tiny(name)
    net.generation_config.eos_token_id = None
    model = open_model(net)
    if not cached:
        monkeypatch.setattr(generation, "rebuild", no_plain_model)
    prompt = random_tokens(1, 9)
    found = generate(model, prompt[0].tolist(), SCHEDULES, Sampling(tokens=6))
    assert [each.schedule for each in found] == list(SCHEDULES)
    for each in found:
        expected = greedy(surgery(monkeypatch, net, each.schedule), prompt, 6)[9:]
        assert list(each.tokens) == expected, each.schedule
    assert len({each.tokens for each in found}) > 1, "the order changes nothing"


def test_with_a_cache_every_token_goes_through_a_block_once(model, family, monkeypatch):
    monkeypatch.setattr(model.traced._module.generation_config, "eos_token_id", None)
    widths = []

    def watched(model, schedule):
        net = rebuild(model, schedule)
        for block in net.get_submodule(BLOCKS[family]):
            block.register_forward_pre_hook(
                lambda _, args, kwargs: widths.append(
                    (args[0] if args else kwargs["hidden_states"]).shape[1]
                ),
                with_kwargs=True,
            )
        return net

    monkeypatch.setattr(generation, "rebuild", watched)
    generate(model, [5] * 4, [(0, 1, 1)], Sampling(tokens=5))
    assert widths == [4] * 3 + [1] * 3 * 4


@pytest.mark.slow
def test_draws_are_seeded_and_alike_with_and_without_a_cache(gpt2, monkeypatch):
    def draw(seed):
        found = generate(gpt2, [3, 4, 5], SCHEDULES, Sampling(tokens=8, temperature=1.5, seed=seed))
        return [each.tokens for each in found]

    state = torch.get_rng_state()
    first = draw(0)
    assert torch.equal(torch.get_rng_state(), state), "the caller's random numbers are untouched"
    assert draw(0) == first != draw(1)
    assert first != [
        each.tokens for each in generate(gpt2, [3, 4, 5], SCHEDULES, Sampling(tokens=8))
    ]
    monkeypatch.setattr(generation, "rebuild", no_plain_model)
    assert draw(0) == first


@pytest.mark.slow
def test_draws_have_the_models_probabilities(monkeypatch):
    """Without the tails that a configuration of generation may cut off."""
    net = tiny("gpt2")
    net.generation_config.update(top_k=1, top_p=0.1, do_sample=False, eos_token_id=None)
    model = open_model(net)
    # Once for all draws: it is the same model, and takes longer to make than to draw from.
    once = rebuild(model, clean(4))
    monkeypatch.setattr(generation, "rebuild", lambda *_: once)
    with torch.no_grad():
        shares = (net(torch.tensor([[3, 4, 5]])).logits[0, -1] / 2).softmax(-1)
    drawn = []
    for seed in range(300):
        sampling = Sampling(tokens=1, temperature=2.0, seed=seed)
        (found,) = generate(model, [3, 4, 5], [clean(4)], sampling)
        drawn += found.tokens
    counts = torch.bincount(torch.tensor(drawn), minlength=101)
    # Of 101 tokens; at 5 standard deviations.
    assert (counts - 300 * shares).abs().max() < 5 * (300 * shares.max()) ** 0.5
    assert len(set(drawn)) > 10


def test_a_text_is_given_its_bos_and_ends_where_the_model_ends_it():
    net = tiny("llama")
    net.resize_token_embeddings(257)
    model = open_model(net, tokenizer=byte_tokenizer())
    ids = [model.tokenizer.bos_token_id, *model.tokenizer("on", add_special_tokens=False).input_ids]
    (found,) = generate(model, "on", [(0, 2)], Sampling(tokens=5))
    assert found == generate(model, ids, [(0, 2)], Sampling(tokens=5))[0]
    assert found.text == model.tokenizer.decode(found.tokens, skip_special_tokens=True)
    net.generation_config.eos_token_id = [found.tokens[2], 256]
    (ended,) = generate(model, "on", [(0, 2)], Sampling(tokens=5))
    assert ended.tokens == found.tokens[: found.tokens.index(found.tokens[2]) + 1]


def test_progress_counts_tokens(gpt2):
    told = []
    generate(
        gpt2, [1, 2], [(0, 1), (1, 0)], Sampling(tokens=3), progress=lambda *each: told.append(each)
    )
    assert told[0] == (0, 6) and told[-1] == (6, 6)
    assert told == sorted(told) and {each for each in told} >= {(1, 6), (2, 6), (3, 6)}


def test_what_cannot_be_continued_is_refused(gpt2, llama):
    for prompt, tokens, problem in (
        ([], 5, "the prompt is empty"),
        ([101], 5, "no token 101: GPT2LMHeadModel has tokens 0 to 100"),
        ([1] * 28, 5, "a prompt of 28 tokens and 5 more are longer than GPT2LMHeadModel takes, 32"),
        ("Once", 5, "has no tokenizer: give token ids"),
        ([1], 0, "one token or more"),
    ):
        with pytest.raises(Refusal, match=problem):
            generate(gpt2, prompt, [(0, 1)], Sampling(tokens=tokens))
    generate(gpt2, [1] * 27, [(0, 1)], Sampling(tokens=5))
    with pytest.raises(Refusal, match="at a `temperature` of 0 or more"):
        generate(gpt2, [1], [(0, 1)], Sampling(temperature=float("nan")))
    with pytest.raises(Refusal, match="there is no block 4"):
        generate(gpt2, [1], [(0, 4)])
    with pytest.raises(Refusal, match="the prompt is empty"):
        generate(open_model(llama), " \n", [(0, 1)])


@pytest.mark.slow
def test_a_server_writes_what_this_machine_writes(llama, monkeypatch, tmp_path):
    here = open_model(llama, dtype="float64")
    schedules = [clean(4), (0, 2, 2, 3)]
    with serving("stages/tiny", llama, torch.float64) as both:
        configure(monkeypatch, *both, tmp_path)
        there = open_model("stages/tiny", remote=True)
        before = both[1].requests
        found = generate(there, "The cat", schedules, Sampling(tokens=6))
        assert both[1].requests - before == 2
        with pytest.raises(Refusal, match="random numbers of a server cannot be seeded"):
            generate(there, "The cat", schedules, Sampling(temperature=1.0))
    assert found == generate(here, "The cat", schedules, Sampling(tokens=6))


@pytest.mark.slow
def test_the_command_prints_each_order_and_what_is_written(run, monkeypatch):
    words = ("generate", "builtin", "--schedule", "0..5-7..", "--tokens", 12)
    code, out, err = run(*words, "Once upon a time")
    assert code == 0, err
    lines = out.splitlines()
    assert [line for line in lines if not line.startswith("    ")] == ["0..11:", "0..5-7..11:"]
    found = generate(
        open_model("builtin"),
        "Once upon a time",
        [clean(12), drop(clean(12), 6)],
        Sampling(tokens=12),
    )
    assert [line.removeprefix("    ") for line in lines if line.startswith("    ")] == [
        line for each in found for line in each.text.splitlines() if line.strip()
    ]
    monkeypatch.setattr(sys, "stdin", io.StringIO("Once upon a time\n"))
    assert run(*words[:-2], "--max-new-tokens", 12, "-")[1] == out
    for wrong, problem in (
        ((*words, " "), "the prompt is empty"),
        ((*words, "a " * 300), "shorten the prompt, or ask for fewer --tokens"),
        (("generate", "builtin", "--schedule", "0..99", "a"), "there is no block 99"),
    ):
        code, out, err = run(*wrong)
        assert (code, out) == (1, "") and problem in err.splitlines()[-1]
