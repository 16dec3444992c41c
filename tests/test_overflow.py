"""Schedules that end in numbers that are none are measured like others, and said to be so."""

import numpy as np
import pytest
import torch
from families import tiny
from test_execution import corpus

from recipes.views import as_text, draw, table
from robustness.files import netcdf
from robustness.models.opening import open_model
from robustness.sweeps import sweep


@pytest.fixture(scope="module")
def growing():
    """A model whose last block makes what enters it a thousand times larger."""
    net = tiny("gpt2").float()
    last = net.transformer.h[-1].mlp
    with torch.no_grad():
        last.c_proj.weight.mul_(1e12)
    last.act = torch.nn.Identity()
    net.transformer.h[-1].ln_2 = torch.nn.Identity()
    return open_model(net)


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [
        {"interventions": ("drop", "repeat-1x9", "looped-parallel-2x9", "reverse-2")},
        {"interventions": ("repeat-span", "drop-pair")},
        {"schedules": ["0-3-3-3-3-3-3", "(3+m3)-(3+(a3+3))-(0..3)-3..0-3-3-3", "m3-m3-m3-m3-a3"]},
    ],
)
@pytest.mark.parametrize("until_se", [None, 0.5])
def test_a_sweep_of_schedules_without_end_is_measured_saved_and_shown(
    growing, tmp_path, options, until_se
):
    text = corpus(sequences=70)
    found = sweep(growing, text, **options, until_se=until_se, out=tmp_path / "a.nc")
    assert found.nonfinite.sum() > 0
    assert np.isnan(found.kl.where(found.nonfinite > 0)).all()
    read = netcdf.load(tmp_path / "a.nc")
    assert as_text(table(read))
    draw(read)
