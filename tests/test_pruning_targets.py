"""Targets, units and texts of searches: where each ends, and what is refused before it begins."""

import json
from dataclasses import replace

import pytest
from families import tiny
from test_pruning import many, search
from test_pruning_methods import opened, text

from robustness.errors import Refusal
from robustness.models.opening import open_model
from robustness.pruning import measuring
from robustness.pruning.search import prune
from robustness.pruning.settings import METHODS, PruningSettings
from robustness.schedules import from_text


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"remove": 6}, "6 blocks cannot be removed: 5 of the model's 6 can"),
        ({"remove": 3, "layers": (1, 2)}, "3 blocks cannot be removed: `layers` has 2 that can"),
        ({"remove": 12, "units": "sublayer", "methods": ("greedy",)}, "11 of the model's 12 can"),
        ({"remove": 7, "units": "attention", "methods": ("greedy",)}, "6 of the model's 6 can"),
        ({"remove": 1, "layers": (7,)}, "has no layer 7"),
        ({"remove": None, "keep": 6}, "keep 5 or fewer"),
        ({"remove": None, "keep": 0}, "6 blocks cannot be removed"),
        ({"remove": None, "to_params": 0.01}, "parameters cannot be reached"),
        ({"remove": None, "to_params": 1e9}, "parameters cannot be reached"),
        ({"remove": None, "until_kl": 1e-9}, "ask for more than `until_kl`"),
        ({"remove": None}, "none was given"),
        ({"keep": 3}, "`remove` and `keep` were given"),
        ({"remove": 2, "layers": (0, 2), "methods": ("span",)}, "no 2 of the `layers` follow"),
        ({"remove": 1, "holdout": 0.05}, "takes 40 or more"),
    ],
)
def test_a_target_that_cannot_be_reached_is_refused(settings, message):
    with pytest.raises(Refusal, match=message):
        search(**{"methods": (), **settings})


@pytest.mark.slow
def test_each_target_ends_a_search_where_it_says():
    assert search(remove=None, keep=4).sizes["step"] == 2
    steps = search(remove=None, to_params=0.6, methods=("one-shot",))
    parameters = steps.parameters.sel(candidate=steps.chosen.values[0])
    wanted = 0.6 * steps.attrs["clean_parameters"]
    assert (parameters[:-1] > wanted).all() and parameters[-1] <= wanted
    bound = 1.0
    found = search(remove=None, until_kl=bound, methods=("greedy",), level=0.05)
    scores = found.kl.sel(candidate=found.chosen.values[0]).isel(sequence=slice(0, 21))
    assert (scores.mean("sequence", skipna=True) <= bound).all()
    most = search(remove=None, until_kl=1e9, methods=("influence",))
    assert most.sizes["step"] == opened("gpt2").layers - 1


@pytest.mark.slow
@pytest.mark.parametrize("units", ["attention", "mlp", "sublayer"])
def test_all_units_but_what_a_schedule_needs_can_be_removed(units):
    count = {"attention": 6, "mlp": 6, "sublayer": 11}[units]
    found = search(remove=count, units=units, methods=("one-shot",))
    assert found["size"].max() == count
    last = from_text(str(found.chosen.values[0, -1]), opened("gpt2").layers)
    assert len(last) == (1 if units == "sublayer" else 6)


def test_a_model_of_one_block_loses_none():
    net = tiny("gpt2")
    net.transformer.h = net.transformer.h[:1]
    net.config.n_layer = 1
    model = open_model(net)
    for settings in ({"remove": 1}, {"until_kl": 1.0}, {"to_params": 0.9}):
        with pytest.raises(Refusal, match=r"removed|reached"):
            prune(model, [many()], PruningSettings(**settings))


def test_units_that_cannot_run_alone_are_refused():
    model = open_model(tiny("mamba"))
    with pytest.raises(Refusal, match="cannot be executed alone"):
        prune(model, [many()], PruningSettings(remove=1, units="mlp"))


@pytest.mark.slow
def test_several_texts_are_searched_together(tmp_path):
    corpora = [many(), replace(text(28, 28, seed=1), name="other")]
    found = search(corpora, remove=2, methods=("exhaustive",))
    assert set(found.source.values) == {"random", "other"}
    assert found.rank_correlation.sizes == {"step": 2, "text": 2, "text_to": 2}
    with pytest.raises(Refusal, match="the text random was given twice"):
        search([many(), many()])
    namesakes = search([many(), text(28, 28, seed=1)], remove=1, methods=("one-shot",))
    assert set(namesakes.source.values) == {"random", "random (2)"}


