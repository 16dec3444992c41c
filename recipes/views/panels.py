"""Datasets to figures: nothing is measured and no file is touched."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.colors import CenteredNorm, LogNorm
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullFormatter

from recipes.evidence.files import task_metric
from recipes.views.drawing import (
    BAND,
    COLOURS,
    LETTERS,
    MARKERS,
    TICKS,
    bands,
    bounded,
    ends,
    heat_map,
    lines,
    plain,
    whole_numbers,
    with_plain_texts,
)
from recipes.views.tables import counted
from robustness.errors import Refusal
from robustness.files.metrics import READOUTS
from robustness.files.sequences import counted_positions, measured_sequences
from robustness.statistics.uncertainty import band, bootstrap

FIRST = "layer (the first that is changed)"

SINGLE = {"drop", "attention-drop", "mlp-drop"}
"""Interventions that change one layer."""

READINGS = {
    "kl": ("KL(clean ‖ intervened) [nat]", "Change of the prediction"),
    "agreement": ("share of tokens with the clean top-1", "Agreement with the clean model"),
    "loss": ("cross-entropy of the next token [nat]", "Loss"),
    "entropy": ("entropy of the prediction [nat]", "Entropy"),
    "accuracy": ("share of tokens with the right top-1", "Accuracy"),
}
"""Of a sweep's readouts the label and the title."""

DIFFERENCES = {name: f"{name} [nat]" for name in ("loss", "entropy")} | {"kl": "KL [nat]"}
"""What readouts are called where differences of them are drawn, where not by their names."""

CROWD = 4
"""Lines from which on a legend is beside the panels."""

ABREAST = 3
"""Panels of variables side by side."""

POSITIONS = 32
"""The most bins of the positions of tokens."""

EFFECTS = 6
"""Neurons whose effect on logits is drawn."""


def draw(dataset: xr.Dataset, *, by_bootstrap: bool = False) -> Figure:
    """Draw the figure of a dataset, with bands from standard errors or by bootstrap.

    Raises
    ------
    Refusal
        If it holds nothing that is drawn.
    """
    kind = dataset.attrs.get("measurement", "")
    make = FIGURES.get(kind, any_figure)
    if "difference" in dataset.attrs and make not in (sweep_figure, schedule_figure, pairs_figure):
        make = any_figure
    if "token" in dataset.dims and make is sweep_figure:
        make = positions_figure
    asked: list[str] = []

    def by_draws(values: xr.DataArray) -> xr.DataArray:
        asked.append(str(values.name))
        return bootstrap(values)

    with bands(by_draws if by_bootstrap else band):
        figure = make(dataset if make is positions_figure else measured_sequences(dataset))
    if by_bootstrap and not asked:
        raise Refusal("this figure has no bands that a bootstrap could give: leave out --bootstrap")
    figure.suptitle(plain(_title(dataset)), wrap=True)
    return with_plain_texts(figure)


def sweep_figure(dataset: xr.Dataset) -> Figure:
    """Readouts over layers, a line an intervention, with 95 % bands: KL and agreement if there."""
    shown = _shown(dataset)
    figure = Figure(figsize=(max(7.5, 5 * len(shown)), 4.2), layout="constrained")
    names = {str(name) for name in dataset["intervention"].values}
    where = "layer" if names <= SINGLE else FIRST
    for axis, name in zip(figure.subplots(1, len(shown), squeeze=False)[0], shown, strict=True):
        label, title = _reading(dataset, name)
        less = "difference" in dataset.attrs
        lines(axis, dataset[name], "intervention", where, log=name == "kl" and not less)
        axis.set_ylabel(label)
        axis.set_title(title)
        if less:
            axis.axhline(0, color="grey", linewidth=0.8)
        elif name in {"agreement", "accuracy"}:
            axis.set_ylim(0, 1)
        if f"clean_{name}" in dataset:
            clean = float(dataset[f"clean_{name}"].mean())
            axis.axhline(clean, color="black", linewidth=1, label="clean")
    _legend(figure)
    return figure


