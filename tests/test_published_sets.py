"""Published sets of blocks, and real checkpoints against them: `HF_HUB_OFFLINE=0 pytest -m hub`.

The texts are not the authors': what is tested is what they claim of a model whatever the text.
"""

import numpy as np
import pytest
import scipy

from robustness.files.kinds.searches import CHOSEN
from robustness.models.opening import open_model
from robustness.pruning.search import prune
from robustness.pruning.settings import PruningSettings
from robustness.schedules import Attention, Mlp, from_text
from robustness.sweeps import sweep
from robustness.text import cut

LLAMA_2, LLAMA_3, MISTRAL = (
    "meta-llama/Llama-2-7b-hf",
    "meta-llama/Meta-Llama-3-8B",
    "mistralai/Mistral-7B-v0.3",
)

SINGLE = {
    0: 19177.85, 1: 14742.75, 2: 26.34, 3: 24.89, 4: 23.44, 5: 22.49, 6: 22.11, 7: 21.56, 8: 21.48,
    9: 21.58, 10: 21.61, 11: 21.36, 12: 21.54, 13: 22.16, 14: 21.71, 15: 21.86, 16: 23.54,
    17: 22.05, 18: 21.61, 19: 22.36, 20: 21.96, 21: 21.50, 22: 22.31, 23: 21.75, 24: 21.49,
    25: 21.76, 26: 22.03, 27: 21.68, 28: 22.27, 29: 22.98, 30: 24.12, 31: 45.74,
}  # fmt: skip
"""Perplexity of Llama-2-7B on BookCorpus without each block (Kim et al. 2024, Shortened LLaMA)."""

SHORTGPT = {"meta-llama/Llama-2-7b-hf": range(21, 30), "meta-llama/Llama-2-13b-hf": range(26, 36)}
"""Blocks that block influence removes (Men et al. 2024)."""

EVOPRESS = {
    (LLAMA_2, 0.125): "0..10-a11-13..22-m24-26..31",
    (LLAMA_2, 0.25): "0..8-a9-a11-m14-15..21-a22-m24-26-m27-28..31",
    (LLAMA_3, 0.25): "0..3-5..7-a8-a10-m11-12..18-m20-21..24-m27-a28-29..31",
    (MISTRAL, 0.125): "0..10-14..26-28..31",
    (MISTRAL, 0.25): "0..7-a8-9-10-a11-a12-m14-15..21-m22-m26-a27-m28-29..31",
}
"""Schedules with a share of attentions and MLPs removed (Sieberling et al. 2024)."""

FEWER = "0..7-m8-m9-10-m12-13..18-23-24-a25-a26-27-a28-29..31"
MORE = "0..6-a7-m12-13..18-m23-24-a25-27-29..31"
"""Two schedules of Llama-3-8B by EvoPress's authors: the second lacks all that the first lacks, and
more, and predicts better. A search that only ever adds to a set cannot see that."""


def removed(text: str) -> set[Attention | Mlp]:
    """Attentions and MLPs that a schedule of 32 blocks lacks."""
    every = {kind(block) for block in range(32) for kind in (Attention, Mlp)}
    for step in from_text(text, 32):
        every -= {Attention(step), Mlp(step)} if isinstance(step, int) else {step}
    return every


@pytest.mark.parametrize(("model", "share"), EVOPRESS)
def test_a_published_schedule_lacks_its_share(model, share):
    assert len(removed(EVOPRESS[model, share])) == 64 * share


def test_more_is_removed_by_the_schedule_that_predicts_better():
    assert removed(FEWER) < removed(MORE)


def rises(model, corpus, schedules) -> np.ndarray:
    """Mean rise of the loss under every schedule."""
    data = sweep(model, corpus, schedules=schedules, readouts=["loss"])
    return (data["loss"] - data["clean_loss"]).mean("sequence").values


def without_each(layers: int) -> list[tuple[int, ...]]:
    return [tuple(b for b in range(layers) if b != block) for block in range(layers)]


def influenced(model, corpus, count: int) -> set[int]:
    """Blocks that block influence removes."""
    settings = PruningSettings(remove=count, methods=("influence",), holdout=0.25)
    found = prune(model, [corpus], settings)
    at = (found["standing"].isel(strategy=0, step=-1) == CHOSEN).values
    return set(map(int, str(found["removed"].values[at].item()).split()))


def opened(name: str, tokens: int = 20_000):
    """A real checkpoint, and WikiText-2 in windows of 512 tokens."""
    model = open_model(name, dtype="auto")
    source = "Salesforce/wikitext:wikitext-2-raw-v1"
    return model, cut(source, model.tokenizer, context=512, tokens=tokens, pack=True)


@pytest.mark.hub
def test_single_blocks_of_llama_2_cost_in_the_published_order():
    model, corpus = opened(LLAMA_2)
    ours, theirs = rises(model, corpus, without_each(32)), np.log(list(SINGLE.values()))
    assert set(np.argsort(ours)[-3:]) == {0, 1, 31}
    assert scipy.stats.spearmanr(ours, theirs).statistic > 0.7


@pytest.mark.hub
@pytest.mark.parametrize("name", SHORTGPT)
def test_block_influence_removes_the_published_blocks(name):
    model, corpus = opened(name)
    assert influenced(model, corpus, len(SHORTGPT[name])) == set(SHORTGPT[name])


@pytest.mark.hub
@pytest.mark.parametrize(("name", "share"), EVOPRESS)
def test_evopress_costs_less_than_block_influence(name, share):
    model, corpus = opened(name)
    theirs = from_text(EVOPRESS[name, share], 32)
    blocks = influenced(model, corpus, round(32 * share))
    ours = tuple(block for block in range(32) if block not in blocks)
    found, by_influence = rises(model, corpus, [theirs, ours])
    assert found < by_influence


@pytest.mark.hub
def test_llama_3_predicts_better_without_more():
    model, corpus = opened(LLAMA_3)
    fewer, more = rises(model, corpus, [from_text(text, 32) for text in (FEWER, MORE)])
    assert more < fewer


@pytest.mark.slow
def test_what_is_asked_of_real_checkpoints_can_be_asked(gpt2):
    """The way to it, on random weights, of which nothing is published."""
    from robustness.text.corpus import Corpus

    ids = np.random.default_rng(0).integers(0, gpt2.vocabulary, (16, 16))
    corpus = Corpus(ids, np.full(16, 16), np.arange(16) // 2, "random", "windows", "none", 0)
    assert np.isfinite(rises(gpt2, corpus, [*without_each(4), (0, Mlp(1), 3)])).all()
    assert len(influenced(gpt2, corpus, 2)) == 2
