from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from families import tiny
from strict import StrictBackend
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from probes import subjoiner
from probes.settings import SubjoinerSettings
from probes.subjoiner import probe_subjoiner, score_heads
from probes.words_in_pieces import Inputs, make_inputs
from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.models.opening import open_model
from robustness.runs.settings import RunOptions

SHORT = (
    "cat dog sun sea tree house bird road hill wind rain snow moon star fish lamp door wall hand "
    "foot milk bell ring king"
).split()
LONG = [
    a + b + c for a in "bdfgjk" for b in ("aku", "omi", "exu") for c in ("lenz", "riwy", "togh")
]


def tokenizer():
    """Words of `SHORT` are one token, with the space before them; all else is letters."""
    alphabet = [*"abcdefghijklmnopqrstuvwxyz", "Ġ", "."]
    vocabulary = {"<s>": 0}
    for token in [*alphabet, *SHORT, *("Ġ" + word for word in SHORT)]:
        vocabulary.setdefault(token, len(vocabulary))
    merges = []
    for word in SHORT:
        for end in range(2, len(word) + 1):
            vocabulary.setdefault(word[:end], len(vocabulary))
            merges.append((word[: end - 1], word[end - 1]))
        merges.append(("Ġ", word))
    made = Tokenizer(models.BPE(vocab=vocabulary, merges=list(dict.fromkeys(merges))))
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=made, bos_token="<s>", eos_token="<s>")


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("text") / "words.jsonl"
    lines = []
    for _ in range(60):
        words = random.choice(SHORT, 80).tolist()
        for place in range(20, 80, 9):
            words[place] = random.choice(LONG)
        lines.append('{"text": "' + " ".join(words) + '."}')
    path.write_text("\n".join(lines))
    return path


def pieces():
    """How many tokens most of the long words have: letters, the space before them apart."""
    made = tokenizer()
    counts = Counter(len(made(word, add_special_tokens=False)["input_ids"]) for word in LONG)
    return counts.most_common(1)[0][0]


def by_hand(strength=8.0):
    """A GPT-2 in which head 1 of block 1 attends to letters, all others evenly."""
    made = tokenizer()
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=len(made), n_positions=64, n_embd=32, n_layer=3, n_head=4,
        bos_token_id=0, eos_token_id=0,
    )  # fmt: skip
    net = GPT2LMHeadModel(config).eval()
    letters = [token for word, token in made.get_vocab().items() if len(word) == 1 and word != "Ġ"]
    with torch.no_grad():
        net.transformer.wte.weight.normal_(std=0.1)
        net.transformer.wpe.weight.zero_()
        net.transformer.wte.weight[:, 0] = -1
        net.transformer.wte.weight[letters, 0] = 1
        for block in net.transformer.h:
            block.attn.c_attn.weight.zero_()
            block.attn.c_attn.bias.zero_()
            block.attn.c_proj.weight.zero_()
            block.mlp.c_proj.weight.zero_()
        attention = net.transformer.h[1].attn.c_attn
        attention.bias[8] = strength  # the first feature of the query of head 1
        attention.weight[0, 32 + 8] = 1.0  # is the letter feature in the key of head 1
    return open_model(net, tokenizer=made)


def test_inputs_end_in_words_of_so_many_pieces_or_one(text):
    made = tokenizer()
    inputs = make_inputs(made, SubjoinerSettings(text, pieces=pieces(), items=100))
    assert inputs.tokens.shape[1] == 17 and (inputs.tokens[:, 0] == 0).all()
    assert inputs.pieces.sum() == 100 == (~inputs.pieces).sum()
    for ids, word, kind in zip(inputs.tokens, inputs.word, inputs.pieces, strict=True):
        assert made.decode(ids).endswith(f" {word}") and (word in LONG) == kind
    for word in np.unique(inputs.word):
        assert len(set(inputs.held_out[inputs.word == word])) == 1
    assert 0.2 < inputs.held_out.mean() < 0.8


