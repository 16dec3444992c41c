"""Claims on files in which they hold, and in which they do not."""

import re
import shutil
from functools import cache
from itertools import combinations, pairwise

import numpy as np
import pytest
import xarray as xr
from planted import LAYERS, plant

from recipes.evidence import published
from recipes.evidence.files import Absent, Files, side_by_side
from recipes.evidence.stages import stages
from recipes.experiments.catalogue import PICTURES, RECIPES, choose
from recipes.experiments.representations import contrast, toeplitz
from recipes.figures import draw
from recipes.judging import verdicts
from recipes.judging.compare import compare
from recipes.judging.verdicts import FAILS, HOLDS, OPEN, Number, judge, to_dataset
from recipes.recipe import SOURCES, STAGES, Check
from recipes.views import as_text, table
from robustness.errors import Refusal
from robustness.files.netcdf import load, save

ARCHITECTURES = ("GPT2LMHeadModel", "GPTNeoXForCausalLM", "Qwen2ForCausalLM")

ABOUT = {"C1.4", "C5.2", "C11.2", "C13.2", "C13.3"}
"""Claims about one family."""

UNJUDGED = {"C1.7", "T1.2b", "C3.2", "C1.4b", "C1.6", "C8.4", "C8.5"}
"""What nothing decides, what needs a published value, and what needs several models."""


@pytest.fixture(scope="module")
def once(tmp_path_factory):
    """Return what makes the files of a model once, for tests that leave them as they are."""

    @cache
    def make(name="planted", **options):
        path = tmp_path_factory.mktemp("models") / name
        plant(path, name=name, **options)
        stages(path, out=path / "stages.nc")
        return path

    return make


@pytest.fixture
def planted(once):
    """Return what copies these files to a directory of the test's own."""

    def copy(path, **options):
        shutil.copytree(once(**options), path, dirs_exist_ok=True)
        return Files(path)

    return copy


@pytest.fixture(scope="module")
def judged(once):
    """Return the verdicts on one model, made once."""
    return cache(lambda **options: judge([Files(once(**options))]))


@pytest.fixture
def only(monkeypatch):
    """Return what leaves out the experiments that a test is not about."""
    return lambda *names: monkeypatch.setattr(verdicts, "RECIPES", choose(names))


@pytest.mark.slow
@pytest.mark.parametrize("architecture", ARCHITECTURES)
@pytest.mark.parametrize(("reverse", "wanted"), [(False, HOLDS), (True, FAILS)])
def test_claims_hold_where_they_are_planted_and_fail_on_the_opposite(
    judged, architecture, reverse, wanted
):
    found = judged(architecture=architecture, reverse=reverse)
    verdicts = {each.claim.name: each.verdict for each in found}
    open_ones = {name for name, verdict in verdicts.items() if verdict == OPEN}
    assert open_ones <= ABOUT | UNJUDGED
    assert open_ones >= UNJUDGED
    decided = {name: verdict for name, verdict in verdicts.items() if name not in open_ones}
    assert set(decided.values()) == {wanted}, decided
    for each in found:
        assert bool(each.reason) == (each.verdict == OPEN)


@pytest.mark.slow
def test_every_claim_about_a_family_is_judged_on_that_family(judged):
    decided = set()
    for architecture in ARCHITECTURES:
        found = judged(architecture=architecture, reverse=False)
        decided |= {each.claim.name for each in found if each.verdict != OPEN}
    assert decided >= ABOUT


@pytest.mark.parametrize(
    ("low", "high", "least", "most", "wanted"),
    [
        (2, 3, 1, None, HOLDS),
        (0.5, 3, 1, None, OPEN),
        (0, 0.5, 1, None, FAILS),
        (0, 0, 0, None, FAILS),
        (2, 3, 1, 4, HOLDS),
        (2, 5, 1, 4, OPEN),
        (5, 6, 1, 4, FAILS),
        (2, 3, None, 2.5, OPEN),
        (np.nan, np.nan, 1, None, OPEN),
    ],
)
def test_a_number_decides_when_its_whole_interval_does(low, high, least, most, wanted):
    number = Number(Check("", abs, least, most), (low + high) / 2, low, high)
    assert number.verdict == wanted and number.decides


@pytest.mark.slow
def test_wide_intervals_leave_it_open(planted, only, tmp_path):
    """Documents that disagree wildly say nothing of whether the mean is above a threshold."""
    only("E1")
    planted(tmp_path / "calm", documents=10, robust=0.73)
    plant(tmp_path / "wild", noise=0.3, documents=10, robust=0.73)
    (tmp_path / "wild" / "sweep.nc").replace(tmp_path / "calm" / "sweep.nc")
    found = judge([Files(tmp_path / "calm")])
    verdicts = {each.claim.name: each for each in found}
    assert verdicts["C1.1"].verdict == OPEN
    assert verdicts["C1.1"].reason.endswith("includes the threshold; use more --tokens")


