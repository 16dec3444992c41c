"""Values of single tokens: against plain models, in parts, after interruptions."""

from dataclasses import replace

import numpy as np
import pytest
import torch
import xarray as xr
from families import LAYERS, rebuilt, tiny
from test_execution import corpus

from recipes.views import draw
from robustness.errors import Refusal
from robustness.files import netcdf, ownership
from robustness.files.netcdf import load
from robustness.files.sequences import measured_sequences
from robustness.models.opening import open_model
from robustness.schedules import clean, drop
from robustness.sweeps import execution, sweep, token_file, token_layout

NAMES = ("kl", "agreement", "loss", "entropy", "accuracy")


def of_tokens(path):
    return xr.load_dataset(token_layout.beside(path))


def test_every_token_is_that_of_a_rebuilt_model(family, tmp_path):
    plain, text = tiny(family), corpus(sequences=3)
    sweep(open_model(plain), text, ("drop",), per_token=True, out=tmp_path / "a.nc")
    data, tokens = of_tokens(tmp_path / "a.nc"), torch.from_numpy(text.tokens)
    assert data.kl.dims == ("intervention", "layer", "sequence", "token")
    np.testing.assert_array_equal(data.token_id, text.tokens)
    for layer in range(LAYERS):
        with torch.no_grad():
            p, q = (
                torch.log_softmax(each(tokens, use_cache=False).logits, -1)
                for each in (plain, rebuilt(plain, drop(clean(LAYERS), layer)))
            )
        here = data.sel(intervention="drop", layer=layer).isel(token=slice(1, -1))
        kl = (p.exp() * (p - q)).sum(-1)[:, 1:-1]
        np.testing.assert_allclose(here.kl, kl, atol=1e-10)
        following = -q[:, :-1].gather(-1, tokens[:, 1:, None])[:, 1:, 0]
        np.testing.assert_allclose(here.loss, following, atol=1e-10)
        np.testing.assert_array_equal(here.agreement, (p.argmax(-1) == q.argmax(-1))[:, 1:-1])
    assert data.kl.isel(token=[0, -1]).isnull().all()


@pytest.mark.slow
@pytest.mark.parametrize("lengths", [None, [12, 7, 3, 12, 9, 5]])
def test_means_of_tokens_are_what_the_file_of_sequences_holds(gpt2, tmp_path, lengths):
    text = corpus(sequences=6, lengths=lengths)
    whole = sweep(gpt2, text, per_token=True, batch_tokens=24, out=tmp_path / "a.nc")
    data = of_tokens(tmp_path / "a.nc")
    for name in (*NAMES, "clean_loss", "clean_entropy", "clean_accuracy"):
        np.testing.assert_allclose(data[name].mean("token"), whole[name], atol=1e-12, err_msg=name)
        assert data[name].attrs["units"] == whole[name].attrs["units"]
    assert data.document.values.tolist() == whole.document.values.tolist()
    assert data.attrs["created"] and data.attrs["per_token"] == "yes"
    averaged = measured_sequences(load(token_layout.beside(tmp_path / "a.nc")))
    np.testing.assert_allclose(averaged.kl, whole.kl, atol=1e-12)
    assert {file.name for file in tmp_path.iterdir()} == {"a.nc", "a.tokens.nc"}


@pytest.mark.slow
def test_on_a_server_it_is_the_same(model, strict_model, tmp_path):
    for name, opened in (("here", model), ("there", strict_model)):
        sweep(opened, corpus(sequences=2), per_token=True, out=tmp_path / f"{name}.nc")
    here, there = (of_tokens(tmp_path / f"{name}.nc") for name in ("here", "there"))
    xr.testing.assert_allclose(here, there)


class Stop(Exception):
    """Stands in for a kill."""


@pytest.mark.slow
@pytest.mark.parametrize("after", [1, 2, 3])
def test_an_interrupted_run_goes_on_and_leaves_the_same(gpt2, tmp_path, monkeypatch, after):
    text, options = corpus(sequences=6), {"per_token": True, "batch_tokens": 24}
    sweep(gpt2, text, out=tmp_path / "whole.nc", **options)

    def stop(done, _):
        if done >= 2 * after:
            raise Stop

    with pytest.raises(Stop):
        sweep(gpt2, text, out=tmp_path / "a.nc", progress=stop, **options)
    measured, run = [], execution.measure_batch
    monkeypatch.setattr(
        execution, "measure_batch", lambda *args, **more: measured.append(1) or run(*args, **more)
    )
    sweep(gpt2, text, out=tmp_path / "a.nc", **options)
    assert len(measured) == 3 - after
    xr.testing.assert_identical(
        of_tokens(tmp_path / "a.nc").drop_attrs(), of_tokens(tmp_path / "whole.nc").drop_attrs()
    )
    sweep(gpt2, text, out=tmp_path / "a.nc", **options)
    assert len(measured) == 3 - after, "nothing is left to be done"