@pytest.mark.slow
def test_a_head_made_by_hand_is_found_and_no_other(text):
    data = probe_subjoiner(by_hand(), SubjoinerSettings(text, pieces=pieces(), items=200))
    assert data.found.sum() == 1 and data.found.sel(layer=1, head=1) == 1
    score = data.score.sel(layer=1, head=1)
    assert score > 0.2 and data.score_low.sel(layer=1, head=1) > 0.1
    others = data.score.where(data.found == 0)
    assert abs(others).max() < 0.02
    weight = data.attention.sel(layer=1, head=1)
    last = weight.sel(key=slice(-pieces() + 2, -1)).sum("key")
    assert last.sel(input_class="pieces") > 2 * last.sel(input_class="whole")


def test_of_heads_that_look_at_no_pieces_hardly_one_is_found(text):
    data = probe_subjoiner(by_hand(strength=0), SubjoinerSettings(text, pieces=pieces(), items=100))
    assert data.found.sum() == 0
    assert (abs(data.score) < 0.01).all()


@pytest.mark.slow
def test_a_head_that_knows_words_and_not_pieces_is_not_found(monkeypatch):
    """Words differ, and of one class there are few: inputs are no more than their words."""
    # Intervals have tests of their own, and do not say what is found.
    monkeypatch.setattr(
        subjoiner, "_bounds", lambda gathered, *_: (gathered[..., 0], gathered[..., 0])
    )
    hits = 0
    for seed in range(60):
        random = np.random.default_rng(seed)
        word = np.concatenate([np.repeat(np.arange(25), 20), 100 + np.repeat(np.arange(150), 4)])
        kind = word < 100
        held_out = word % 2 == 1
        of_word = random.normal(0.3, 0.1, (250, 8))
        weight = of_word[word].T[None, :, None] * np.ones((1, 1, 16, 1)) / 3
        noise = random.normal(0, 0.01, weight.shape)
        dataset = xr.Dataset(
            {"weight": (("layer", "head", "key", "input"), weight + noise)},
            coords={"layer": [0], "relative_depth": ("layer", [0.0]), "key": np.arange(-15, 1)},
        ).assign_coords(head=np.arange(8))
        inputs = Inputs(np.zeros((len(word), 17), int), kind, word.astype(str), held_out)
        hits += int(score_heads(dataset, inputs, SubjoinerSettings(seed=seed)).found.sum() > 0)
    assert hits <= 9, "of 60, 3 are expected"


def test_few_different_words_are_refused(tmp_path):
    path = tmp_path / "few.jsonl"
    line = " ".join(SHORT * 3 + [LONG[0]] * 2)
    path.write_text("\n".join('{"text": "' + line + '"}' for _ in range(60)))
    with pytest.raises(Refusal, match=r"has \d+ different words of \d+ token\(s\); 20 are needed"):
        make_inputs(tokenizer(), SubjoinerSettings(path, pieces=pieces()))
    with pytest.raises(Refusal, match="there is no tokenizer with offsets"):
        probe_subjoiner(open_model(tiny("gpt2")), SubjoinerSettings(path))


@pytest.mark.slow
def test_on_a_server_and_resumed_it_is_the_same(text, tmp_path):
    model = by_hand()
    settings = SubjoinerSettings(text, pieces=pieces(), items=100)
    whole = probe_subjoiner(model, settings)
    remote = replace(model, request={"backend": StrictBackend(model.traced)})
    found = probe_subjoiner(remote, settings, RunOptions(batch_tokens=500))
    xr.testing.assert_allclose(whole, found)

    def stop(done, _total):
        if done > 100:
            raise KeyboardInterrupt

    options = RunOptions(out=tmp_path / "a.nc", batch_tokens=500)
    with pytest.raises(KeyboardInterrupt):
        probe_subjoiner(model, settings, replace(options, progress=stop))
    assert netcdf.load(tmp_path / "a.partial.nc").sequences_done > 100
    xr.testing.assert_allclose(whole, probe_subjoiner(model, settings, options))
    xr.testing.assert_allclose(whole, probe_subjoiner(model, settings, options))
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


def test_too_few_words_are_refused(text):
    with pytest.raises(Refusal, match=r"has \d+ words of 13 tokens .*`pieces`"):
        make_inputs(tokenizer(), SubjoinerSettings(text, pieces=13))
    with pytest.raises(Refusal, match="a word in pieces has 2 or more, not 1"):
        SubjoinerSettings(text, pieces=1)
