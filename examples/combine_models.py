"""Put the sweeps of several models on one axis, and save them as one dataset.

Run with the directories that `stages reproduce` or `stages sweep` left:

    python examples/combine_models.py outputs/builtin outputs/builtin-parallel
"""

import sys
from pathlib import Path

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import numpy as np
import xarray as xr

if len(sys.argv) < 3:
    sys.exit(__doc__)
grid = np.linspace(0, 1, 21)
curves = {}
for directory in map(Path, sys.argv[1:]):
    data = xr.load_dataset(directory / "sweep.nc")
    agreement = data.agreement.mean("sequence").swap_dims(layer="relative_depth")
    curves[data.attrs["model"]] = agreement.interp(relative_depth=grid)

models = xr.concat(list(curves.values()), "model", coords="minimal", compat="override")
models = models.assign_coords(model=list(curves)).drop_vars(("layer", "schedule"), errors="ignore")
models.sel(intervention="swap").plot.line(x="relative_depth")
plt.ylabel("share of tokens with the clean top-1")
plt.savefig("models.png")
models.to_netcdf("models.nc")
print(models.sel(intervention="swap").to_pandas().round(2))
