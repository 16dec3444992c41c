"""A small model with a byte vocabulary, and items of three tasks."""

import json

import numpy as np
import pytest
import torch
from tokenizers_for_tests import byte_tokenizer
from transformers import GPT2Config, GPT2LMHeadModel

from robustness.models.opening import open_model


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    """Twelve items of each task, in the fields of the three kinds."""
    random = np.random.default_rng(0)
    path = tmp_path_factory.mktemp("tasks")

    def words(count):
        return " ".join(random.choice(["cat", "dog", "sun", "sea", "hill", "rain"], count))

    def write(name, make):
        rows = "".join(json.dumps(make()) + "\n" for _ in range(12))
        (path / f"{name}.jsonl").write_text(rows)

    def choices():
        texts = [words(int(random.integers(1, 5))) for _ in range(4)]
        return {"query": words(8), "choices": texts, "gold": int(random.integers(4))}

    write("hellaswag", choices)
    write("lambada_openai", lambda: {"context": words(6), "continuation": words(1)})

    def original():
        texts = [words(2) for _ in range(3)]
        labels = ["A", "B", "C"]
        return {
            "question": words(5) + "?",
            "choices": {"text": texts, "label": labels},
            "answerKey": str(random.choice(labels)),
        }

    write("arc_easy", original)
    return path


@pytest.fixture(scope="module")
def plain():
    torch.manual_seed(0)
    config = GPT2Config(
        vocab_size=257, n_positions=96, n_embd=32, n_layer=3, n_head=4, bos_token_id=0,
        eos_token_id=0, initializer_range=0.3,
    )  # fmt: skip
    return GPT2LMHeadModel(config).eval()


@pytest.fixture(scope="module")
def model(plain):
    return open_model(plain, tokenizer=byte_tokenizer())
