"""Rotary embeddings that are others above a length, as of Phi-3 with 128k: texts do not mix."""

import json

import numpy as np
import pytest
import torch
from test_execution import corpus
from tokenizers_for_tests import byte_tokenizer
from transformers import Phi3Config, Phi3ForCausalLM

from robustness.errors import Refusal
from robustness.measurements.clean_pass import Reading
from robustness.measurements.observation import observe
from robustness.measurements.short_texts import ShortTexts, scan
from robustness.models.opening import open_model
from robustness.runs.batching import batches
from robustness.runs.settings import RunOptions
from robustness.sweeps import sweep
from robustness.tasks import TaskSettings, evaluate_tasks

BEND = 16


@pytest.fixture(scope="module")
def net():
    torch.manual_seed(0)
    config = Phi3Config(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=128, bos_token_id=0, eos_token_id=0,
        pad_token_id=0, initializer_range=0.4, original_max_position_embeddings=BEND,
        rope_parameters={
            "rope_type": "longrope", "rope_theta": 10000.0, "short_factor": [1.0] * 4,
            "long_factor": [3.0, 5.0, 9.0, 20.0], "original_max_position_embeddings": BEND,
        },
    )  # fmt: skip
    return Phi3ForCausalLM(config).double().eval()


@pytest.fixture(scope="module")
def model(net):
    return open_model(net, tokenizer=byte_tokenizer())


def last(captured, text):
    state = captured["residual"]
    return {"state": state[torch.arange(len(state)), text["lengths"] - 1].T}


def test_padding_does_change_what_the_plain_model_gives(net):
    short = torch.arange(1, 12)[None]
    padded = torch.nn.functional.pad(short, (0, BEND))
    with torch.no_grad():
        alone, filled = (net(ids, use_cache=False).logits[:, :11] for ids in (short, padded))
    assert (alone - filled).abs().max() > 0.1


def test_a_text_of_a_probe_is_measured_as_alone_whatever_is_in_its_batch(net, model):
    random = np.random.default_rng(0)
    items = [random.integers(1, 257, size).tolist() for size in (5, 11, 16, 17, 18, 40)]
    found = {}
    for tokens in (1, 10_000):
        scanned = scan(
            model,
            ShortTexts(items),
            Reading(last, final=True),
            options=RunOptions(batch_tokens=tokens),
        )
        found[tokens] = np.concatenate([values["state"] for _, values in scanned], -1)
    for at, ids in enumerate(items):
        with torch.no_grad():
            kept = net(torch.tensor([ids]), use_cache=False, output_hidden_states=True)
        for values in found.values():
            # The last of the plain model's is normed.
            for depth, state in enumerate(kept.hidden_states[:-1]):
                np.testing.assert_allclose(values[depth, :, at], state[0, -1], atol=1e-6)


def test_tasks_do_not_depend_on_the_batch(model, tmp_path):
    items = ({"context": "a " * size, "continuation": "b"} for size in (3, 5, 7, 9, 12, 20))
    text = "".join(json.dumps(item) + "\n" for item in items)
    (tmp_path / "lambada_openai.jsonl").write_text(text)
    whole, alone = (
        evaluate_tasks(
            model,
            TaskSettings(("lambada_openai",), ("drop",), data=tmp_path),
            RunOptions(batch_tokens=tokens),
        )
        for tokens in (10_000, 1)
    )
    for name, values in whole.data_vars.items():
        if values.dtype.kind == "f":
            np.testing.assert_allclose(values, alone[name], rtol=1e-6, err_msg=name)


def test_documents_on_both_sides_are_not_measured_together(model):
    mixed = corpus(sequences=3, length=20, lengths=[20, 12, 20])
    for measure in (lambda: sweep(model, mixed), lambda: observe(model, mixed, ("lens",))):
        with pytest.raises(Refusal, match=f"of 12 and of 20 tokens .* `context` {BEND} or less"):
            measure()
    for length, lengths in ((20, [20, 18, 17]), (16, [16, 12, 9])):
        text = corpus(sequences=3, length=length, lengths=lengths)
        together, alone = (sweep(model, text, batch_tokens=tokens) for tokens in (1000, 1))
        np.testing.assert_allclose(together.kl, alone.kl, atol=1e-6)


def test_no_batch_has_texts_on_both_sides_of_a_bend():
    lengths = [3, 9, 16, 17, 20, 64, 65, 100]
    found = batches(lengths, 10_000, bends=(16, 64))
    assert [(rows.start, rows.stop) for rows in found] == [(0, 3), (3, 6), (6, 8)]
    assert batches(lengths, 10_000) == [slice(0, 8)]