@pytest.mark.slow
def test_too_little_or_nothing_is_said_and_no_claim_is_dropped(planted, tmp_path):
    planted(tmp_path)
    (tmp_path / "lens.nc").unlink()
    save(load(tmp_path / "sweep.nc").isel(sequence=slice(0, 4)), tmp_path / "sweep.nc")
    save(
        load(tmp_path / "norms.nc").assign_attrs(sequences=20, sequences_done=3),
        tmp_path / "norms.nc",
    )
    left_out = {"lens": "the hub cannot be reached"}
    found = {each.claim.name: each for each in judge([Files(tmp_path, left_out)])}
    assert len(found) == sum(len(recipe.claims) for recipe in RECIPES)
    assert found["C1.1"].reason == "sweep.nc has 4 documents, and 10 are needed"
    assert found["C7.1 frozen"].reason == "the hub cannot be reached"
    assert found["C10"].reason == "norms.nc is not finished"
    assert {found[name].verdict for name in ("C1.1", "C7.1 frozen", "C10")} == {OPEN}
    assert found["C3.1"].verdict == HOLDS


@pytest.mark.slow
def test_a_sweep_of_something_else_is_not_judged_as_if_it_were_all(planted, only, tmp_path):
    only("E1")
    planted(tmp_path)
    whole = load(tmp_path / "sweep.nc")
    for changed, reason in (
        (whole.sel(intervention=["drop"]), "sweep.nc has no swap"),
        (whole.assign_attrs(layers="0..3"), "sweep.nc has layers 0..3, and all are needed"),
        (whole.drop_vars("agreement"), "a file it needs is incomplete"),
    ):
        save(changed, tmp_path / "sweep.nc")
        found = {each.claim.name: each for each in judge([Files(tmp_path)])}
        assert found["C1.1"].verdict == OPEN and reason in found["C1.1"].reason
        with pytest.raises(Absent, match=reason):
            draw(PICTURES["5a"], [Files(tmp_path)])


@pytest.mark.slow
def test_a_model_of_few_layers_has_no_interior(planted, tmp_path):
    files = planted(tmp_path)
    for source in files.sources:
        data = load(tmp_path / f"{source.file}.nc")
        if source.file != "stages" and "layer" in data.dims:
            save(data.isel(layer=slice(0, 4)), tmp_path / f"{source.file}.nc")
        elif "depth" in data.dims:
            short = {name: slice(0, 5) for name in ("depth", "depth_to") if name in data.dims}
            save(data.isel(short), tmp_path / f"{source.file}.nc")
    (tmp_path / "stages.nc").unlink()
    found = {each.claim.name: each for each in judge([Files(tmp_path)])}
    assert "4 layers have no interior" in found["C1.1"].reason
    assert "10 needed" in found["C11.1"].reason


@pytest.mark.slow
def test_verdicts_are_saved_with_numbers_and_thresholds(planted, tmp_path):
    files = planted(tmp_path)
    found = judge([files])
    save(to_dataset(found, [files], "stages report x"), tmp_path / "claims.nc")
    data = load(tmp_path / "claims.nc")
    assert data.verdict.sel(claim="C1.1") == HOLDS
    numbers = data.sel(check=data["check_claim"] == "C1.1")
    assert numbers["least"].values.tolist() == [0.72, 0.72]
    assert (numbers["low"] <= numbers["value"]).all() and (
        numbers["value"] <= numbers["high"]
    ).all()
    kl = load(tmp_path / "sweep.nc").agreement.sel(intervention="drop")
    expected = kl.isel(layer=slice(2, LAYERS - 2)).mean().item()
    assert numbers["value"].values[0] == pytest.approx(expected)
    shown = as_text(table(data))
    assert "C1.1" in shown and HOLDS in shown and "the numbers behind them" in shown


def test_block_contrast_is_that_of_all_partitions_by_brute_force():
    random = np.random.default_rng(0)
    matrices = random.random((3, 9, 9))
    matrices = (matrices + matrices.transpose(0, 2, 1)) / 2
    for matrix, value in zip(matrices, contrast(matrices)):
        best = -np.inf
        for count in (2, 3, 4):
            for cuts in combinations(range(1, 9), count - 1):
                edges = (0, *cuts, 9)
                if min(b - a for a, b in pairwise(edges)) < 2:
                    continue
                part = np.searchsorted(cuts, np.arange(9), "right")
                same = (part[:, None] == part) & ~np.eye(9, dtype=bool)
                best = max(best, matrix[same].mean() - matrix[part[:, None] != part].mean())
        assert value == pytest.approx(best)


