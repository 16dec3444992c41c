from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from tokenizers_for_tests import byte_tokenizer

from robustness.errors import Refusal
from robustness.text.corpus import cut, first_documents, read_text
from robustness.text.settings import TextSettings


@dataclass
class Reader:
    """A model of which only what reads text is there."""

    context: int | None = None
    name: str = "reader"
    tokenizer: Any = field(default_factory=byte_tokenizer)


def test_read_text_is_cut_with_the_models_tokenizer():
    settings = TextSettings(tokens=200, context=20, seed=3, pack=True)
    read = read_text(settings, Reader())
    expected = cut("builtin", byte_tokenizer(), tokens=200, context=20, seed=3, pack=True)
    assert np.array_equal(read.tokens, expected.tokens)
    assert read.settings() == expected.settings()


def test_read_text_takes_the_first_documents_for_the_paper():
    settings = TextSettings(paper_compat=True, documents=4, context=30)
    read = read_text(settings, Reader())
    expected = first_documents("builtin", byte_tokenizer(), context=30, count=4)
    assert np.array_equal(read.tokens, expected.tokens)
    assert read.settings() == expected.settings()


@pytest.mark.parametrize(("limit", "context"), [(None, 256), (1000, 256), (100, 100)])
def test_a_sequence_has_256_tokens_or_as_many_as_the_model_takes(limit, context):
    assert read_text(TextSettings(tokens=256), Reader(limit)).context == context


@pytest.mark.parametrize(("limit", "context"), [(None, 2048), (3000, 2048), (100, 100)])
def test_a_document_of_the_papers_is_cut_off_at_2048_or_the_models_limit(tmp_path, limit, context):
    (tmp_path / "long.txt").write_text("x" * 5000)
    settings = TextSettings(tmp_path / "long.txt", paper_compat=True, documents=1)
    assert read_text(settings, Reader(limit)).context == context


@pytest.mark.parametrize("paper", [False, True])
def test_a_context_longer_than_the_model_takes_is_refused(paper):
    settings = TextSettings(context=101, paper_compat=paper)
    with pytest.raises(Refusal, match="101 is longer than reader takes: 100 tokens"):
        read_text(settings, Reader(100))


@pytest.mark.parametrize(
    ("settings", "named"),
    [
        ({"paper_compat": True, "tokens": 5}, "`paper_compat` goes without `tokens`"),
        (
            {"paper_compat": True, "pack": True, "seed": 1},
            "`paper_compat` goes without `pack`, `seed`",
        ),
        ({"documents": 3}, "`documents` goes with `paper_compat`"),
        ({"context": 2}, "a context of 2 is too short"),
    ],
)
def test_settings_that_contradict_each_other_are_refused_by_name(settings, named):
    with pytest.raises(Refusal, match=named):
        TextSettings(**settings)
