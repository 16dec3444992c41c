"""A search on a server finds what it finds here."""

import json
from dataclasses import replace

import numpy as np
import pytest
from loopback import NAME

from robustness.pruning import PruningSettings, prune
from robustness.runs.settings import RunOptions

TEXT = ("--tokens", 240, "--context", 24, "--batch-tokens", 96, "--pack", "--holdout", 0.4)


@pytest.mark.slow
@pytest.mark.parametrize("units", ["block", "sublayer"])
def test_a_search_there_is_one_here(there, local, corpus, units):
    methods = ("greedy", "influence") if units == "block" else ("greedy",)
    settings = PruningSettings(remove=2, methods=methods, units=units, holdout=0.4)
    corpus = replace(corpus, document=np.arange(len(corpus.tokens)))
    found, expected = (
        prune(model, [corpus], settings, RunOptions(batch_tokens=96)) for model in (there, local)
    )
    np.testing.assert_array_equal(found["chosen"], expected["chosen"])
    np.testing.assert_array_equal(found["standing"], expected["standing"])
    for name in ("kl", "loss", "clean_loss"):
        np.testing.assert_allclose(found[name], expected[name], atol=1e-10, err_msg=name)
    for name in ("parameters", "flops_share", "kv_bytes", "probability"):
        np.testing.assert_array_equal(found[name], expected[name], err_msg=name)


@pytest.mark.slow
def test_a_dry_run_of_a_search_sends_nothing_but_the_check(server, run, stories, tmp_path):
    words = ("prune", NAME, "--remove", 2, "--data", stories, *TEXT)
    code, out, err = run(*words, "--remote", "--dry-run", "--json")
    assert code == 0, err
    rows = {row["what"]: row["cost"] for row in json.loads(out)["tables"][0]["rows"]}
    assert server.executed <= 1 and not (tmp_path / "outputs").exists()
    assert rows["schedules"].startswith("at most 10") and int(rows["requests"]) > 1