def test_a_toeplitz_matrix_is_its_own_and_keeps_the_profile():
    matrix = np.random.default_rng(1).random((1, 6, 6))
    found = toeplitz(matrix + matrix.transpose(0, 2, 1))
    np.testing.assert_allclose(toeplitz(found), found)
    for offset in range(6):
        assert len(np.unique(np.diagonal(found[0], offset).round(12))) == 1


@pytest.mark.slow
def test_models_are_compared_and_what_is_about_several_is_judged(planted, tmp_path):
    names = {"small": 0.76, "medium": 0.8, "large": 0.84, "huge": 0.9}
    models = [planted(tmp_path / name, name=name, robust=at) for name, at in names.items()]
    data = compare(models)
    assert data.model.values.tolist() == list(names)
    found = data.value.sel(quantity="interior agreement, swap")
    np.testing.assert_allclose(found, list(names.values()), atol=0.01)
    assert (data.low <= data.value).where(data.value.notnull(), True).all()
    assert data.verdict.sel(claim="C1.1").values.tolist() == [HOLDS] * 4
    across = data.verdict_across
    assert across.claim_across.values.tolist() == ["C1.4b", "C1.6", "C8.4", "C8.5"]
    assert across.sel(claim_across="C1.6") == OPEN, "all have the same number of layers"
    assert data.corpus.values.tolist() == ["planted"] * 4
    assert re.match(r"0\.7\d* \[0\.7", str(data.numbers.sel(claim="C1.1", model="small").item()))
    shown = as_text(table(data))
    assert re.search(r"interior agreement, swap +0\.7", shown) and "claims about several" in shown


@pytest.mark.slow
def test_more_layers_more_robust_is_judged_over_models(once, only, tmp_path):
    only("E1", "E8")
    whole, models = load(once() / "sweep.nc"), []
    for index in range(6):
        path = tmp_path / str(index)
        path.mkdir()
        sweep = whole.assign(agreement=whole["agreement"] + 0.03 * (index - 4))
        sweep = sweep.isel(layer=slice(0, 10 + 2 * index)).assign_attrs(model=f"m{index}")
        save(sweep, path / "sweep.nc")
        models.append(Files(path))
    verdicts = {each.claim.name: each.verdict for each in judge(models)}
    assert verdicts["C1.6"] == HOLDS
    assert verdicts["C8.4"] == OPEN


@pytest.mark.slow
def test_what_cannot_be_compared_is_refused(planted, tmp_path):
    one = planted(tmp_path / "one")
    with pytest.raises(Refusal, match="two or more"):
        compare([one])
    with pytest.raises(Refusal, match="one is given twice"):
        side_by_side([tmp_path / "one", tmp_path / "one"])
    planted(tmp_path / "two")
    planted(tmp_path / "other" / "two")
    models = side_by_side([tmp_path / "one", tmp_path / "two"])
    assert compare(models).model.values.tolist() == ["planted (one)", "planted (two)"]
    models = side_by_side([tmp_path / "two", tmp_path / "other" / "two"])
    assert models[1].label == "planted (other/two)"
    assert one.label == "planted"


PHI = {"phi-1": 0.4, "phi-1_5": 0.9, "phi-2": 1.0}
"""How dense prediction neurons are, and how steeply the lens falls, of the densest and steepest."""


def phi(of, path, scales, others):
    """Files of models whose densest layers have 15 % prediction and 25 % suppression neurons."""
    neurons, lens = (load(of / f"{file}.nc") for file in ("neurons", "lens"))
    for name, scale in (scales | others).items():
        share = neurons["share"] * scale
        share[0] *= 0.15 * scale / float(share[0].max())
        share[1] *= 0.25 * scale / float(share[1].max())
        (path / name).mkdir(parents=True)
        # All that these claims are about.
        attrs = {"model": name}
        save(neurons.assign(share=share).assign_attrs(attrs), path / name / "neurons.nc")
        save(lens.assign(kl=lens["kl"] * scale).assign_attrs(attrs), path / name / "lens.nc")
    return [Files(path / name) for name in scales | others]