def test_killed_between_the_two_files_the_second_is_made_from_its_parts(
    gpt2, tmp_path, monkeypatch
):
    text, options = corpus(sequences=4), {"per_token": True, "batch_tokens": 24}
    with monkeypatch.context() as patch:
        patch.setattr(
            token_file.TokenFile, "finish", lambda *_, **__: (each for each in ()).throw(Stop())
        )
        with pytest.raises(Stop):
            sweep(gpt2, text, out=tmp_path / "a.nc", **options)
    assert (tmp_path / "a.nc").exists() and not (tmp_path / "a.tokens.nc").exists()
    sweep(gpt2, text, out=tmp_path / "a.nc", **options)
    np.testing.assert_allclose(
        of_tokens(tmp_path / "a.nc").kl.mean("token"), load(tmp_path / "a.nc").kl
    )
    assert not (tmp_path / "a.tokens.parts").exists()


@pytest.mark.slow
def test_killed_while_parts_are_removed_the_file_stays_whole(gpt2, tmp_path, monkeypatch):
    """What is left of them is never taken for all of them."""
    text, options = corpus(sequences=6), {"per_token": True, "batch_tokens": 24}
    remove = ownership.remove_directory

    def stop(path, kind):
        if path.is_dir():
            next(path.glob("*.nc")).unlink()
            raise Stop
        remove(path, kind)

    with monkeypatch.context() as patch:
        patch.setattr(ownership, "remove_directory", stop)
        with pytest.raises(Stop):
            sweep(gpt2, text, out=tmp_path / "a.nc", **options)
    sweep(gpt2, text, out=tmp_path / "a.nc", **options)
    np.testing.assert_allclose(
        measured_sequences(load(tmp_path / "a.tokens.nc")).kl, load(tmp_path / "a.nc").kl
    )
    assert {file.name for file in tmp_path.iterdir()} == {"a.nc", "a.tokens.nc"}


@pytest.mark.parametrize("lost", range(3))
def test_parts_that_are_lost_are_missed(gpt2, tmp_path, monkeypatch, lost):
    text, options = corpus(sequences=6), {"per_token": True, "batch_tokens": 24}
    with monkeypatch.context() as patch:
        patch.setattr(
            token_file.TokenFile, "finish", lambda *_, **__: (each for each in ()).throw(Stop())
        )
        with pytest.raises(Stop):
            sweep(gpt2, text, out=tmp_path / "a.nc", **options)
    sorted((tmp_path / "a.tokens.parts").iterdir())[lost].unlink()
    with pytest.raises(Refusal, match=f"lost what was measured of sequence {2 * lost}:"):
        sweep(gpt2, text, out=tmp_path / "a.nc", **options)
    assert not (tmp_path / "a.tokens.nc").exists()


@pytest.mark.slow
def test_a_part_that_is_lost_is_missed_before_anything_is_measured(gpt2, tmp_path, monkeypatch):
    text, options = corpus(sequences=6), {"per_token": True, "batch_tokens": 24}

    def stop(done, _):
        if done >= 4:
            raise Stop

    with pytest.raises(Stop):
        sweep(gpt2, text, out=tmp_path / "a.nc", progress=stop, **options)
    sorted((tmp_path / "a.tokens.parts").iterdir())[1].unlink()
    monkeypatch.setattr(execution, "measure_batch", None)
    with pytest.raises(Refusal, match="lost what was measured of sequence 2: measure anew"):
        sweep(gpt2, text, out=tmp_path / "a.nc", **options)
    assert not (tmp_path / "a.nc").exists()


def test_a_file_of_an_early_version_is_refused(gpt2, tmp_path):
    sweep(gpt2, corpus(sequences=4), per_token=True, out=tmp_path / "a.nc")
    data = load(tmp_path / "a.tokens.nc").drop_vars("compared")
    with pytest.raises(Refusal, match="does not say which positions count"):
        measured_sequences(data)


