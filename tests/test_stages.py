import re
from dataclasses import replace

import numpy as np
import pytest
import xarray as xr

from recipes.evidence.signatures import SIGNATURES, Signature
from recipes.evidence.stages import stages
from recipes.recipe import NEURONS, SWEEP
from recipes.views import as_text, draw, table
from robustness.errors import Refusal
from robustness.files.netcdf import load, save
from robustness.files.provenance import file_attributes

LAYERS, DOCUMENTS = 16, 20


def steps(starts, documents=DOCUMENTS, seed=0):
    """Values (layer, document) that jump where each document's segments start."""
    random = np.random.default_rng(seed)
    starts = np.broadcast_to(np.atleast_2d(starts), (documents, np.shape(starts)[-1]))
    means = np.append(0, random.normal(size=starts.shape[1]).cumsum() * 3)
    part = (np.arange(LAYERS)[:, None, None] >= starts).sum(-1)
    return means[part] + 0.3 * random.normal(size=(LAYERS, documents))


def directory(path, starts, model="planted", seed=0, **attrs):
    """Files as measurements leave them, whose signatures all jump at the same layers."""

    def values(shift):
        return np.exp(steps(starts, seed=seed + shift))

    coords = {
        "sequence": np.arange(DOCUMENTS),
        "document": ("sequence", np.arange(DOCUMENTS)),
    }
    layers = {"layer": np.arange(LAYERS), **coords}
    swap = values(1)
    swap[-1] = np.nan
    depths = np.concatenate([np.zeros((1, DOCUMENTS)), np.log(values(2))])
    files = {
        "sweep": xr.Dataset(
            {"kl": (("intervention", "layer", "sequence"), np.stack([values(0), swap]))},
            coords={"intervention": ["drop", "swap"], **layers},
        ),
        "lens": xr.Dataset(
            {
                "entropy": (("lens", "depth", "sequence"), depths[None] + 99),
                "kl": (("lens", "depth", "sequence"), depths[None] ** 2),
            },
            coords={"lens": ["recomputed"], "depth": np.arange(LAYERS + 1), **coords},
        ),
        "norms": xr.Dataset(
            {"mlp_norm": (("processing", "statistic", "layer", "sequence"), values(3)[None, None])},
            coords={"processing": ["raw"], "statistic": ["mean"], **layers},
        ),
    }
    for name, file in files.items():
        settings = {"model": model, "architecture": "Planted", "measurement": name}
        settings |= {"context": 16, **attrs}
        save(file.assign_attrs(file_attributes(settings)), path / f"{name}.nc")
    return path


@pytest.mark.parametrize("starts", [(5, 11), (1, 6, 12)])
def test_planted_stages_are_found(tmp_path, starts):
    data = stages(directory(tmp_path, starts), out=tmp_path / "stages.nc")
    found = data.boundary.sel(partition="chosen").dropna("edge")
    assert found.values.tolist() == list(starts)
    assert data.attrs["criterion_segments"] == len(starts) + 1
    number = data.stage.sel(partition="chosen").values
    assert (number == np.searchsorted(starts, np.arange(LAYERS), "right")).all()
    assert (data.boundary_low <= data.boundary).where(data.boundary.notnull(), True).all()
    xr.testing.assert_identical(load(tmp_path / "stages.nc").drop_attrs(), data.drop_attrs())
    assert f"chosen by the criterion: {len(starts) + 1} segments" in as_text(table(data))
    assert len(draw(data).axes) == 2


def test_on_noise_it_says_that_there_are_none(tmp_path):
    data = stages(directory(tmp_path, (LAYERS + 1,)))
    assert data.attrs["criterion_segments"] == 1
    assert data.boundary.sel(partition="chosen").isnull().all()
    assert "that is no boundary" in as_text(table(data))
    four = data.sel(partition="four")
    assert four.boundary.notnull().all(), "the paper's number is shown all the same"
    assert (four.boundary_high - four.boundary_low).max() > 2, "but where they are is unknown"


