"""Searches and healing on a device find what they find on the CPU."""

from dataclasses import replace

import numpy as np
import xarray as xr
from device_cases import on
from test_devices import corpus

from robustness.models.model import Model
from robustness.pruning import PruningSettings, prune
from robustness.runs.settings import RunOptions

WIDE = ("float64", "float32")


@on("gpt2 cuda float64", "llama mps float32", "gpt_neox cuda float32", types=WIDE)
def test_what_is_found_and_healed_is_what_the_cpu_finds(case, tmp_path):
    text = replace(corpus(24, 10), document=np.arange(24))
    settings = PruningSettings(remove=1, layers=(1, 2), methods=("greedy", "influence"), heal=True)

    def search(model: Model) -> xr.Dataset:
        out = tmp_path / model.device.type / "search.nc"
        out.parent.mkdir(exist_ok=True)
        options = RunOptions(out=out, batch_tokens=40)
        return prune(model, [text], settings, options, timed=True)

    found, expected = search(case.there()), search(case.here())
    assert found.attrs["device"] == case.kind
    np.testing.assert_array_equal(found["chosen"], expected["chosen"])
    np.testing.assert_array_equal(found["standing"], expected["standing"])
    assert found.sizes["healing"] == expected.sizes["healing"] == 4
    bound = 1e-9 if case.dtype.itemsize == 8 else 1e-3
    for name in ("kl", "loss"):
        np.testing.assert_allclose(found[name], expected[name], atol=bound, err_msg=name)
    assert (found["milliseconds"] > 0).all()
