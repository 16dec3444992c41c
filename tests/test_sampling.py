import pytest
import torch
from families import tiny
from tokenizers_for_tests import byte_tokenizer

from recipes.sampling import sample
from robustness.model import open_model
from robustness.refusal import Refusal


def test_as_many_tokens_as_were_asked_for_are_sampled_by_seed():
    model = open_model("builtin")
    texts = sample(model, 900, document=300)
    lengths = [len(ids) for ids in model.tokenizer(texts)["input_ids"]]
    assert len(texts) == 3 and all(270 < length <= 300 for length in lengths)
    assert texts == sample(model, 900, document=300) != sample(model, 900, document=300, seed=1)
    assert "<|endoftext|>" not in "".join(texts)


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
    likely = expected > 0.02
    assert likely.sum() > 3
    assert (found - expected)[likely].abs().max() < 0.03


def test_without_a_bos_there_is_nothing_to_begin_with():
    with pytest.raises(Refusal, match="has no BOS"):
        sample(open_model(tiny("gpt2")), 10)