def test_what_a_killed_run_was_writing_is_removed_and_so_are_tokens_of_what_is_replaced(
    gpt2, tmp_path
):
    text, torn = corpus(sequences=4), tmp_path / ".a.tokens.nc.123.writing"
    torn.write_bytes(b"x")
    sweep(gpt2, text, per_token=True, out=tmp_path / "a.nc")
    assert not torn.exists() and (tmp_path / "a.tokens.nc").exists()
    sweep(gpt2, text, out=tmp_path / "a.nc", fresh=True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


def test_a_token_without_a_number_makes_its_sequence_one_without(gpt2, tmp_path):
    text = corpus(sequences=4, lengths=[12, 7, 12, 9])
    sweep(gpt2, text, ("drop",), per_token=True, out=tmp_path / "a.nc")
    data = load(tmp_path / "a.tokens.nc")
    assert (data.compared.sum("token") == text.lengths - 1).all(), "as the authors count"
    data["kl"][0, 1, 2, 5] = np.nan
    found = measured_sequences(data)
    assert found.kl.isnull().sum() == 1 and found.kl[0, 1, 2].isnull()
    assert found.loss.notnull().all()


def test_the_authors_alignment_counts_other_positions(gpt2, tmp_path):
    text = corpus(sequences=3)
    text = replace(text, authors_alignment=True)
    whole = sweep(gpt2, text, ("drop",), per_token=True, out=tmp_path / "a.nc")
    averaged = measured_sequences(load(tmp_path / "a.tokens.nc"))
    for name in NAMES:
        np.testing.assert_allclose(averaged[name], whole[name], atol=1e-12, err_msg=name)


def test_single_tokens_are_drawn_over_layers_and_positions(gpt2, tmp_path):
    sweep(gpt2, corpus(sequences=4), ("drop",), per_token=True, out=tmp_path / "a.nc")
    data = load(tmp_path / "a.tokens.nc")
    image = draw(data).axes[0].images[0]
    shown = np.ma.masked_invalid(np.asarray(image.get_array())).filled(np.nan)
    expected = data.kl.sel(intervention="drop").mean("sequence")
    assert np.isnan(expected[:, [0, -1]]).all(), "positions that do not count have their places"
    np.testing.assert_allclose(shown, expected, atol=1e-12)


@pytest.mark.slow
@pytest.mark.parametrize("asked", [{"schedules": ["0-2.."]}, {"interventions": ["drop-pair"]}])
def test_single_tokens_of_other_sweeps_are_drawn_as_their_means(gpt2, tmp_path, asked):
    whole = sweep(gpt2, corpus(sequences=4), **asked, per_token=True, out=tmp_path / "a.nc")
    one, other = draw(whole), draw(load(tmp_path / "a.tokens.nc"))
    assert [axis.get_xlabel() for axis in one.axes] == [axis.get_xlabel() for axis in other.axes]


@pytest.mark.slow
def test_what_cannot_be_kept_is_refused(gpt2, tmp_path):
    text = corpus(sequences=4)
    with pytest.raises(Refusal, match="give a path with `out`"):
        sweep(gpt2, text, per_token=True)
    with pytest.raises(Refusal, match="exclude each other"):
        sweep(gpt2, text, per_token=True, until_se=0.1, out=tmp_path / "a.nc")
    sweep(gpt2, text, out=tmp_path / "a.nc")
    with pytest.raises(Refusal, match="per_token"):
        sweep(gpt2, text, per_token=True, out=tmp_path / "a.nc")
    sweep(gpt2, text, per_token=True, out=tmp_path / "a.nc", fresh=True)
    (tmp_path / "a.tokens.nc").unlink()
    with pytest.raises(Refusal, match=r"a\.tokens\.nc is not there.*`fresh`"):
        sweep(gpt2, text, per_token=True, out=tmp_path / "a.nc")


def test_no_more_than_a_batch_is_held(gpt2, tmp_path, monkeypatch):
    """What is read back while the file is made is one part at a time, of one batch."""
    sizes, read = [], netcdf.load_part

    def load_part(path):
        found = read(path)
        sizes.append(found.sizes["sequence"])
        return found

    monkeypatch.setattr(netcdf, "load_part", load_part)
    sweep(gpt2, corpus(sequences=6), per_token=True, batch_tokens=24, out=tmp_path / "a.nc")
    assert sizes == [2, 2, 2]
