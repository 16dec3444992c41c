import netCDF4
import numpy as np
import pytest
import torch
import xarray as xr
from families import rebuilt, tiny
from test_execution import corpus

from recipes.views import as_text, draw, table
from robustness.errors import Refusal
from robustness.files import netcdf
from robustness.files.figures import save_figure
from robustness.files.labels import blank_dataset
from robustness.files.metrics import METRICS
from robustness.files.provenance import file_attributes
from robustness.files.resumable import Run
from robustness.files.sequences import COUNTED, mean_over_tokens, sequence_coords
from robustness.schedules import clean, drop, swap
from robustness.statistics.uncertainty import standard_error
from robustness.sweeps import sweep


@pytest.fixture(scope="module")
def data(gpt2):
    return sweep(gpt2, corpus(), ("drop", "swap"), command="stages sweep x")


def test_a_file_explains_itself(data, tmp_path):
    netcdf.save(data, tmp_path / "a.nc")
    read = xr.load_dataset(tmp_path / "a.nc")
    xr.testing.assert_identical(read, netcdf.load(tmp_path / "a.nc"))
    assert read.kl.dims == ("intervention", "layer", "sequence")
    assert read.modal_share.dims == ("intervention", "layer")
    assert set(read.data_vars) == METRICS.keys()
    for name, variable in read.data_vars.items():
        assert variable.attrs == METRICS[name].attrs
    assert read.schedule.sel(intervention="swap", layer=1) == "0-2-1-3"
    assert read.relative_depth.values.tolist() == [0, 1 / 3, 2 / 3, 1]
    assert read.document.values.tolist() == [0, 0, 1, 1, 2]
    expected = {
        "model", "architecture", "dtype", "device", "attention", "corpus", "corpus_sha256",
        "context", "sequences", "tokens", "bos", "seed", "batch_tokens", "state_cap", "conventions",
        "interventions", "versions", "command", "created", "stages_schema", "weights_sha256",
    }  # fmt: skip
    assert expected <= read.attrs.keys()
    assert "torch 2." in read.versions and "nnsight 0.8" in read.versions


def test_the_layer_by_metric_tensor_is_one_line(data):
    tensor = data[["kl", "loss"]].mean("sequence").to_dataarray("metric")
    assert tensor.dims == ("metric", "intervention", "layer")
    assert np.isnan(data.kl.sel(intervention="swap", layer=3)).all()


def test_a_run_of_equal_settings_is_not_made_again(gpt2, tmp_path):
    path = tmp_path / "a.nc"
    first = sweep(gpt2, corpus(), ("drop",), out=path)
    stamp = path.stat().st_mtime_ns
    calls = []
    again = sweep(gpt2, corpus(), ("drop",), out=path, progress=lambda *done: calls.append(done))
    xr.testing.assert_identical(first, again)
    assert path.stat().st_mtime_ns == stamp and set(calls) == {(5, 5)}


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"interventions": ("drop", "swap")}, "interventions drop, not drop, swap"),
        ({"corpus": corpus(sequences=4)}, "sequences 5, not 4"),
    ],
)
@pytest.mark.parametrize("finished", [True, False])
def test_a_run_of_other_settings_is_refused_with_the_difference(
    gpt2, tmp_path, change, named, finished
):
    path = tmp_path / "a.nc"
    sweep(gpt2, corpus(), ("drop",), out=path)
    if not finished:
        whole = netcdf.load(path)
        path.unlink()
        netcdf.save(whole.assign_attrs(sequences_done=1), tmp_path / "a.partial.nc")
    options = {"corpus": corpus(), "interventions": ("drop",), "out": path} | change
    with pytest.raises(Refusal, match=f"was made with {named}.*`fresh`"):
        sweep(gpt2, **options)
    sweep(gpt2, **options, fresh=True)
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


@pytest.mark.slow
def test_an_interrupted_fresh_run_goes_on_and_the_old_file_stays_until_it_is_done(
    gpt2, tmp_path, monkeypatch
):
    path = tmp_path / "a.nc"
    old = sweep(gpt2, corpus(), ("drop",), batch_tokens=12, out=path)
    done = []

    def stop(count: int, _total: int) -> None:
        done.append(count)
        if len(done) == 4:
            raise KeyboardInterrupt

    options = {"corpus": corpus(), "batch_tokens": 12, "out": path, "progress": stop}
    with pytest.raises(KeyboardInterrupt):
        sweep(gpt2, interventions=("swap",), fresh=True, **options)
    assert done == [0, 1, 2, 3]
    xr.testing.assert_identical(netcdf.load(path), old)
    resumed = sweep(gpt2, interventions=("swap",), **options)
    assert done[4] == 3
    assert resumed.intervention.values.tolist() == ["swap"]
    xr.testing.assert_equal(resumed, sweep(gpt2, corpus(), ("swap",), batch_tokens=12))
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


