import gc
import os
import sys

# Imports make millions of objects that stay: collecting in between takes a sixth of the time.
gc.disable()

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

from dataclasses import replace
from pathlib import Path

import hypothesis
import pytest
import torch
from families import DEEP, tiny
from strict import StrictBackend
from tokenizers_for_tests import byte_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from robustness.models.facts import Facts
from robustness.models.model import Model
from robustness.models.opening import open_model

# On a loaded machine any example may take long; the tests' own time limits are enough.
hypothesis.settings.register_profile("without deadlines", deadline=None)
hypothesis.settings.load_profile("without deadlines")


def pytest_collection_finish() -> None:
    """Leave what was imported out of every collection of garbage: that is most of all objects."""
    gc.collect()
    gc.freeze()
    gc.enable()


@pytest.fixture(scope="session", autouse=True)
def own_cache(tmp_path_factory: pytest.TempPathFactory) -> None:
    import datasets

    datasets.config.HF_DATASETS_CACHE = tmp_path_factory.mktemp("datasets")


@pytest.fixture(scope="session", params=DEEP)
def family(request: pytest.FixtureRequest) -> str:
    return request.param


@pytest.fixture(scope="session")
def plain(family: str) -> torch.nn.Module:
    """A tiny float64 model of transformers, untouched by nnsight."""
    return tiny(family)


@pytest.fixture(scope="session")
def model(family: str) -> Model:
    """The same model, opened."""
    return open_model(tiny(family))


@pytest.fixture
def strict_model(model: Model) -> Model:
    """The same model, behind a backend that runs traces as a server does."""
    return replace(model, request={"backend": StrictBackend(model.traced)}, facts=Facts())


@pytest.fixture(scope="session")
def gpt2() -> Model:
    return open_model(tiny("gpt2"))


@pytest.fixture(scope="session")
def llama(tmp_path_factory) -> Path:
    """A model with a byte vocabulary of 257 on disk."""
    path = tmp_path_factory.mktemp("models") / "tiny-llama"
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=257, hidden_size=32, intermediate_size=64, num_hidden_layers=4,
        num_attention_heads=4, max_position_embeddings=64, bos_token_id=0, eos_token_id=0,
        initializer_range=0.4,
    )  # fmt: skip
    LlamaForCausalLM(config).double().save_pretrained(path)
    byte_tokenizer().save_pretrained(path)
    return path


@pytest.fixture
def stories(tmp_path: Path) -> Path:
    """A corpus of twelve short documents."""
    path = tmp_path / "stories.jsonl"
    lines = (
        f'{{"text": "Story {i}. {"The cat sat on the mat and looked at the moon. " * (i + 2)}"}}'
        for i in range(12)
    )
    path.write_text("\n".join(lines) + "\n")
    return path


@pytest.fixture
def run(monkeypatch, tmp_path, capsys):
    """Run the command line in this process, in an empty directory."""
    import cli

    monkeypatch.chdir(tmp_path)

    def call(*words: object) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["stages", *map(str, words)])
        try:
            cli.main()
            code = 0
        except SystemExit as stop:
            code = stop.code
        captured = capsys.readouterr()
        return code, captured.out, captured.err

    return call
