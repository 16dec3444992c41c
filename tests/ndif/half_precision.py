"""A real NDIF server in bfloat16, as they are, against the same model in bfloat16 here.

The two round differently, so that they agree to a few floors of bfloat16: two floors are the
distance of independent roundings of whole runs, and half a percent of a KL that is large
(docs/precision.md). Twice that is allowed.
"""

import numpy as np
import pytest
import xarray as xr
from suite import DIRECTORY, KEYS, NAME, four_items, here, served, stages

FLOORS, SHARE = 4, 0.01


@pytest.fixture(scope="module")
def server():
    yield from served("bfloat16")


@pytest.fixture(params=KEYS)
def key(request):
    return KEYS[request.param]


def both(server, key, tmp_path, command, *words, task=()):
    """Run a command on the server and here, and return the files of both."""
    stages(server, key, command, NAME, *task, "--remote", *words, "--out", tmp_path / "there.nc")
    here(command, DIRECTORY, *task, "--dtype", "bfloat16", *words, "--out", tmp_path / "here.nc")
    return [xr.load_dataset(tmp_path / f"{side}.nc") for side in ("there", "here")]


def assert_near(found, expected, floor):
    """Hold means over sequences against the floor."""
    kl = [each["kl"].mean("sequence").values for each in (found, expected)]
    # At the last layer there is no swap.
    known = ~np.isnan(kl[1])
    off = abs(kl[0] - kl[1])[known]
    print(f"KL off by {off.max():.1e} nats at most, {off.max() / floor:.1f} floors")
    assert (off <= FLOORS * floor + SHARE * kl[1][known]).all()
    for name, most in (("agreement", 0.02), ("loss", 0.02), ("entropy", 0.02), ("accuracy", 0.02)):
        means = [each[name].mean("sequence") for each in (found, expected)]
        assert abs(means[0] - means[1]).max() <= most, name


def test_a_sweep_is_near_and_its_floor_is_estimated(server, key, tmp_path):
    words = ["--tokens", 2048, "--context", 64, "--batch-tokens", 512]
    found, expected = both(server, key, tmp_path, "sweep", *words)
    floors = [each.attrs["precision_floor"] for each in (found, expected)]
    print(f"\nfloor estimated {floors[0]:.2e}, measured here {floors[1]:.2e}")
    assert found.dtype == "bfloat16" and found.precision_floor_from == "rounding anew"
    assert 0.4 < floors[0] / floors[1] < 2.5
    assert_near(found, expected, floors[1])
    shown = stages(server, key, "show", tmp_path / "there.nc")
    assert "floor of bfloat16 under KL" in shown and "estimated by rounding anew" in shown


def test_pairs_and_free_schedules_are_near(server, key, tmp_path):
    words = [
        "--tokens",
        512,
        "--context",
        64,
        "--schedule",
        "0..5-4-6..",
        "--schedule",
        "0..7-7-8..",
    ]
    found, expected = both(server, key, tmp_path, "sweep", *words)
    assert_near(found, expected, expected.attrs["precision_floor"])


def test_observations_are_near(server, key, tmp_path):
    kinds = ("lens", "cka", "norms", "similarity")
    words = [*kinds, "--tokens", 1024, "--context", 64, "--batch-tokens", 512]
    stages(server, key, "observe", NAME, "--remote", *words, "--out", tmp_path / "there")
    here("observe", DIRECTORY, "--dtype", "bfloat16", *words, "--out", tmp_path / "here")
    for kind in kinds:
        found, expected = (
            xr.load_dataset(tmp_path / side / f"{kind}.nc") for side in ("there", "here")
        )
        for name in expected.data_vars:
            means = [
                each[name].mean([d for d in ("sequence", "batch") if d in each[name].dims])
                for each in (found, expected)
            ]
            assert (means[0].isnull() == means[1].isnull()).all(), (kind, name)
            scale = float(abs(means[1]).max())
            off = float(abs(means[0] - means[1]).max())
            if np.isnan(scale):
                continue
            print(f"{kind} {name}: off by {off:.1e} of {scale:.1e}")
            # Eight bits, of which a few are lost on the way through twelve blocks.
            assert off <= 0.03 * scale, (kind, name)


def test_probes_are_near(server, key, tmp_path):
    words = ["--every", 4, "--batch-tokens", 4096]
    found, expected = both(server, key, tmp_path, "probe", *words, task=("wic",))
    assert found.states_dtype == "bfloat16" and found["depth"].values.tolist() == [0, 4, 8, 12]
    assert abs(found.accuracy - expected.accuracy).mean() < 0.04


def test_tasks_are_near(server, key, tmp_path):
    data = four_items(tmp_path / "data")
    words = ["--drop", "--task-data", data]
    found, expected = both(server, key, tmp_path, "tasks", *words, task=("arc_easy",))
    assert abs(found["value"] - expected["value"]).max() < 0.1
    # Of two nearly equal choices either may win.
    assert (found["correct"] != expected["correct"]).mean() < 0.1