def test_an_unfinished_run_is_not_continued_with_other_versions(gpt2, tmp_path):
    path = tmp_path / "a.nc"
    finished = sweep(gpt2, corpus(), ("drop",), out=path)
    netcdf.save(finished.assign_attrs(versions="torch 1.0"), path)
    sweep(gpt2, corpus(), ("drop",), out=path)
    path.unlink()
    partial = finished.assign_attrs(versions="torch 1.0", sequences_done=1)
    netcdf.save(partial, tmp_path / "a.partial.nc")
    with pytest.raises(Refusal, match=r"made with versions torch 1\.0, not stages-of-inference"):
        sweep(gpt2, corpus(), ("drop",), out=path)


def test_a_file_that_is_not_ours_is_refused(tmp_path):
    with pytest.raises(Refusal, match="there is no file"):
        netcdf.load(tmp_path / "none.nc")
    (tmp_path / "text.nc").write_text("no NetCDF")
    with pytest.raises(Refusal, match="is not a NetCDF file"):
        netcdf.load(tmp_path / "text.nc")
    xr.Dataset({"kl": 1.0}).to_netcdf(tmp_path / "other.nc")
    with pytest.raises(Refusal, match="not one that stages wrote"):
        netcdf.load(tmp_path / "other.nc")
    xr.Dataset(attrs={"stages_schema": 99}).to_netcdf(tmp_path / "newer.nc")
    with pytest.raises(Refusal, match="schema 99, newer than 1: update"):
        netcdf.load(tmp_path / "newer.nc")


