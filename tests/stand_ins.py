"""Small stand-ins: for the built-in models and texts, and for drawing, where a test is not of them.

A stand-in of a model has the built-in tokenizer, as many layers and as long a context, and random
weights of a few features; one of a text has its first documents, enough for figures and claims.
"""

import json
from collections.abc import Mapping
from pathlib import Path

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, GPTNeoXConfig
from transformers import GPTNeoXForCausalLM as GPTNeoX

from probes import classifier
from recipes.report import content, page
from robustness.files import ownership
from robustness.models import checkpoint
from robustness.text import sources

WIDTH = 16

DOCUMENTS = {"builtin": 21, "builtin-sampled": 60}
"""How many documents are left of the built-in texts."""

DRAWN = f"""<svg width="100pt" height="100pt" xmlns="http://www.w3.org/2000/svg"><metadata
 xmlns:dc="http://purl.org/dc/elements/1.1/"><dc:creator>{ownership.MARK}</dc:creator></metadata>
<path d="M 0 0"/></svg>
"""
"""What stands for every figure."""


def make_texts(directory: Path, counts: Mapping[str, int] = DOCUMENTS) -> dict[str, str]:
    """Write the first documents of the built-in texts; return the files by the texts' names."""
    made = {}
    for name, count in counts.items():
        path = directory / f"{name}.jsonl"
        texts = [text for _, text in sources.documents(name)][:count]
        path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
        made[name] = str(path)
    return made


def make_models(directory: Path) -> dict[str, str]:
    """Write random models for the built-in ones; return the directories by the models' names."""
    tokenizer = AutoTokenizer.from_pretrained(checkpoint.resolve("builtin")[1])
    shared = {"vocab_size": len(tokenizer), "bos_token_id": 0, "eos_token_id": 0,
              "initializer_range": 0.3}  # fmt: skip
    torch.manual_seed(0)
    models = {
        "builtin": GPT2LMHeadModel(
            GPT2Config(n_embd=WIDTH, n_layer=12, n_head=1, n_positions=256, **shared)
        ),
        "builtin-parallel": GPTNeoX(
            GPTNeoXConfig(
                hidden_size=WIDTH, intermediate_size=4 * WIDTH, num_hidden_layers=12,
                num_attention_heads=1, max_position_embeddings=256, **shared,
            )
        ),
    }  # fmt: skip
    made = {}
    for name, model in models.items():
        model.save_pretrained(directory / name)
        tokenizer.save_pretrained(directory / name)
        made[name] = str(directory / name)
    return made


def stand_in(monkeypatch, texts: dict[str, str], models: dict[str, str]) -> None:
    """Put stand-ins in the places of built-in texts and models."""
    for name, path in texts.items():
        monkeypatch.setitem(sources.BUILTIN, name, path)
    for name, path in models.items():
        monkeypatch.setitem(checkpoint.BUILTIN, name, path)
    fit_once(monkeypatch)


def fit_once(monkeypatch) -> None:
    """Let every probe be fitted with one strength of its penalty, not with each of several."""
    monkeypatch.setattr(classifier, "STRENGTHS", (1e-2,))


def leave_undrawn(monkeypatch) -> None:
    """Let the figures of reports be made, but not be drawn, which takes most of a report's time."""
    for module in (content, page):
        monkeypatch.setattr(module, "to_svg", lambda figure: DRAWN)