@pytest.mark.slow
def test_claims_about_phi_are_judged_on_phi_and_others(once, only, tmp_path):
    only("E8")

    def verdicts(name, scales, others):
        found = judge(phi(once(), tmp_path / name, scales, others))
        return {each.claim.name: each for each in found}

    others = {"gpt2": 0.2, "gpt2-xl": 0.25, "pythia-410m": 0.21}
    found = verdicts("as published", PHI, others)
    assert (found["C8.4"].verdict, found["C8.5"].verdict) == (HOLDS, HOLDS)
    numbers = {each.check.what: each.value for each in found["C8.5"].numbers}
    assert numbers["prediction, over GPT-2's"] == pytest.approx(1 / 0.25)
    assert numbers["prediction, over Pythia's"] == pytest.approx(1 / 0.21)
    assert numbers["most suppression neurons in a layer of Phi"] == pytest.approx(0.25)
    backwards = dict(zip(PHI, reversed(PHI.values())))
    assert verdicts("backwards", backwards, others)["C8.4"].verdict == FAILS
    assert verdicts("dense others", PHI, {"gpt2": 0.9, "pythia-1b": 0.21})["C8.5"].verdict == FAILS
    found = verdicts("no pythia", PHI, {"gpt2": 0.2})
    assert "missing: pythia" in found["C8.5"].reason and found["C8.4"].verdict == HOLDS


@pytest.mark.slow
@pytest.mark.parametrize(("pair", "wanted"), [(LAYERS - 2, HOLDS), (LAYERS - 3, FAILS)])
def test_only_the_last_pair_counts_as_the_last_pair(planted, only, tmp_path, pair, wanted):
    only("E1")
    models = [planted(tmp_path / name, name=name) for name in ("one", "two")]
    sweep = load(tmp_path / "two" / "sweep.nc")
    sweep["kl"].loc[{"intervention": "swap", "layer": pair}] *= 100
    save(sweep, tmp_path / "two" / "sweep.nc")
    found = {each.claim.name: each for each in judge([models[0], Files(tmp_path / "two")])}
    assert found["C1.4b"].verdict == wanted


@pytest.mark.slow
def test_intervals_of_draws_know_how_many_documents_they_are_of(planted, tmp_path):
    """Or they would be too narrow where documents are few."""
    files, counted = planted(tmp_path), 0
    for claim in (claim for recipe in RECIPES for claim in recipe.claims if claim.models == 1):
        for check in claim.checks:
            try:
                found = check.value(files)
            except Absent:
                continue
            if isinstance(found, xr.DataArray) and "draw" in found.dims:
                assert round(float(found["drawn_from"]), 6) in {8, 20, 500, 1000, 1400, 1500}
                counted += 1
    assert counted > 40


def test_recipes_are_whole():
    names = [recipe.name for recipe in RECIPES]
    assert {*(f"E{n}" for n in range(1, 14)), "T1"} <= set(names) and len(set(names)) == len(names)
    names = [claim.name for recipe in RECIPES for claim in recipe.claims]
    assert len(names) == len(set(names))
    for recipe in RECIPES:
        assert recipe.question.endswith("?") and recipe.cost
        for claim in recipe.claims:
            assert claim.where and (claim.unjudged or any(_decides(c) for c in claim.checks))
        for picture in recipe.pictures:
            assert set(picture.sources) <= set(SOURCES)
    assert [recipe.name for recipe in choose(["e3", "E1", "E3"])] == ["E3", "E1"]
    with pytest.raises(Refusal, match=r"no experiment 'E99'; there are: E1, E2"):
        choose(["E99"])


def _decides(check):
    return check.least is not None or check.most is not None


@pytest.mark.slow
def test_published_values_are_compared_in_their_own_unit(only, tmp_path):
    """A planted GPT-2 that has exactly the published values differs from them by nothing."""
    only("E3")
    plant(tmp_path, name="openai-community/gpt2")
    known = {each.quantity: each for each in published.PUBLISHED if each.model == "gpt2"}
    layers = {"layer": range(12)}
    attention = load(tmp_path / "attention.nc").isel(layer=slice(0, 12))
    local = np.array([*known["local attention"].values.values()])
    wanted = xr.DataArray(local * 5, dims="layer", coords=layers)
    attention["previous"] = (0 * attention["previous"]) + wanted
    save(attention, tmp_path / "attention.nc")
    lens = load(tmp_path / "lens.nc").isel(depth=slice(0, 13))
    bits = np.array([*known["entropy of the frozen lens"].values.values()])
    nats = xr.DataArray(bits * np.log(2), dims="depth", coords={"depth": range(13)})
    lens["entropy"] = 0 * lens["entropy"] + nats
    save(lens, tmp_path / "lens.nc")
    neurons = load(tmp_path / "neurons.nc").isel(layer=slice(0, 12))
    counts = [[*known[f"{kind} neurons"].values.values()] for kind in ("prediction", "suppression")]
    shares = np.array([*counts, [0] * 12]) / neurons.sizes["neuron"]
    save(neurons.assign(share=(("neuron_class", "layer"), shares)), tmp_path / "neurons.nc")
    found = published.of_model(Files(tmp_path))
    assert {record.quantity for record, _ in found} == set(known)
    for record, rows in found:
        for theirs, ours in rows.values():
            assert ours == pytest.approx(theirs, abs=1e-5), record.quantity
    verdicts = {each.claim.name: each.verdict for each in judge([Files(tmp_path)])}
    assert verdicts["C3.2"] == HOLDS