def test_a_directory_that_cannot_be_written_is_refused(data, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(Refusal, match=r"cannot be written .*or choose another place"):
        netcdf.save(data, tmp_path / "file" / "a.nc")


def test_a_write_that_fails_leaves_the_old_file(data, tmp_path, monkeypatch):
    path = tmp_path / "a.nc"
    netcdf.save(data, path)
    before = path.read_bytes()

    def full(*_args, **_options):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(xr.Dataset, "to_netcdf", full)
    with pytest.raises(Refusal, match=r"cannot be written \(.*No space.*\): make room"):
        netcdf.save(data * 2, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["a.nc"]


def test_the_table_shows_means_and_clustered_errors(data):
    text = as_text(table(data))
    mean, error = data.kl.mean("sequence"), standard_error(data.kl)
    for layer in range(4):
        at = {"intervention": "drop", "layer": layer}
        assert f"{mean.sel(at):.3f} ±{error.sel(at):.3f}" in text
    assert text.splitlines()[-1].split() == ["3", "-", "-", "-", "-", "-", "-"]
    unfinished = data.assign_attrs(sequences_done=3).drop_vars("modal_share")
    assert "unfinished: 3 of 5 sequences" in as_text(table(unfinished))
    assert "36 tokens of 2 documents, 95 % bands (unfinished: 60%)" in title(unfinished)
    bad = data.copy(deep=True)
    bad.kl[0, 2, 1], bad.nonfinite[0, 2, 1] = np.nan, 4
    assert "4 predictions had NaN or infinite logits" in as_text(table(bad))
    assert as_text(table(bad)).split("swap")[0].splitlines()[-3].split()[:2] == ["2", "-"]
    with pytest.raises(Refusal, match="nothing in the file can be tabulated; it holds: x"):
        as_text(table(xr.Dataset({"x": 1})))


def title(data):
    return draw(data).get_suptitle()


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["png", "svg", "pdf"])
def test_a_figure_has_a_line_for_every_intervention_and_says_its_units(data, tmp_path, kind):
    figure = draw(data)
    divergence, agreement = figure.axes
    assert [text.get_text() for text in divergence.get_legend().get_texts()] == ["drop", "swap"]
    assert divergence.get_yscale() == "log" and "[nat]" in divergence.get_ylabel()
    line = divergence.get_lines()[0]
    np.testing.assert_allclose(
        line.get_ydata(), data.kl.mean("sequence").sel(intervention="drop"), rtol=1e-6
    )
    assert agreement.get_xlabel().startswith("layer")
    assert save_figure(figure, tmp_path / f"a.{kind}").stat().st_size > 5000
    with pytest.raises(Refusal, match=r"must end in \.png, \.svg, \.pdf"):
        save_figure(figure, tmp_path / "a.gif")


def test_free_schedules_have_a_table_and_a_figure(gpt2):
    data = sweep(gpt2, corpus(), schedules=[clean(4), swap(clean(4), 0)])
    assert data.schedule.values.tolist() == ["0..3", "1-0-2-3"]
    assert "1-0-2-3" in as_text(table(data))
    assert [label.get_text() for label in draw(data).axes[0].get_yticklabels()] == [
        "0..3",
        "1-0-2-3",
    ]
    with pytest.raises(Refusal, match="nothing in the file can be drawn"):
        draw(xr.Dataset({"x": 1}))


def test_netcdf_is_readable_without_xarray(data, tmp_path):
    netcdf.save(data, tmp_path / "a.nc")
    with netCDF4.Dataset(tmp_path / "a.nc") as file:
        assert file["kl"].units == "nat"


def test_interrupted_while_it_is_completed_a_run_goes_on(tmp_path):
    """What is kept is what was measured, not what was made of it."""

    def layout():
        return blank_dataset(
            {"raw": (METRICS["kl"], ("sequence",))},
            sequence_coords(np.arange(4)),
            file_attributes({"model": "m", "sequences": 4}),
        )

    def interrupted(dataset, _):
        raise KeyboardInterrupt

    def complete(dataset, _):
        return dataset.rename(raw="made").assign(made=dataset["raw"].rename("made") * 2)

    path = tmp_path / "run.nc"
    with pytest.raises(KeyboardInterrupt), Run(layout(), path=path, complete=interrupted) as run:
        run.add(slice(0, 4), {"raw": np.arange(4.0)})
        run.finish()
    real = netcdf.save
    saved = []

    def stop(dataset, there, *tally):
        if there == path:
            saved.append(1)
            raise KeyboardInterrupt
        real(dataset, there, *tally)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(netcdf, "save", stop)
        with pytest.raises(KeyboardInterrupt), Run(layout(), path=path, complete=complete) as run:
            assert run.done == 4
            run.finish()
    assert saved
    with Run(layout(), path=path, complete=complete) as run:
        assert run.done == 4
        assert run.finish()["made"].values.tolist() == [0, 2, 4, 6]


def test_a_run_that_is_refused_before_it_begins_leaves_nothing(tmp_path):
    dataset = blank_dataset(
        {"raw": (METRICS["kl"], ("sequence",))},
        sequence_coords(np.arange(4)),
        file_attributes({"model": "m", "sequences": 4}),
    )
    with pytest.raises(Refusal), Run(dataset, path=tmp_path / "run.nc"):
        raise Refusal("too dear")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("lengths", [[12, 5, 9, 12], None])
def test_means_over_tokens_weigh_documents_by_their_length(gpt2, tmp_path, lengths):
    text = corpus(sequences=4, length=12, lengths=lengths)
    data = sweep(gpt2, text, ("drop",), out=tmp_path / "a.nc")
    assert (COUNTED in data.coords) == (lengths is not None)
    found = mean_over_tokens(netcdf.load(tmp_path / "a.nc").kl)
    nets = [tiny("gpt2").requires_grad_(False)]
    nets += [rebuilt(nets[0], drop(clean(4), layer)) for layer in range(4)]
    for layer in range(4):
        kl = []
        for row, length in zip(text.tokens, text.lengths, strict=True):
            p, q = (
                net(torch.from_numpy(row[None, :length]), use_cache=False).logits[0].log_softmax(-1)
                for net in (nets[0], nets[1 + layer])
            )
            kl.append((p.exp() * (p - q)).sum(-1)[1 : None if lengths else -1])
        assert float(found.isel(intervention=0, layer=layer)) == pytest.approx(
            float(torch.cat(kl).mean())
        )
    lines = as_text(table(data))
    assert ("by token" in lines) == (lengths is not None)
    if lengths:
        assert abs(found - data.kl.mean("sequence")).max() > 1e-3
        assert "a mean weighs every document the same" in lines
