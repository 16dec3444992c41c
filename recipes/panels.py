"""Datasets to figures: nothing is measured and no file is touched."""

import matplotlib

matplotlib.use("Agg")

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from robustness.refusal import Refusal
from robustness.results import measured
from robustness.uncertainty import standard_error

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
"""Okabe and Ito's colours, which people with any colour vision tell apart."""

MARKERS = "osD^vPX"

BAND = 1.96
"""Standard errors either side of a mean: 95 % where it is normal."""


def draw(dataset: xr.Dataset) -> Figure:
    """Draw the figure of a dataset.

    Raises
    ------
    Refusal
        If it holds nothing that is drawn.
    """
    if "kl" in dataset and "intervention" in dataset.dims:
        return sweep_figure(measured(dataset))
    if "kl" in dataset and "schedule" in dataset.dims:
        return schedule_figure(measured(dataset))
    raise Refusal(f"nothing in the file is drawn; it holds: {', '.join(map(str, dataset))}")


def sweep_figure(dataset: xr.Dataset) -> Figure:
    """KL and agreement over layers, a line an intervention, with 95 % bands."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    divergence, agreement = figure.subplots(1, 2)
    over_layers(divergence, dataset["kl"])
    divergence.set_yscale("log")
    divergence.set_ylabel("KL(clean ‖ intervened) [nat]")
    divergence.set_title("Change of the prediction")
    over_layers(agreement, dataset["agreement"])
    agreement.set_ylim(0, 1)
    agreement.set_ylabel("share of tokens with the clean top-1")
    agreement.set_title("Agreement with the clean model")
    divergence.legend(frameon=False)
    figure.suptitle(_title(dataset))
    return figure


def schedule_figure(dataset: xr.Dataset) -> Figure:
    """KL and agreement of free schedules, a row a schedule, with 95 % bars."""
    count = dataset.sizes["schedule"]
    figure = Figure(figsize=(10, 1.8 + 0.35 * count), layout="constrained")
    axes = figure.subplots(1, 2, sharey=True)
    labels = ("KL(clean ‖ intervened) [nat]", "share of tokens with the clean top-1")
    for axis, name, label, colour in zip(axes, ("kl", "agreement"), labels, COLOURS, strict=False):
        mean, error = dataset[name].mean("sequence", skipna=False), standard_error(dataset[name])
        rows = np.arange(count)
        axis.errorbar(mean, rows, xerr=BAND * error.fillna(0), fmt="o", color=colour)
        axis.set_yticks(rows, dataset["schedule"].values)
        axis.set_xlabel(label)
        axis.grid(axis="x", alpha=0.3)
    axes[0].invert_yaxis()
    axes[0].set_ylabel("schedule")
    axes[1].set_xlim(0, 1)
    figure.suptitle(_title(dataset))
    return figure


def over_layers(axis: Axes, values: xr.DataArray) -> None:
    """Draw the mean over sequences against the layer, with a band, for each intervention."""
    mean, error = values.mean("sequence", skipna=False), standard_error(values)
    for index, name in enumerate(values["intervention"].values):
        line, band = mean.sel(intervention=name), BAND * error.sel(intervention=name).fillna(0)
        colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
        axis.plot(line["layer"], line, color=colour, marker=marker, markersize=4, label=str(name))
        lower, upper = line - band, line + band
        if values.name == "kl":
            lower = lower.clip(min=line / 10)
        axis.fill_between(line["layer"], lower, upper, color=colour, alpha=0.25, linewidth=0)
    axis.set_xlabel("layer (the first that is changed)")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True))
    axis.grid(alpha=0.3)


def _title(dataset: xr.Dataset) -> str:
    attrs = dataset.attrs
    documents = np.unique(dataset["document"]).size
    share = dataset.sizes["sequence"] / attrs["sequences"]
    text = f"model {attrs['model']}, text {attrs['corpus']}: {round(attrs['tokens'] * share):,} "
    text += f"tokens of {documents} documents, 95 % bands" if documents > 1 else "tokens"
    return text + (f" (unfinished: {share:.0%})" if share < 1 else "")
