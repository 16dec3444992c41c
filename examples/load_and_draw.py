"""Load a sweep, select, and draw: two lines a figure.

Run after `make demo`, from where `outputs/` is.
"""

import matplotlib

matplotlib.use("Agg")

import matplotlib.pyplot as plt
import xarray as xr

from robustness.statistics.uncertainty import standard_error

data = xr.load_dataset("outputs/builtin/sweep.nc")

# Every variable has a unit and says what it is.
for name, values in data.data_vars.items():
    print(f"{name:16} {values.attrs['units']:4} {values.attrs['long_name']}")

# Means over sequences, with errors clustered by document.
kl = data.kl.mean("sequence")
error = standard_error(data.kl)
print((kl / error).rename("KL in standard errors").to_pandas().round(1))

# The layer × metric tensor of one intervention.
dropped = data[["kl", "agreement", "loss"]].sel(intervention="drop").mean("sequence")
print(dropped.to_dataarray("metric").transpose("layer", "metric").to_pandas().round(3))

kl.plot.line(x="layer", yscale="log")
plt.savefig("kl.png")
