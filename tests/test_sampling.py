import pytest
import torch
from families import tiny
from tokenizers_for_tests import byte_tokenizer

from recipes.training.sampling import sample, write
from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.text.sources import documents


@pytest.mark.slow
def test_as_many_tokens_as_were_asked_for_are_sampled_by_seed():
    model = open_model("builtin")
    texts = sample(model, 300, document=100)
    lengths = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
    assert len(texts) == 3 and all(90 < length <= 100 for length in lengths)
    assert texts == sample(model, 300, document=100) != sample(model, 300, document=100, seed=1)
    assert "<|endoftext|>" not in "".join(texts)


@pytest.mark.slow
def test_what_is_sampled_follows_the_models_own_distribution():
    """The first tokens of many documents are as frequent as the model says."""
    plain = tiny("llama", torch.float32)
    plain.config.vocab_size = 101
    with torch.no_grad():
        plain.lm_head.weight *= 0.3
    model = open_model(plain, tokenizer=byte_tokenizer())
    texts = sample(model, 4000, document=1)
    ids = torch.tensor([model.tokenizer(text)["input_ids"][0] for text in texts if text.isascii()])
    with torch.no_grad():
        logits = plain(torch.zeros(1, 1, dtype=torch.long)).logits[0, -1]
    logits[0] = -torch.inf
    expected = torch.softmax(logits, -1)
    found = torch.bincount(ids, minlength=101) / len(texts)
    # The tokens from 95 on are halves of characters, whose texts are no ASCII.
    likely = (expected > 0.02) & (torch.arange(101) < 95)
    assert likely.sum() > 3
    assert (found - expected)[likely].abs().max() < 0.03


def test_without_a_bos_there_is_nothing_to_begin_with():
    with pytest.raises(Refusal, match="has no BOS"):
        sample(open_model(tiny("gpt2")), 10)


def test_what_is_written_is_a_corpus_and_says_what_it_is(tmp_path):
    write(["One.", "Two – 2."], tmp_path / "a.jsonl.gz", "sampled from x")
    assert [text for _, text in documents(tmp_path / "a.jsonl.gz")] == ["One.", "Two – 2."]
    first = (tmp_path / "a.jsonl.gz").read_bytes()
    write(["One.", "Two – 2."], tmp_path / "b.jsonl.gz", "sampled from x")
    assert (tmp_path / "b.jsonl.gz").read_bytes() == first
    assert {text for _, text in documents(tmp_path / "a.jsonl.gz", field="source")} == {
        "sampled from x"
    }


@pytest.mark.slow
def test_the_shipped_samples_are_200_000_tokens():
    tokenizer = open_model("builtin").tokenizer
    texts = [text for _, text in documents("builtin-sampled")]
    assert sum(map(len, tokenizer(texts)["input_ids"])) >= 200_000
    marks = {text for _, text in documents("builtin-sampled", field="source")}
    assert marks == {"sampled from builtin, temperature 1, seed 0"}