def test_every_method_has_a_name_in_the_settings():
    from robustness.pruning.methods import BY_NAME

    assert set(BY_NAME) == set(METHODS)


@pytest.mark.slow
def test_a_method_that_finds_nothing_cheap_enough_leaves_the_others_alone():
    singles = search(remove=1, methods=("influence", "greedy"), holdout=0)
    score = singles.kl.mean("sequence", skipna=True)
    worse, best = (float(score.sel(candidate=name)) for name in singles.chosen.values[:, 0])
    assert worse > best
    bound = (worse + best) / 2
    found = search(remove=None, until_kl=bound, methods=("influence", "greedy"), holdout=0)
    chosen = found.chosen.values
    assert set(chosen[0]) == {""} and chosen[1, 0] == singles.chosen.values[1, 0]


def test_a_layer_gap_ends_spans_or_is_refused_before_anything_is_measured(monkeypatch):
    wanted = {"layers": (0, 1, 3, 4), "methods": ("span",), "holdout": 0}
    found = search(remove=None, until_kl=1e9, **wanted)
    assert found.sizes["step"] == 2
    monkeypatch.setattr(measuring, "measure_in_portions", None)
    with pytest.raises(Refusal, match="no 3 of the `layers` follow each other"):
        search(remove=3, **wanted)


@pytest.mark.slow
def test_what_costs_more_on_held_out_text_than_was_asked_for_is_told():
    for seed in range(6):
        corpus = text(sequences=28, documents=28, seed=seed)
        found = search(corpus, remove=1, methods=("one-shot",))
        kl = found.kl.sel(candidate=found.chosen.values[0, 0]).groupby("part").mean()
        searched, held_out = float(kl.sel(part="search")), float(kl.sel(part="held-out"))
        told: list[str] = []
        bound = max(searched * 1.0001, (searched + held_out) / 2)
        search(corpus, remove=None, until_kl=bound, methods=("one-shot",), tell=told.append)
        beyond = any("on the held-out text, above `until_kl`" in line for line in told)
        assert beyond == (held_out > bound)
        if beyond:
            return
    pytest.fail("no text was costlier where it was held out")


@pytest.mark.slow
def test_tasks_are_refused_before_the_search_and_compared_after_it(run, llama, stories, tmp_path):
    (tmp_path / "items").mkdir()
    line = '{"query": "The cat", "choices": ["sat.", "flew."], "gold": 0}\n'
    (tmp_path / "items/arc_easy.jsonl").write_text(line * 6)
    text = ("--data", stories, "--pack", "--context", 24, "--tokens", 480, "--holdout", 0.4)
    words = ("prune", llama, "--remove", 1, "--layers", "1..2", *text)
    code, _, err = run(*words, "--eval", "nosuch")
    assert code == 1 and "nosuch" in err and "score" not in err
    evaluated = ("--eval", "arc_easy", "--task-data", tmp_path / "items")
    code, out, err = run(*words, *evaluated, "--json")
    assert code == 0, err
    titles = [table["title"] for table in json.loads(out)["tables"]]
    assert any("held-out" in title for title in titles)
    assert any("arc_easy" in title and "minus clean" in title for title in titles)
    code, _, err = run(*words, "--limit", 2)
    assert code == 2 and "--eval" in err


def test_a_place_that_is_no_file_name_is_refused_in_one_line(run, llama, stories):
    for place in (".", "/"):
        code, _, err = run("prune", llama, "--remove", 1, "--data", stories, "--pack",
            "--context", 24, "--tokens", 480, "--out", place)  # fmt: skip
        assert code == 1 and "fault of stages" not in err and place in err


def test_a_foreign_figure_is_found_before_the_search_and_stays(run, llama, stories, tmp_path):
    (tmp_path / "a.png").write_bytes(b"not of this project")
    code, _, err = run("prune", llama, "--remove", 1, "--data", stories, "--pack",
        "--context", 24, "--tokens", 480, "--out", tmp_path / "a.nc")  # fmt: skip
    assert code == 1 and "a.png" in err and "score" not in err
    assert [path.name for path in tmp_path.glob("a.*")] == ["a.png"]
    assert (tmp_path / "a.png").read_bytes() == b"not of this project"
