"""The paper's figures, drawn from files."""

import re

import numpy as np
import pytest
import xarray as xr
from matplotlib.colors import to_rgb
from planted import plant

from recipes.evidence.files import Absent, Files
from recipes.evidence.stages import stages
from recipes.experiments.catalogue import PICTURES, RECIPES
from recipes.figures import DIAGRAMS, FIGURES, draw
from recipes.report.svg import to_svg
from recipes.views import schedules, task_schedules
from recipes.views import stages as stages_view
from robustness.files.netcdf import load, save

SECOND = {1, 5, 6, 7, 8, 12, *range(13, 27)}
"""Figures of the second version of the paper; 2 to 4 and 9 to 11 are no figures of results."""

FIRST = set(range(2, 11))
"""Those of the first version."""

ALL = [picture for recipe in RECIPES for picture in recipe.pictures]


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    path = tmp_path_factory.mktemp("planted")
    found = []
    for name, reverse in (("one", False), ("two", True)):
        plant(path / name, name=name, reverse=reverse)
        stages(path / name, out=path / name / "stages.nc")
        found.append(Files(path / name))
    return found


def test_every_figure_of_the_paper_is_in_a_recipe():
    numbers = {int(re.match(r"\d+", name)[0]) for name in PICTURES if name[0].isdigit()}
    assert numbers == SECOND
    assert {int(name[3:]) for name in PICTURES if name.startswith("v1 ")} == FIRST
    assert {"5a", "5b", "5c", "6a", "6b", "7a", "7b", "12a", "12b", "12c"} <= PICTURES.keys()
    assert {picture.draw for picture in ALL} == {*FIGURES, *DIAGRAMS}
    assert len({picture.name for picture in ALL}) == len(ALL)


@pytest.mark.slow
@pytest.mark.parametrize("picture", ALL, ids=lambda picture: picture.name)
def test_every_figure_is_drawn_of_one_model_and_of_two(picture, models):
    for count in (1, 2):
        if not picture.fewest <= count <= picture.most:
            with pytest.raises(Absent, match=f"drawn of {picture.fewest} to {picture.most}"):
                draw(picture, models[:count])
            continue
        figure = draw(picture, models[:count])
        panels = [axis for axis in figure.axes if axis.get_label() != "<colorbar>"]
        for axis in panels:
            assert [*axis.lines, *axis.images, *axis.collections, *axis.patches]
            assert axis.get_xlabel() or not axis.axison
        labelled = [axis for axis in panels if axis.get_ylabel()]
        assert labelled or not any(axis.axison for axis in panels)


def test_the_lines_are_the_numbers_of_the_files(models):
    (top, *_) = draw(PICTURES["5a"], models[:1]).axes
    data = load(models[0].directory / "sweep.nc")
    expected = data.kl.sel(intervention="swap").mean("sequence", skipna=False)
    assert top.lines[0].get_ydata()[:-1] == pytest.approx(expected.values[:-1])
    assert top.lines[0].get_xdata() == pytest.approx(data.relative_depth.values)


def test_two_models_are_told_apart_by_name(models):
    figure = draw(PICTURES["22"], models)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]


def test_entropy_is_drawn_in_bits(models):
    axis = draw(PICTURES["21"], models[:1]).axes[0]
    nats = load(models[0].directory / "lens.nc").entropy.sel(lens="recomputed").mean("sequence")
    assert axis.lines[0].get_ydata() == pytest.approx(nats.values / 0.6931471805599453)
    assert "[bit]" in axis.get_ylabel()


def test_entropy_of_repeated_blocks_and_its_change_are_in_bits_too(models):
    bit = np.log(2)
    repeat = load(models[0].directory / "repeat.nc")
    curve, clean = draw(PICTURES["25"], models[:1]).axes[0].lines[:2]
    expected = repeat.entropy.sel(intervention="repeat-5").mean("sequence", skipna=False) / bit
    np.testing.assert_allclose(curve.get_ydata(), expected)
    np.testing.assert_allclose(clean.get_ydata(), repeat.clean_entropy.mean() / bit)
    sweep = load(models[0].directory / "sweep.nc")
    axes = draw(PICTURES["v1 3"], models[:1]).axes
    gained = (sweep.entropy - sweep.clean_entropy).mean("sequence", skipna=False) / bit
    for axis, name in zip(axes[4:6], ("swap", "drop"), strict=True):
        np.testing.assert_allclose(axis.lines[0].get_ydata(), gained.sel(intervention=name))


def test_the_green_line_is_of_the_block_that_runs_earlier(models):
    attention = draw(PICTURES["18"], models[:1]).axes[0]
    (green,) = (line for line in attention.lines if line.get_label() == "index, early")
    red, shade, blue = to_rgb(green.get_color())
    assert shade > max(red, blue)
    cosine = load(models[0].directory / "similarity.nc").cosine.sel(processing="centred")
    chosen = cosine.sel(component="attention", comparison="index_early")
    np.testing.assert_allclose(green.get_ydata(), chosen.mean("sequence", skipna=False))


@pytest.mark.slow
def test_a_name_with_dollars_is_no_formula(tmp_path):
    plant(tmp_path, name="a$_b$")
    figure = draw(PICTURES["5a"], [Files(tmp_path)])
    to_svg(figure)
    assert figure.get_suptitle() == r"a\$_b\$"


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["stages", "schedules", "task schedules"])
def test_a_name_with_dollars_beside_a_tick_is_no_formula(models, kind):
    name = "a$_b$"
    if kind == "stages":
        data = load(models[0].directory / "stages.nc").copy()
        data.signature_long_name.values[0] = name
        figure = stages_view.figure(data)
    elif kind == "schedules":
        values = ("schedule", "sequence"), np.eye(2), {"units": "nat", "long_name": "x"}
        labels = {"schedule": [name, "0..1"], "document": ("sequence", [0, 1])}
        figure = schedules.figure(xr.Dataset(dict.fromkeys(("kl", "agreement"), values), labels))
    else:
        data = load(models[0].directory / "tasks.nc").isel(layer=0, drop=True)
        data = data.rename(intervention="schedule").assign_coords(schedule=[name, "0..1"])
        figure = task_schedules.figure(data)
    assert f">{name}<" in to_svg(figure)


@pytest.mark.slow
def test_with_too_little_data_nothing_is_drawn(tmp_path):
    plant(tmp_path)
    save(load(tmp_path / "sweep.nc").isel(sequence=slice(0, 9)), tmp_path / "sweep.nc")
    with pytest.raises(Absent, match=r"sweep.nc has 9 documents, and 10 are needed"):
        draw(PICTURES["5a"], [Files(tmp_path)])
    (tmp_path / "tasks.nc").unlink()
    with pytest.raises(Absent, match=r"not measured yet: run `stages tasks MODEL`"):
        draw(PICTURES["15"], [Files(tmp_path)])


@pytest.mark.slow
def test_models_that_lack_a_file_are_left_out_of_a_figure(tmp_path, models):
    plant(tmp_path, name="bare")
    (tmp_path / "norms.nc").unlink()
    figure = draw(PICTURES["22"], [Files(tmp_path), *models])
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["one", "two"]
