"""A sweep that is killed while it measures, writes or renames, and goes on."""

import os
import signal
from functools import partial

import kills
import pytest
import xarray as xr
from families import tiny
from test_execution import corpus

from robustness.files import netcdf, output
from robustness.models.opening import open_model
from robustness.sweeps import sweep


def kill_during_a_write() -> None:
    write = xr.Dataset.to_netcdf

    def half(self, path, **options):
        write(self, path, **options)
        if self.attrs.get("sequences_done") == 3:
            os.truncate(path, 1000)
            kills.die()

    xr.Dataset.to_netcdf = half


def kill_before_a_rename(number: int) -> None:
    rename = os.replace

    def counting(*names):
        nonlocal number
        if not number:
            kills.die()
        number -= 1
        rename(*names)

    os.replace = counting


KILLED = {
    "one batch": partial(kills.die_after, 1),
    "several": partial(kills.die_after, 5),
    "writing": kill_during_a_write,
    "renaming": partial(kill_before_a_rename, 3),
    "last rename": partial(kill_before_a_rename, 7),
}


@pytest.fixture(scope="module")
def uninterrupted():
    net = open_model(tiny("llama"))
    return net, sweep(net, corpus(sequences=7), ("drop", "swap"), batch_tokens=12)


@pytest.mark.slow
@pytest.mark.parametrize("where", KILLED)
def test_a_killed_run_finishes_with_the_numbers_of_an_uninterrupted_one(
    uninterrupted, tmp_path, where
):
    net, whole = uninterrupted
    path = tmp_path / "sweep.nc"

    def run(arm=lambda: None):
        arm()
        # What is done is saved after every batch, however long that takes.
        output.SAVING_SHARE = float("inf")
        sweep(net, corpus(sequences=7), ("drop", "swap"), batch_tokens=12, out=path)

    assert kills.fork(partial(run, KILLED[where])) == -signal.SIGKILL and not path.exists()
    assert netcdf.load(tmp_path / "sweep.partial.nc").sequences_done > 0
    assert kills.fork(run) == 0
    resumed = netcdf.load(path)
    xr.testing.assert_equal(whole, resumed)
    for variable in whole.variables:
        if whole[variable].dtype.kind in "fi":
            assert whole[variable].values.tobytes() == resumed[variable].values.tobytes()
    assert [file.name for file in tmp_path.iterdir()] == ["sweep.nc"]
