"""Methods of a search against plain implementations of them: one model rebuilt for every set."""

from functools import cache

import numpy as np
import pytest
import torch
from families import config, random_tokens
from oracles import pruning as oracles
from transformers import AutoModelForCausalLM

from robustness.files.kinds.searches import NOT_RACED, NOT_WEIGHED
from robustness.models.opening import open_model
from robustness.pruning.search import prune
from robustness.pruning.settings import PruningSettings
from robustness.pruning.units import names, units_of, without
from robustness.runs.settings import RunOptions
from robustness.text.corpus import Corpus

LAYERS, LAST, SEARCHED = 6, 4, 10
FAMILIES = {"gpt2": 13, "gpt_neox": 8}
"""One whose MLP reads what its attention wrote, and one where both read the same, with a seed of
weights at which methods differ."""


@cache
def deep(family: str):
    """A tiny model of six blocks, whose units are of very different size and interact."""
    torch.manual_seed(FAMILIES[family])
    settings = config(family)
    settings.num_hidden_layers = LAYERS
    net = AutoModelForCausalLM.from_config(settings, dtype=torch.float64).eval()
    net.family = family
    with torch.no_grad():
        for name, weight in net.named_parameters():
            if weight.ndim == 1 and ("norm" in name or ".ln_" in name):
                weight.normal_(0.0 if name.endswith("bias") else 1, 0.5)
            if weight.ndim == 2 and (".h." in name or ".layers." in name):
                weight.mul_(2 * torch.rand(1).item())
    return net


@cache
def opened(family: str):
    return open_model(deep(family))


def text(sequences: int = 14, documents: int = 7, seed: int = 0) -> Corpus:
    """Few documents, of which no race drops anything."""
    tokens = random_tokens(sequences, 10, seed).numpy()
    return Corpus(
        tokens=tokens,
        lengths=np.full(sequences, 10),
        document=np.arange(sequences) * documents // sequences,
        name="random",
        rule="windows",
        bos="none",
        seed=0,
    )


@cache
def costs(family: str, units: str, objective: str) -> oracles.Costs:
    return oracles.Costs(
        deep(family),
        units_of(units, range(LAYERS)),
        lambda cut: without(LAYERS, cut),
        torch.from_numpy(text().tokens[:SEARCHED]),
        objective,
    )


def search(family: str, methods, units: str = "block", objective: str = "kl", **settings):
    wanted = PruningSettings(
        remove=settings.pop("last", LAST), methods=methods, units=units, objective=objective,
        holdout=0.3, **settings,
    )  # fmt: skip
    return prune(opened(family), [text()], wanted, RunOptions(batch_tokens=40))


def removed(found, method: str) -> list[str]:
    texts = found["chosen"].sel(strategy=method).values
    of_candidate = dict(zip(found["candidate"].values, found["removed"].values, strict=True))
    return [str(of_candidate[text]) for text in texts]


OF_MEASURED = {
    "greedy": oracles.greedy,
    "beam": lambda costs, last: oracles.beam(costs, last, 3),
    "one-shot": oracles.one_shot,
    "span": oracles.span,
    "exhaustive": oracles.exhaustive,
    "pairwise": lambda costs, last: oracles.pairwise(costs, last, 4),
    "influence": oracles.influence,
    "angular": oracles.angular,
}


@pytest.mark.slow
@pytest.mark.parametrize(("family", "objective"), [("gpt2", "loss"), ("gpt_neox", "kl")])
def test_every_method_removes_what_a_plain_implementation_of_it_removes(family, objective):
    found = search(family, list(OF_MEASURED), objective=objective, beam=3, finalists=4)
    assert (found["part"] == "search").sum() == SEARCHED
    plain = costs(family, "block", objective)
    chosen = set()
    for method, oracle in OF_MEASURED.items():
        expected = [names(cut) for cut in oracle(plain, LAST)]
        assert removed(found, method) == expected, method
        chosen.add(tuple(expected))
    standing = found["standing"].sel(strategy="pairwise")
    weighed = (standing > NOT_WEIGHED).sum("candidate")
    assert weighed.values.tolist() == [6, 15, 2, 4], "as many are measured at each step"
    apart = (standing == NOT_RACED).sum("candidate")
    assert (weighed - apart).values.tolist() == [2, 2, 2, 4], "as many are raced at each step"
    assert len(chosen) >= 5, "most methods remove the same, so that they are not told apart"


@pytest.mark.slow
@pytest.mark.parametrize("family", FAMILIES)
def test_costs_of_all_candidates_are_those_of_rebuilt_models(family):
    for objective in ("kl", "loss"):
        found = search(family, ["greedy"], objective=objective, last=2)
        values = found["kl"] if objective == "kl" else found["loss"] - found["clean_loss"]
        ours = values.isel(sequence=slice(0, SEARCHED)).mean("sequence")
        plain = costs(family, "block", objective)
        for one, cut in zip(ours.values, found["removed"].values, strict=True):
            assert one == pytest.approx(plain([int(unit) for unit in cut.split()]), abs=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "units"), [("gpt2", "sublayer"), ("gpt_neox", "attention"), ("gpt_neox", "mlp")]
)
def test_greedy_over_sublayers_removes_what_hooks_that_zero_them_say(family, units):
    methods = {"greedy": oracles.greedy, "one-shot": oracles.one_shot}
    found = search(family, list(methods), units=units, last=3)
    plain = costs(family, units, "kl")
    for method, oracle in methods.items():
        assert removed(found, method) == [names(cut) for cut in oracle(plain, 3)], method