def pairs_figure(dataset: xr.Dataset) -> Figure:
    """Readouts over both layers, a row of heat maps an intervention: KL and agreement if there."""
    shown, names = _shown(dataset), dataset["intervention"].values
    size = (5.4 * len(shown), 4.4 * len(names))
    figure = Figure(figsize=size, layout="constrained")
    layers = dataset["layer"].values
    means = dataset[shown].mean("sequence", skipna=False)
    for row, intervention in zip(
        figure.subplots(len(names), len(shown), squeeze=False), names, strict=True
    ):
        for axis, name in zip(row, shown, strict=True):
            # One scale for all interventions, so that colours can be compared.
            image = heat_map(axis, means[name].sel(intervention=intervention), "layer_to", "layer")
            _colour(image, means[name], name, "difference" in dataset.attrs)
            label, title = _reading(dataset, name)
            axis.set_title(f"{intervention}: {title}", fontsize="medium")
            if str(intervention).endswith("-span"):
                axis.set_xlabel("first layer of the span")
                axis.set_ylabel("last layer of the span")
            else:
                alone = " (on the diagonal, it alone)" if intervention == "drop-pair" else ""
                axis.set_xlabel(f"one layer{alone}")
                axis.set_ylabel("the other layer")
            for side in (axis.xaxis, axis.yaxis):
                if len(layers) <= TICKS:
                    side.set_major_locator(FixedLocator(range(len(layers))))
                # Layers that were chosen are not consecutive.
                side.set_major_formatter(
                    lambda at, _: str(layers[int(at)]) if 0 <= at < len(layers) else ""
                )
            figure.colorbar(image, ax=axis, label=label)
    return figure


