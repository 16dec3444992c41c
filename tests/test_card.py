"""The card of a trained model: what it says follows from its files, for any number of blocks."""

import re

import pytest

from recipes.training import Pretraining, pretrain, pretraining
from recipes.training.card import card, prose
from robustness.models.opening import open_model
from robustness.text.corpus import Corpus
from robustness.text.sources import documents

SMALL = {
    "width": 16, "heads": 2, "context": 16, "vocabulary": 257, "batch": 2, "warmup": 2,
    "tokens": 2 * 16 * 3,
}  # fmt: skip


def some(tokenizer: object, context: int) -> Corpus:
    """Cut the prose, and take a few sequences, each of another document."""
    return prose(tokenizer, context).part(slice(0, None, 500))


@pytest.mark.slow
@pytest.mark.parametrize("layers", [1, 2, 3, 4])
def test_a_card_says_of_few_blocks_what_can_be_said(tmp_path, monkeypatch, layers):
    monkeypatch.setattr(pretraining, "prose", some)
    settings = Pretraining(layers=layers, **SMALL)
    log = pretrain(tmp_path / "tiny", ["builtin"], settings=settings)
    text = (tmp_path / "tiny" / "README.md").read_text()
    assert text.startswith(
        f"# GPT2LMHeadModel, {layers} blocks of width 16".replace("1 blocks", "1 block")
    )
    assert not re.search(r"\b(nan|inf)\b", text) and ".stages" not in text
    assert ("Dropping block 0 costs" in text) == (layers > 1)
    assert ("the median of the interior" in text) == (layers > 2)
    assert ("swaps of interior blocks" in text) == ("interior layers" in text) == (layers > 3)
    assert f"| {float(log.held_out_loss[-1, 0]):.3f} |" in text
    if layers > 1:
        assert "tiny (GPT2LMHeadModel, float32) on builtin" in text
        # The sweep is of the model as it was written.
        corpus = some(open_model(tmp_path / "tiny").tokenizer, 16)
        assert card(tmp_path / "tiny", log, corpus) == text


def test_a_table_survives_the_names_of_its_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(pretraining, "prose", some)
    text = "".join(text for _, text in documents("builtin"))[:6000]
    sources = [tmp_path / "a" / "x|\x1b[31m.txt", tmp_path / "b" / "x|\x1b[31m.txt"]
    for path in sources:
        path.parent.mkdir()
        path.write_text(text[: len(text) // 2] + "<|endoftext|>" + text[len(text) // 2 :])
    pretrain(tmp_path / "tiny", sources, settings=Pretraining(layers=1, **SMALL))
    page = (tmp_path / "tiny" / "README.md").read_text()
    assert "\x1b" not in page
    rows = [line for line in page.splitlines() if line.startswith("| x")]
    assert len(rows) == 4 and all(row.count("|") - row.count("\\|") == 5 for row in rows)