def test_published_values_are_those_of_the_models_of_the_paper_with_their_sources():
    models = {each.model for each in published.PUBLISHED}
    assert models >= {"gpt2", "gpt2-xl", "pythia-2.8b-deduped", "phi-2", "pythia-160m"}
    for each in published.PUBLISHED:
        assert each.where and each.settings and each.values and each.unit in {"1", "bit"}
    peak = published.find("gpt2", "local attention")
    assert peak and peak.peak == 2 and peak.values["2"] == 0.102


@pytest.mark.slow
def test_a_layer_that_is_not_a_number_is_not_averaged_away(planted, only, tmp_path):
    only("E1")
    planted(tmp_path)
    sweep = load(tmp_path / "sweep.nc")
    for name in ("kl", "agreement"):
        sweep[name][0, 5, 3] = np.nan
    save(sweep, tmp_path / "sweep.nc")
    found = {each.claim.name: each for each in judge([Files(tmp_path)])}
    for name in ("C1.1", "C1.2", "C1.5"):
        assert found[name].verdict == OPEN and "not defined" in found[name].reason, name
    draw(PICTURES["5a"], [Files(tmp_path)])


@pytest.mark.slow
def test_where_nothing_is_finite_figures_are_drawn_all_the_same(tmp_path):
    plant(tmp_path)
    sweep = load(tmp_path / "sweep.nc")
    save(sweep.assign(kl=sweep.kl * np.nan), tmp_path / "sweep.nc")
    for name in ("5a", "v1 3", "1"):
        assert draw(PICTURES[name], [Files(tmp_path)]).axes[0].get_yscale() == "linear"


@pytest.mark.slow
def test_gated_neurons_and_chance_decide_nothing(planted, only, tmp_path):
    only("E7", "E8", "E9")
    planted(tmp_path)
    save(load(tmp_path / "neurons.nc").assign_attrs(gated=1), tmp_path / "neurons.nc")
    suffix = load(tmp_path / "ing.nc")
    save(suffix.assign(model_accuracy_low=suffix.model_accuracy * 0 + 0.49), tmp_path / "ing.nc")
    found = {each.claim.name: each for each in judge([Files(tmp_path)])}
    for name in ("C7.2", "C8.1", "C8.2", "C8.3"):
        assert "gated MLPs" in found[name].reason
    for name in ("C9.1", "C9.2", "C9.3"):
        assert "no better than chance" in found[name].reason


@pytest.mark.slow
def test_tasks_that_the_clean_model_cannot_do_do_not_count(planted, only, tmp_path):
    only("E12")
    files = planted(tmp_path)
    before = {each.claim.name: each for each in judge([files])}["C12"]
    tasks = load(tmp_path / "tasks.nc")
    at = (tasks["item_task"] == "arc_easy").values
    guessed = np.arange(at.sum()) % 4 == 0
    tasks["clean_correct"][:, at] = guessed
    tasks["correct"][..., at] = 1 - guessed
    save(tasks, tmp_path / "tasks.nc")
    after = {each.claim.name: each for each in judge([Files(tmp_path)])}["C12"]
    assert after.verdict == HOLDS
    for one, other in zip(before.numbers, after.numbers):
        assert one.value == pytest.approx(other.value, abs=0.05)


@pytest.mark.slow
def test_boundaries_of_other_files_are_not_used(planted, tmp_path):
    planted(tmp_path)
    sweep = load(tmp_path / "sweep.nc").assign_attrs(created="2001-01-01T00:00:00+00:00")
    save(sweep, tmp_path / "sweep.nc")
    assert "run `stages segment` again" in Files(tmp_path).missing(STAGES)


@pytest.mark.slow
def test_a_model_that_lacks_a_file_does_not_keep_others_from_being_judged(planted, only, tmp_path):
    only("E1")
    models = [planted(tmp_path / name, name=name) for name in ("one", "two", "three")]
    (tmp_path / "one" / "sweep.nc").unlink()
    found = {each.claim.name: each for each in judge([Files(tmp_path / "one"), *models[1:]])}
    assert found["C1.4b"].verdict != OPEN