@pytest.mark.slow
def test_where_documents_disagree_the_interval_says_so(tmp_path):
    """Half of the documents change at layer 4, half at layer 9."""
    split = np.where(np.arange(DOCUMENTS)[:, None] % 2, 4, 9)
    data = stages(directory(tmp_path, split)).sel(partition="chosen")
    low, high = float(data.boundary_low.min()), float(data.boundary_high.max())
    assert low <= 4 and high >= 9
    agreed = stages(directory(tmp_path, (4,))).sel(partition="chosen", edge=1)
    assert float(agreed.boundary_low) == float(agreed.boundary_high) == 4


def test_means_are_those_of_the_layers_of_a_stage(tmp_path):
    data = stages(directory(tmp_path, (5, 11)))
    drop = load(tmp_path / "sweep.nc").kl.sel(intervention="drop").mean("sequence")
    found = data["mean"].sel(partition="chosen", signature_name="drop_kl")
    for number, (begin, end) in enumerate([(0, 5), (5, 11), (11, 16)]):
        assert float(found[number]) == pytest.approx(float(drop[begin:end].mean()))
    swap = data["mean"].sel(partition="chosen", signature_name="swap_kl", segment=2)
    assert swap.notnull(), "the last layer has no swap, and is left out"


def test_signatures_are_standardised_and_named(tmp_path):
    data = stages(directory(tmp_path, (5,)))
    assert data.signature_name.values.tolist() == [
        "drop_kl",
        "swap_kl",
        "lens_entropy",
        "lens_kl",
        "mlp_norm",
    ]
    np.testing.assert_allclose(data.signature.mean("layer"), 0, atol=1e-12)
    np.testing.assert_allclose(data.signature.std("layer"), 1, atol=1e-12)
    assert {each.name for each in SIGNATURES} >= set(data.signature_name.values)


def test_what_is_not_enough_is_refused(tmp_path):
    with pytest.raises(Refusal, match=r"has no file of a model.*stages reproduce"):
        stages(tmp_path)
    directory(tmp_path / "one", (5,))
    for name in ("sweep", "norms"):
        (tmp_path / "one" / f"{name}.nc").unlink()
    with pytest.raises(Refusal, match=r"2 signatures.*stages sweep.*missing: attention, cka"):
        stages(tmp_path / "one")
    directory(tmp_path, (5,))
    other = load(tmp_path / "norms.nc").assign_attrs(model="another")
    save(other, tmp_path / "norms.nc")
    with pytest.raises(Refusal, match="different models: another, planted"):
        stages(tmp_path)
    save(
        load(tmp_path / "norms.nc").assign_attrs(model="planted").isel(layer=slice(1, 5)),
        tmp_path / "norms.nc",
    )
    with pytest.raises(Refusal, match="have different layers"):
        stages(tmp_path)


@pytest.mark.slow
def test_a_repeat_sweep_alone_gives_no_drop(tmp_path):
    directory(tmp_path, (5,))
    save(load(tmp_path / "sweep.nc").isel(intervention=[1]), tmp_path / "sweep.nc")
    assert "drop_kl" not in stages(tmp_path).signature_name.values
    assert re.search("swap_kl", as_text(table(stages(tmp_path))))


def test_a_signature_of_ones_own_counts_besides(tmp_path):
    place = directory(tmp_path, (5,))
    own = Signature(
        "again", SWEEP, "KL of drop again", lambda data: data.kl.sel(intervention="drop")
    )
    data = stages(place, signatures=[own])
    assert data.signature_name.values.tolist()[-1] == "again"
    values = data.value.sel(signature_name=["drop_kl", "again"])
    np.testing.assert_array_equal(values[0], values[1])
    missing = replace(own, read=lambda data: data["none"])
    with pytest.raises(Refusal, match=r"sweep.nc lacks what again reads"):
        stages(place, signatures=[missing])
    with pytest.raises(Refusal, match=r"neurons.nc, of the signature again, is missing"):
        stages(place, signatures=[replace(own, source=NEURONS)])