def positions_figure(dataset: xr.Dataset) -> Figure:
    """Readouts over layers and positions of tokens, a row of heat maps an intervention."""
    shown, names = _shown(dataset), dataset["intervention"].values
    figure = Figure(figsize=(6 * len(shown), 3.8 * len(names)), layout="constrained")
    width = -(-dataset.sizes["token"] // POSITIONS)
    means = {
        name: _binned(dataset[name], counted_positions(dataset, name), width) for name in shown
    }
    for row, intervention in zip(
        figure.subplots(len(names), len(shown), squeeze=False), names, strict=True
    ):
        for axis, name in zip(row, shown, strict=True):
            values = means[name].sel(intervention=intervention)
            image = heat_map(axis, values, "layer", "token")
            count, layers = values.sizes["token"], values["layer"].values
            image.set_extent((0, count * width, -0.5, len(layers) - 0.5))
            _colour(image, means[name], name, False)
            if len(layers) <= TICKS:
                axis.set_yticks(range(len(layers)), layers)
            label, title = _reading(dataset, name)
            axis.set_xlabel("position of the token that predicts")
            axis.set_title(f"{intervention}: {title}", fontsize="medium")
            figure.colorbar(image, ax=axis, label=label)
    return figure


def _binned(values: xr.DataArray, counts: xr.DataArray, width: int) -> xr.DataArray:
    """Return means over sequences and so many positions, of those that count."""
    total = values.where(counts, 0).sum("sequence", skipna=False).transpose(..., "token")
    starts = np.arange(0, values.sizes["token"], width)
    sums, numbers = (
        np.add.reduceat(each.values, starts, axis=-1) for each in (total, counts.sum("sequence"))
    )
    with np.errstate(invalid="ignore"):
        return total.isel(token=starts).copy(data=sums / numbers)


def schedule_figure(dataset: xr.Dataset) -> Figure:
    """KL and agreement of free schedules, a row a schedule, with 95 % bars."""
    count = dataset.sizes["schedule"]
    longest = min(LETTERS, max(map(len, dataset["schedule"].values)))
    figure = Figure(figsize=(8 + 0.08 * longest, 1.8 + 0.35 * count), layout="constrained")
    shown = _shown(dataset)
    axes = figure.subplots(1, len(shown), sharey=True, squeeze=False)[0]
    for axis, name, colour in zip(axes, shown, COLOURS, strict=False):
        mean, around = dataset[name].mean("sequence", skipna=False), ends(dataset[name])
        rows = np.arange(count)
        bars = [mean - around.sel(end="low"), around.sel(end="high") - mean]
        axis.errorbar(mean, rows, xerr=np.stack(bars).clip(min=0), fmt="o", capsize=3, color=colour)
        axis.set_yticks(rows, dataset["schedule"].values)
        label, title = _reading(dataset, name)
        axis.set_xlabel(label)
        axis.set_title(title)
        axis.grid(axis="x", alpha=0.3)
        if "difference" in dataset.attrs:
            axis.axvline(0, color="grey", linewidth=0.8)
        elif name in {"agreement", "accuracy"}:
            axis.set_xlim(0, 1)
        elif name == "kl" and bool((mean > 0).all()):
            axis.set_xscale("log")
            axis.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
            axis.xaxis.set_major_formatter("{x:g}")
            axis.xaxis.set_minor_formatter(NullFormatter())
    axes[0].invert_yaxis()
    axes[0].set_ylabel("schedule")
    return figure


def _reading(dataset: xr.Dataset, name: str) -> tuple[str, str]:
    """Return what a readout's axis and panel are called."""
    label, title = READINGS[name]
    if "difference" in dataset.attrs:
        return f"Δ {DIFFERENCES.get(name, name)}", title
    return label, title


def _colour(image: Any, values: xr.DataArray, name: str, less: bool) -> None:
    """Give a heat map the scale that fits all of these values: of a difference, about zero."""
    low, high = float(values.min()), float(values.max())
    if less:
        image.set_cmap("RdBu_r")
        image.set_norm(CenteredNorm(halfrange=max(-low, high) or None))
    elif name == "kl" and high > 0:
        image.set_norm(LogNorm(float(values.where(values > 0).min()), high))
    elif np.isfinite(low):
        image.set_clim(low, high)


def _legend(figure: Figure) -> None:
    """Say what the lines are: in the first panel, or beside the panels if there are many."""
    handles, labels = figure.axes[0].get_legend_handles_labels()
    if len(labels) > CROWD:
        figure.legend(handles, labels, loc="outside right center", frameon=False)
    else:
        figure.axes[0].legend(frameon=False)


def _shown(dataset: xr.Dataset) -> list[str]:
    """Return the readouts that are drawn: two of those that were measured."""
    return [metric.name for metric in READOUTS if metric.name in dataset][:2]


def lens_figure(dataset: xr.Dataset) -> Figure:
    """Entropy, KL to the final prediction and agreement over depth, for both ways of reading."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    entropy, divergence, agreement = figure.subplots(1, 3)
    lines(entropy, dataset["entropy"], "lens", "depth (blocks that have run)")
    entropy.set_ylabel("entropy [nat]")
    entropy.set_title("How sure the lens is")
    entropy.legend(title="final norm", frameon=False)
    lines(divergence, dataset["kl"], "lens", "depth (blocks that have run)")
    divergence.set_ylabel("KL(final ‖ lens) [nat]")
    divergence.set_title("How far it is from the final prediction")
    lines(agreement, dataset["agreement"], "lens", "depth (blocks that have run)")
    agreement.set_ylim(0, 1)
    agreement.set_ylabel("share of tokens with the final top-1")
    agreement.set_title("Agreement with the final prediction")
    return figure


def cka_figure(dataset: xr.Dataset) -> Figure:
    """Alignment of every pair of depths, a heat map for each processing."""
    if "cka" not in dataset:
        raise Refusal("the run is not finished: CKA is known when all its batches are")
    kinds = dataset["processing"].values
    figure = Figure(figsize=(5.2 * len(kinds) + 0.8, 4.8), layout="constrained")
    axes = np.atleast_1d(figure.subplots(1, len(kinds)))
    low = float(dataset["cka"].min())
    for axis, kind in zip(axes, kinds, strict=True):
        image = heat_map(axis, dataset["cka"].sel(processing=kind), "depth", "depth_to", low, 1)
        axis.set_xlabel("depth")
        axis.set_title(f"{kind} residual streams")
        figure.colorbar(image, ax=axis, label="CKA")
    error = float(dataset["cka_standard_error"].median())
    batches, size = dataset.sizes["batch"], dataset.attrs["batch_sequences"]
    spread = "too few for an error" if np.isnan(error) else f"median standard error {error:.3f}"
    figure.supxlabel(f"{batches} batches of {size} sequences, {spread}", fontsize="small")
    return figure


def attention_figure(dataset: xr.Dataset) -> Figure:
    """Attention to the five previous tokens: each head, and over layers beside the first token."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    grid, local, spread = figure.subplots(1, 3)
    previous = dataset["profile"].sel(offset=slice(1, 5)).sum("offset", skipna=False)
    image = heat_map(grid, previous.mean("sequence"), "layer", "head", low=0)
    figure.colorbar(image, ax=grid, label="weight")
    grid.set_title("On the previous 5 tokens, each head")
    kinds = {"previous 5 tokens": previous, "first token": dataset["first_token"]}
    both = xr.concat(list(kinds.values()), "on").assign_coords(on=list(kinds)).mean("head")
    lines(local, both, "on", "layer")
    local.set_ylim(0)
    local.set_ylabel("attention weight, mean over heads")
    local.legend(frameon=False)
    local.set_title("Over layers")
    heads = dataset["entropy"].mean("head").expand_dims(of=["heads"])
    lines(spread, heads, "of", "layer")
    spread.set_ylabel("entropy of the weights [nat]")
    spread.set_title("How spread out it is")
    return figure


def norms_figure(dataset: xr.Dataset) -> Figure:
    """Norms of what sublayers write, their ratio, and how much blocks turn the stream."""
    figure = Figure(figsize=(13, 4.2), layout="constrained")
    sizes, ratio, turn = figure.subplots(1, 3)
    chosen = dataset.sel(statistic="mean")
    kinds = {"attention": chosen["attention_norm"], "MLP": chosen["mlp_norm"]}
    both = xr.concat(list(kinds.values()), "of").assign_coords(of=list(kinds))
    lines(sizes, both.sel(processing="raw"), "of", "layer")
    sizes.set_ylabel("norm of the output, mean over tokens")
    sizes.set_title("What sublayers write")
    sizes.set_ylim(0)
    sizes.legend(frameon=False)
    lines(ratio, chosen["attention_mlp_ratio"], "processing", "layer")
    ratio.axhline(1, color="grey", linewidth=0.8)
    ratio.set_ylabel("attention over MLP, mean over tokens")
    ratio.set_title("Which of them writes more")
    ratio.legend(frameon=False)
    lines(turn, dataset["block_influence"].expand_dims(of=["blocks"]), "of", "layer")
    turn.set_ylabel("1 - cosine of input and output")
    turn.set_title("Block influence")
    turn.set_ylim(0)
    return figure


def similarity_figure(dataset: xr.Dataset) -> Figure:
    """Cosines of what sublayers write under swap, a panel for attention and one for the MLP."""
    figure = Figure(figsize=(11, 4.4), layout="constrained")
    processing = dataset["processing"].values[-1]
    for axis, component in zip(figure.subplots(1, 2, sharey=True), dataset["component"].values):
        chosen = dataset["cosine"].sel(component=component, processing=processing)
        lines(axis, chosen, "comparison", "layer (the first of the two)")
        axis.axhline(0, color="grey", linewidth=0.8)
        axis.set_title(f"{component} outputs, {processing}")
    figure.axes[0].set_ylabel("cosine")
    figure.axes[1].legend(frameon=False, fontsize="small")
    return figure


def neurons_figure(dataset: xr.Dataset) -> Figure:
    """Shares of prediction and suppression neurons over layers, and all neurons' moments."""
    figure = Figure(figsize=(11, 4.2), layout="constrained")
    shares, moments = figure.subplots(1, 2)
    found = dataset["share"].sel(neuron_class=["prediction", "suppression"])
    for index, name in enumerate(found["neuron_class"].values):
        line = found.sel(neuron_class=name)
        style = {"color": COLOURS[index], "marker": MARKERS[index], "markersize": 4}
        shares.plot(line["layer"], line, label=str(name), **style)
    shares.set_ylabel("share of neurons")
    shares.set_ylim(0)
    whole_numbers(shares, "layer")
    shares.legend(frameon=False)
    attrs = dataset.attrs
    shares.set_title(f"Kurtosis above {attrs['kurtosis_threshold']:g}")
    points = moments.scatter(
        dataset["cosine_skewness"],
        dataset["cosine_kurtosis"],
        c=dataset["layer"].broadcast_like(dataset["cosine_kurtosis"]),
        s=4,
        cmap="viridis",
        rasterized=True,
    )
    figure.colorbar(points, ax=moments, label="layer")
    moments.axhline(attrs["kurtosis_threshold"], color="grey", linewidth=0.8)
    moments.set_yscale("log")
    moments.set_xlabel("skewness of the cosines")
    moments.set_ylabel("kurtosis")
    moments.set_title("Every neuron" + (" (gated: no sign)" if attrs["gated"] else ""))
    moments.grid(alpha=0.3)
    return figure


def wic_figure(dataset: xr.Dataset) -> Figure:
    """Accuracy over depth, a line for each probe, with 95 % bands, and chance."""
    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axis = figure.subplots()
    for index, probe in enumerate(dataset["probe"].values):
        chosen = dataset.sel(probe=probe)
        bounded(axis, chosen["depth"], chosen, "accuracy", index, str(probe))
    axis.axhline(0.5, color="grey", linewidth=0.8)
    axis.set_ylabel("share of test pairs told right")
    axis.set_title("Does the word mean the same in both sentences?")
    axis.legend(frameon=False, fontsize="small")
    whole_numbers(axis, "depth (blocks that have run)")
    return figure


def suffix_figure(dataset: xr.Dataset) -> Figure:
    """Groups of neurons by size beside the model itself; what the first of them do to logits."""
    figure = Figure(figsize=(13, 4.6), layout="constrained")
    groups, singles, effects = figure.subplots(1, 3)
    for index, kind in enumerate(dataset["kind"].values):
        chosen = dataset.sel(kind=kind)
        bounded(groups, chosen["size"], chosen, "accuracy", index, str(kind))
    for reading, style in zip(dataset["reading"].values, ("-", "--", ":"), strict=True):
        level = float(dataset["model_accuracy"].sel(reading=reading))
        groups.axhline(
            level, color="black", linewidth=1, linestyle=style, label=f"model, {reading}"
        )
        bounds = (dataset[f"model_accuracy_{end}"].sel(reading=reading) for end in ("low", "high"))
        groups.axhspan(*map(float, bounds), color="black", alpha=0.06, linewidth=0)
    groups.set_ylabel("share of test windows told right")
    groups.set_title("Groups of the best neurons")
    groups.legend(frameon=False, fontsize="x-small", ncols=2)
    whole_numbers(groups, "neurons in the group")
    shift = dataset["shift"].values
    for index, (name, rows) in enumerate((("raises", shift > 0), ("lowers", shift < 0))):
        bounded(
            singles,
            np.flatnonzero(rows),
            dataset.isel(neuron=rows),
            "single_accuracy",
            index,
            f"{name} the suffix",
            line=False,
        )
    singles.axhline(0.5, color="grey", linewidth=0.8)
    gated = " (gated: no sign)" if dataset.attrs["gated"] else ""
    singles.set_title(f"Single neurons, by effect on the logits{gated}")
    singles.legend(frameon=False, fontsize="small")
    whole_numbers(singles, "neuron")
    first = dataset.isel(neuron=slice(0, EFFECTS))
    for row in range(first.sizes["neuron"]):
        chosen = first.isel(neuron=row)
        # Each neuron on a floor of its own, one above the other.
        floor = EFFECTS - 1 - row
        for index, tokens in enumerate(dataset["tokens"].values):
            line = chosen["effect"].sel(tokens=tokens)
            label = str(tokens) if not row else None
            height = line / float(chosen["effect"].max()) * 0.9 + floor
            effects.step(line["bin"], height, where="mid", color=COLOURS[index], label=label)
        place = f"{int(chosen['layer'])}.{int(chosen['index'])}"
        effects.text(float(dataset["bin"][0]), floor + 0.55, place, fontsize="small")
    effects.set_yticks([])
    effects.set_title("What the first neurons do to logits")
    effects.set_xlabel("W_U · w_out")
    effects.set_ylabel("share of tokens, neuron by neuron")
    effects.legend(title=f"suffix -{dataset.attrs['suffix']}", frameon=False, fontsize="small")
    effects.grid(alpha=0.3)
    return figure


def subjoiner_figure(dataset: xr.Dataset) -> Figure:
    """Every head's score, and where the best heads look from the end of either kind of word."""
    figure = Figure(figsize=(13, 4.4), layout="constrained")
    grid, *panels = figure.subplots(1, 4, width_ratios=(1.4, 1, 1, 1))
    image = heat_map(grid, dataset["score"], "layer", "head")
    figure.colorbar(image, ax=grid, label="weight, pieces less whole words")
    grid.set_title("Held-out words")
    order = np.argsort(-dataset["finding_score"].values, axis=None, kind="stable")
    for axis, place in zip(panels, order, strict=False):
        layer, head = divmod(int(place), dataset.sizes["head"])
        chosen = dataset.isel(layer=layer, head=head)
        for index, kind in enumerate(dataset["input_class"].values):
            line = chosen["attention"].sel(input_class=kind)
            axis.plot(
                line["key"], line, color=COLOURS[index], marker=MARKERS[index], markersize=4,
                label=str(kind),
            )  # fmt: skip
            band = BAND * chosen["attention_standard_error"].sel(input_class=kind).fillna(0)
            axis.fill_between(
                line["key"], line - band, line + band, color=COLOURS[index], alpha=0.25
            )
        low, high = float(chosen["score_low"]), float(chosen["score_high"])
        axis.set_title(f"head {layer}.{head}: {float(chosen['score']):.2f} [{low:.2f}, {high:.2f}]")
        whole_numbers(axis, "token before the last")
    panels[0].set_ylabel("attention from the last token")
    panels[0].legend(frameon=False, fontsize="small")
    return figure


def tasks_figure(dataset: xr.Dataset) -> Figure:
    """Accuracy over layers, a panel a task, with 95 % bands, and the clean model's as a line."""
    names = dataset["task"].values
    figure = Figure(figsize=(4.4 * len(names) + 0.6, 4.2), layout="constrained")
    for axis, task in zip(np.atleast_1d(figure.subplots(1, len(names))), names, strict=True):
        metric = task_metric(dataset, str(task))
        chosen = dataset.sel(task=task, metric=metric)
        for index, name in enumerate(dataset["intervention"].values):
            line = chosen["value"].sel(intervention=name)
            band = BAND * chosen["standard_error"].sel(intervention=name).fillna(0)
            colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
            axis.plot(line["layer"], line, color=colour, marker=marker, markersize=4, label=name)
            axis.fill_between(line["layer"], line - band, line + band, color=colour, alpha=0.2)
        axis.axhline(float(chosen["clean_value"]), color="black", linewidth=1, label="clean")
        axis.set_title(f"{task} [{metric}]")
        whole_numbers(axis, FIRST)
    figure.axes[0].set_ylabel("share answered right")
    figure.axes[0].legend(frameon=False)
    return figure


def any_figure(dataset: xr.Dataset) -> Figure:
    """Whatever has a layer or a depth, sequences, and at most one dimension more, a panel each.

    Raises
    ------
    Refusal
        If there is none.
    """
    shown = []
    for name, values in dataset.data_vars.items():
        over = [dim for dim in ("layer", "depth") if dim in values.dims]
        rest = [str(dim) for dim in values.dims if dim not in (*over, "sequence")]
        if len(over) == 1 and "sequence" in values.dims and len(rest) < 2:
            shown.append((str(name), values, over[0], (*rest, "of")[0]))
    if not shown:
        raise Refusal(f"nothing in the file is drawn; it holds: {', '.join(map(str, dataset))}")
    rows, less = -(-len(shown) // ABREAST), dataset.attrs.get("difference")
    size = (max(7.5, 4.6 * min(len(shown), ABREAST)), 4.2 * rows)
    figure = Figure(figsize=size, layout="constrained")
    grid = figure.subplots(rows, min(len(shown), ABREAST), squeeze=False)
    for axis in grid.flat[len(shown) :]:
        axis.set_axis_off()
    for axis, (name, values, along, names) in zip(grid.flat, shown, strict=False):
        if names not in values.dims:
            values = values.expand_dims({names: [name]})
        lines(axis, values, names, along)
        unit = values.attrs.get("units", "1")
        label = f"Δ {name}" if less else name
        axis.set_ylabel(label if unit == "1" else f"{label} [{unit}]")
        axis.set_title(name if less else values.attrs.get("long_name", name), wrap=True)
        if less:
            axis.axhline(0, color="grey", linewidth=0.8)
        if names != "of":
            axis.legend(frameon=False, fontsize="small")
    return figure


def stages_figure(dataset: xr.Dataset) -> Figure:
    """Standardised signatures over layers as a heat map, with the boundaries of both partitions."""
    names = dataset["signature_long_name"].values
    figure = Figure(figsize=(10, 1.6 + 0.34 * len(names)), layout="constrained")
    axis = figure.subplots()
    values = dataset["signature"].values
    image = axis.imshow(
        values, aspect="auto", cmap="RdBu_r", vmin=-2.5, vmax=2.5, interpolation="nearest"
    )
    axis.set_yticks(range(len(names)), names)
    styles = {"chosen": ("black", "-", 2.2), "four": (COLOURS[2], "--", 1.8)}
    for partition in dataset["partition"].values:
        here = dataset.sel(partition=partition)
        colour, style, width = styles[str(partition)]
        count = int(here["stage"].max()) + 1
        for edge in range(count - 1):
            at, low, high = (
                float(here[f"boundary{end}"].isel(edge=edge)) for end in ("", "_low", "_high")
            )
            label = f"{partition} ({count} segments)" if not edge else None
            axis.axvline(at - 0.5, color=colour, linestyle=style, linewidth=width, label=label)
            axis.axvspan(low - 0.5, high - 0.5, color=colour, alpha=0.12, linewidth=0)
    if axis.get_legend_handles_labels()[0]:
        figure.legend(loc="outside lower center", ncols=2, frameon=False)
    else:
        axis.set_title("no boundaries: the signatures are better described without any")
    whole_numbers(axis, "layer")
    axis.grid(False)
    figure.colorbar(image, ax=axis, label="standard deviations over layers")
    return figure


FIGURES: Mapping[str, Callable[[xr.Dataset], Figure]] = {
    "sweep": sweep_figure,
    "schedules": schedule_figure,
    "pairs": pairs_figure,
    "lens": lens_figure,
    "cka": cka_figure,
    "attention": attention_figure,
    "norms": norms_figure,
    "similarity": similarity_figure,
    "neurons": neurons_figure,
    "wic": wic_figure,
    "suffix": suffix_figure,
    "subjoiner": subjoiner_figure,
    "tasks": tasks_figure,
    "stages": stages_figure,
}
"""The figure of every kind of file."""


def _title(dataset: xr.Dataset) -> str:
    attrs = dataset.attrs
    text = f"model {attrs.get('model', 'unknown')}"
    if attrs.get("measurement") == "tasks":
        return f"{text}, {dataset.sizes['item']:,} items, 95 % bands"
    if "corpus" not in attrs:
        return text
    text += f", text {attrs['corpus']}"
    if "difference" in attrs:
        text += f", {attrs['difference']}"
    if "sequences" not in attrs:
        return f"{text}, 95 % intervals"
    done = int(attrs.get("sequences_done", attrs["sequences"]))
    share, parts = done / attrs["sequences"], []
    if "tokens" in attrs:
        parts.append(f"{round(attrs['tokens'] * share):,} tokens")
    if "document" in dataset.coords:
        documents = np.unique(measured_sequences(dataset)["document"]).size
        parts.append(counted(documents, "document"))
        bare = attrs.get("measurement") == "pairs" or "token" in dataset.dims
        bands = "" if bare or documents == 1 else ", 95 % bands"
    else:
        bands = ""
    unfinished = f" (unfinished: {share:.0%})" if share < 1 else ""
    return f"{text}: {' of '.join(parts)}{bands}{unfinished}"
