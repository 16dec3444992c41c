"""The paper's figures, for one model or several over relative depth; drawn from files alone."""

from collections.abc import Callable, Mapping, Sequence
from math import ceil, log
from typing import Any

import numpy as np
import xarray as xr
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from recipes.evidence.curves import FEWEST, interior, position, with_interior
from recipes.evidence.files import Absent, Files, best_head, task_metric
from recipes.experiments.drop_and_swap import interior_agreement
from recipes.experiments.hypothesis import bounds
from recipes.figures import diagrams
from recipes.recipe import (
    ATTENTION,
    CKA,
    LENS,
    NEURONS,
    NORMS,
    REPEAT,
    SIMILARITY,
    STAGES,
    SUBJOINER,
    SUFFIX,
    SWEEP,
    TASKS,
    TASKS_REPEAT,
    WIC,
    Picture,
)
from recipes.views.drawing import BAND, COLOURS, MARKERS, bounded, heat_map
from robustness.statistics.uncertainty import interval, standard_error

PANEL = (4.6, 3.5)
"""Width and height of a panel in inches."""

COLUMNS = 4
"""The most panels beside one another, where every model has one."""

Models = Sequence[Files]


def draw(picture: Picture, models: Models) -> Figure:
    """Draw a figure from the files of the models that have what it takes.

    Raises
    ------
    Absent
        If none of them has: the reason is that of the first.
    """
    options = dict(picture.options)
    if not picture.sources:
        return DIAGRAMS[picture.draw](**options)
    able = [files for files in models if files.has(*picture.sources)]
    if not able:
        missing = (models[0].missing(source) for source in picture.sources)
        raise Absent(next(reason for reason in missing if reason))
    if not picture.fewest <= len(able) <= picture.most:
        raise Absent(f"it is drawn of {picture.fewest} to {picture.most} models")
    try:
        figure = FIGURES[picture.draw](able, **options)
    except KeyError as error:  # a sweep without some readout
        reason = str(error.args[0]).partition(". ")[0]
        raise Absent(f"a file that it takes is not whole: {reason}") from error
    if len(able) == 1 and not any(
        axis.get_title().startswith(_name(able[0])) for axis in figure.axes
    ):
        figure.suptitle(_name(able[0]), fontsize="medium")
    return figure


def interventions(models: Models) -> Figure:
    """KL and agreement, a row each for swap and drop."""
    figure, axes = _panels(2, 2)
    for row, name in zip(axes, ("swap", "drop"), strict=True):
        for axis, metric in zip(row, ("kl", "agreement"), strict=True):
            for index, files in enumerate(models):
                _curve(axis, files[SWEEP][metric].sel(intervention=name), index, _name(files))
            _readout(axis, metric)
            axis.set_title(name)
    return _legend(figure, models)


def agreement_by_layers(models: Models) -> Figure:
    """Interior agreement of every model against its number of layers."""
    figure, axes = _panels(1, 1, (6, 3.8))
    axis = axes[0, 0]
    able = with_interior(models)
    for index, name in enumerate(("drop", "swap")):
        found = [interior_agreement(name, files) for files in able]
        middle = np.array([float(each.isel(draw=0)) for each in found])
        low, high = np.array([interval(each) for each in found]).T
        axis.errorbar(
            [files.layers for files in able], middle, np.stack([middle - low, high - middle]),
            color=COLOURS[index], marker=MARKERS[index], linestyle="", label=name,
        )  # fmt: skip
    for files in able:
        height = float(interior_agreement("swap", files).isel(draw=0))
        axis.annotate(
            _name(files),
            (files.layers, height),
            (5, 5),
            textcoords="offset points",
            fontsize="small",
        )
    axis.margins(x=0.3)
    axis.set_xlabel("layers")
    axis.set_xticks(sorted({files.layers for files in able}))
    axis.set_ylabel("interior agreement with the clean model")
    axis.legend(frameon=False)
    axis.grid(alpha=0.3)
    return figure


def changes(models: Models) -> Figure:
    """KL, agreement and change in entropy, swap left and drop right, and both KLs zoomed."""
    figure, axes = _panels(4, 2, (PANEL[0], 2.8))
    for column, name in enumerate(("swap", "drop")):
        for index, files in enumerate(models):
            data = files[SWEEP].sel(intervention=name)
            gained = (data["entropy"] - data["clean_entropy"]) / log(2)
            shown = (data["kl"], data["agreement"], gained)
            for axis, values in zip(axes[:3, column], shown, strict=True):
                _curve(axis, values, index, _name(files))
        _readout(axes[0, column], "kl")
        _readout(axes[1, column], "agreement")
        axes[0, column].set_title(name)
        axes[2, column].axhline(0, color="grey", linewidth=0.8)
        axes[2, column].set_ylabel("change in entropy [bit]")
    zoom, less = axes[3]
    for index, files in enumerate(models):
        if files.layers < FEWEST:
            continue
        kl = files[SWEEP]["kl"].isel(layer=interior(files))
        for name, style in (("drop", "-"), ("swap", "--")):
            label = f"{_name(files)}, {name}"
            _curve(zoom, kl.sel(intervention=name), index, label, linestyle=style)
        difference = kl.sel(intervention="drop") - kl.sel(intervention="swap")
        _curve(less, difference.rename("difference"), index, _name(files))
    zoom.set_ylabel("KL [nat]")
    zoom.set_title("interior layers: drop —, swap - -", fontsize="medium")
    less.axhline(0, color="grey", linewidth=0.8)
    less.set_ylabel("KL, drop less swap [nat]")
    less.set_title("above 0: swapping is milder", fontsize="medium")
    return _legend(figure, models)


def signatures(models: Models) -> Figure:
    """KL dropped, local attention and neurons, a column a model, with the four stages' bounds."""
    figure = Figure(figsize=(max(PANEL[0], 3.4 * len(models)), 7), layout="constrained")
    axes = figure.subplots(3, len(models), sharex=True, squeeze=False)
    for column, files in enumerate(models):
        kl, local, neurons = axes[:, column]
        kl.set_title(_name(files), fontsize="medium")
        _curve(kl, files[SWEEP]["kl"].sel(intervention="drop"), 0, "KL, block dropped")
        _logarithmic(kl)
        previous = files[ATTENTION]["previous"].sel(window=5).mean("head")
        _curve(local, previous, 3, "attention to the previous 5")
        local.set_ylim(0)
        for index, name in ((2, "prediction"), (1, "suppression")):
            _curve(neurons, files[NEURONS]["share"].sel(neuron_class=name), index, name)
        neurons.set_ylim(0, _top(files))
        neurons.legend(frameon=False, fontsize="small")
        neurons.set_xlabel("relative depth")
        if files.has(STAGES):
            try:
                edges = bounds(files)[1:-1]
            except Absent:
                edges = []
            for axis in axes[:, column]:
                for edge in edges:
                    place = (edge - 0.5) / max(1, files.layers - 1)
                    axis.axvline(place, color="grey", linestyle="--", linewidth=1)
    labels = ("KL, block dropped [nat]", "attention to the previous 5", "share of neurons")
    for axis, label in zip(axes[:, 0], labels, strict=True):
        axis.set_ylabel(label)
    return figure


def alignment(models: Models) -> Figure:
    """CKA between all depths, a heat map a model."""
    figure, axes = _panels_each(models, (4.4, 3.8))
    for axis, files in zip(axes, models, strict=True):
        image = heat_map(axis, files[CKA]["cka"].isel(processing=0), "depth", "depth_to", 0, 1)
        axis.set_xlabel("depth")
        axis.set_aspect("equal")
        figure.colorbar(image, ax=axis, label="CKA")
    return figure


def windows(models: Models) -> Figure:
    """Attention to the tokens before, by how many of them, a panel a model."""
    figure, axes = _panels_each(models)
    for axis, files in zip(axes, models, strict=True):
        previous = files[ATTENTION]["previous"].mean("head")
        chosen = [window for window in (1, 2, 4, 8, 16) if window in previous["window"]]
        for index, window in enumerate(chosen):
            _curve(axis, previous.sel(window=window), index, str(window))
        axis.set_ylim(0)
        axis.set_ylabel("attention weight")
    axes[0].legend(title="tokens before", frameon=False, fontsize="small")
    return figure


def local_attention(models: Models) -> Figure:
    """Mean attention weight on one of the five tokens before."""
    return _lines(
        models,
        lambda files: files[ATTENTION]["previous"].sel(window=5).mean("head") / 5,
        "attention to one of the previous 5",
        low=0,
    )


def subjoiner(models: Models) -> Figure:
    """Where the best head looks from the end of a word, a panel a model."""
    figure, axes = _panels_each(models)
    for axis, files in zip(axes, models, strict=True):
        data = files[SUBJOINER]
        layer, head = best_head(data)
        best = data.isel(layer=layer, head=head)
        pieces = data.attrs["pieces"]
        names = {"pieces": f"a word in {pieces} pieces", "whole": "a whole word"}
        for index, kind in enumerate(best["input_class"].values):
            line = best["attention"].sel(input_class=kind)
            band = BAND * best["attention_standard_error"].sel(input_class=kind).fillna(0)
            _band(axis, line["key"], line, band, index, names[str(kind)])
        axis.set_title(f"{_name(files)}, head {layer}.{head}", fontsize="medium")
        axis.set_xlabel("token before the last")
        axis.set_ylabel("attention from the last token")
    axes[0].legend(frameon=False, fontsize="small")
    return figure


def norm_ratio(models: Models) -> Figure:
    """Norm of attention outputs over that of MLP outputs."""
    figure = _lines(
        models,
        lambda files: (
            files[NORMS]["attention_mlp_ratio"].isel(processing=-1).sel(statistic="median")
        ),
        "attention over MLP, median over tokens",
        low=0,
    )
    figure.axes[0].axhline(1, color="grey", linewidth=0.8)
    return figure


def word_in_context(models: Models) -> Figure:
    """Accuracy of the pair probe over depth."""
    figure, axes = _panels(1, 1)
    axis = axes[0, 0]
    for index, files in enumerate(models):
        data = files[WIC].sel(probe="pair")
        bounded(axis, position(data["accuracy"]), data, "accuracy", index, _name(files))
    axis.axhline(0.5, color="grey", linewidth=0.8)
    axis.set_xlabel("relative depth")
    axis.set_ylabel("share of test pairs told right")
    return _legend(figure, models)


def lens_entropy(models: Models) -> Figure:
    """Entropy of both lenses in bits."""
    figure, axes = _panels(1, 1, (6.2, 4.2))
    axis = axes[0, 0]
    for index, files in enumerate(models):
        for lens, style in (("recomputed", "-"), ("frozen", "--")):
            values = files[LENS]["entropy"].sel(lens=lens) / log(2)
            label = f"{_name(files)}, {lens}" if len(models) > 1 else lens
            _curve(axis, values, index, label, linestyle=style)
    axis.set_ylabel("entropy of the lens [bit]")
    axis.set_ylim(0)
    handles, labels = axis.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def lens_and_neurons(models: Models) -> Figure:
    """KL of the lens from the final prediction, and shares of neurons, a panel a model."""
    figure, axes = _panels_each(models, (5.2, 3.6))
    for axis, files in zip(axes, models, strict=True):
        values = files[LENS]["kl"].sel(lens="recomputed")
        _curve(axis, values, 0, "KL of the lens")
        axis.set_ylabel("KL(final ‖ lens) [nat]")
        axis.set_ylim(0)
        other = axis.twinx()
        data = files[NEURONS]
        for index, name in ((2, "prediction"), (1, "suppression")):
            _curve(other, data["share"].sel(neuron_class=name), index, f"{name} neurons")
        other.set_ylim(0, _top(files))
        other.set_ylabel("share of neurons" + (" (gated)" if data.attrs["gated"] else ""))
        handles = [*axis.get_legend_handles_labels()[0], *other.get_legend_handles_labels()[0]]
        if axis is axes[0]:
            axis.legend(handles=handles, frameon=False, fontsize="small")
    return figure


def suffix_probes(models: Models) -> Figure:
    """Single neurons, groups and the model itself; effects of the strongest, a row a model."""
    figure, axes = _panels(len(models), 2, (6, 3.8))
    for row, files in zip(axes, models, strict=True):
        data = files[SUFFIX]
        rank = np.argsort(-data["single_accuracy"].values)
        ordered = data.isel(neuron=rank)
        rises = ordered["shift"].values > 0
        for index, (label, rows) in enumerate((("raises", rises), ("lowers", ~rises))):
            places = np.flatnonzero(rows) + 1
            chosen = ordered.isel(neuron=rows)
            if places.size:
                bounded(
                    row[0], places, chosen, "single_accuracy", index + 1,
                    f"single neuron, {label} the suffix", line=False,
                )  # fmt: skip
        group = data.sel(kind="mixed")
        bounded(row[0], group["size"], group, "accuracy", 0, "the best together")
        model = float(data["model_accuracy"].sel(reading="hard"))
        row[0].axhline(model, color=COLOURS[1], linestyle=":", label="the model's top-1")
        row[0].axhline(0.5, color="grey", linewidth=0.8)
        row[0].set_xlabel("neurons, by accuracy; size of the group")
        row[0].set_ylabel("share of windows told right")
        row[0].set_title(_name(files), fontsize="medium")
        strongest = [np.flatnonzero(data["shift"].values * sign > 0)[:1] for sign in (1, -1)]
        _effects(row[1], data.isel(neuron=np.concatenate(strongest)))
    axes[0, 0].legend(frameon=False, fontsize="small")
    return figure


def effects(models: Models) -> Figure:
    """What every neuron does to the logits of tokens with the suffix and of others."""
    data = models[0][SUFFIX]
    columns = 8
    rows = ceil(data.sizes["neuron"] / columns)
    figure = Figure(figsize=(1.6 * columns, 1.25 * rows + 0.5), layout="constrained")
    axes = list(figure.subplots(rows, columns, squeeze=False).flat)
    for axis in axes:
        axis.set_axis_off()
    for at, axis in zip(range(data.sizes["neuron"]), axes, strict=False):
        neuron = data.isel(neuron=at)
        for index, tokens in enumerate(neuron["tokens"].values):
            line = neuron["effect"].sel(tokens=tokens)
            label = f"-{data.attrs['suffix']}" if tokens == "with" else "other tokens"
            axis.fill_between(
                line["bin"], line, step="mid", alpha=0.55, color=COLOURS[index], linewidth=0,
                label=label,
            )  # fmt: skip
        sign = "+" if float(neuron["shift"]) > 0 else "-"
        axis.set_title(f"{int(neuron['layer'])}.{int(neuron['index'])} {sign}", fontsize="small")
    handles, labels = axes[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=2, frameon=False)
    return figure


def mlp_norm(models: Models) -> Figure:
    """Mean norm of what the MLP writes."""
    return _lines(
        models,
        lambda files: files[NORMS]["mlp_norm"].isel(processing=-1).sel(statistic="mean"),
        "norm of MLP output, mean over tokens",
        low=0,
    )


def repetition(models: Models, span: int) -> Figure:
    """Entropy in bits when each block of a span is executed twice."""
    figure, axes = _panels(1, 1)
    axis = axes[0, 0]
    for index, files in enumerate(_with_layers(models, span)):
        data = files[REPEAT]
        values = data["entropy"].sel(intervention=f"repeat-{span}") / log(2)
        _curve(axis, values, index, _name(files))
        clean = float(data["clean_entropy"].mean()) / log(2)
        axis.axhline(clean, color=COLOURS[index % len(COLOURS)], linestyle=":", linewidth=1.2)
    axis.set_xlabel("relative depth where the span starts")
    axis.set_ylabel("entropy [bit]")
    return _legend(figure, models)


def tasks(models: Models, intervention: str) -> Figure:
    """Accuracy on tasks under an intervention, a panel a task."""
    names = list(dict.fromkeys(name for files in models for name in files[TASKS]["task"].values))
    figure, axes = _panels(1, len(names))
    for axis, name in zip(axes[0], names, strict=True):
        for index, files in enumerate(models):
            _task(axis, files[TASKS], str(name), intervention, index, _name(files))
    return _legend(figure, models)


def repeated_tasks(models: Models) -> Figure:
    """HellaSwag when each of five blocks is executed twice."""
    figure, axes = _panels(1, 1)
    for index, files in enumerate(_with_layers(models, 5)):
        _task(axes[0, 0], files[TASKS_REPEAT], "hellaswag", "repeat-5", index, _name(files))
    axes[0, 0].set_xlabel("relative depth where the span starts")
    return _legend(figure, models)


def similarity(models: Models) -> Figure:
    """Cosines of what sublayers write under swap, a row a model."""
    figure, axes = _panels(len(models), 2, (5.4, 3.6))
    colours = {"index_early": 2, "index_late": 1, "adjacent": 3, "self_first": 0, "self_second": 5}
    for row, files in zip(axes, models, strict=True):
        data = files[SIMILARITY]["cosine"].isel(processing=-1)
        for axis, component in zip(row, ("attention", "mlp"), strict=True):
            for name, colour in colours.items():
                values = data.sel(component=component, comparison=name)
                _curve(axis, values, colour, name.replace("_", ", "))
            axis.axhline(0, color="grey", linewidth=0.8)
            label = "MLP" if component == "mlp" else component
            axis.set_title(f"{_name(files)}, {label}", fontsize="medium")
            axis.set_ylabel("cosine")
    handles, labels = axes[0, 0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, frameon=False)
    return figure


FIGURES: Mapping[str, Callable[..., Figure]] = {
    function.__name__: function
    for function in (
        interventions,
        agreement_by_layers,
        changes,
        signatures,
        alignment,
        windows,
        local_attention,
        subjoiner,
        norm_ratio,
        word_in_context,
        lens_entropy,
        lens_and_neurons,
        suffix_probes,
        effects,
        mlp_norm,
        repetition,
        tasks,
        repeated_tasks,
        similarity,
    )
}
"""What draws a picture from files."""

DIAGRAMS: Mapping[str, Callable[[], Figure]] = {
    "schedules": diagrams.schedules,
    "comparisons": diagrams.comparisons,
}
"""What draws one from schedules."""


def _panels(rows: int, columns: int, size: tuple[float, float] = PANEL) -> tuple[Figure, Any]:
    figure = Figure(figsize=(size[0] * columns, size[1] * rows), layout="constrained")
    return figure, figure.subplots(rows, columns, squeeze=False)


def _panels_each(models: Models, size: tuple[float, float] = PANEL) -> tuple[Figure, list[Axes]]:
    """Return a figure with a panel for every model, named."""
    columns = min(COLUMNS, len(models))
    figure, axes = _panels(ceil(len(models) / columns), columns, size)
    for axis in axes.flat[len(models) :]:
        axis.set_axis_off()
    chosen = list(axes.flat[: len(models)])
    if len(models) > 1:
        for axis, files in zip(chosen, models, strict=True):
            axis.set_title(_name(files), fontsize="medium")
    return figure, chosen


def _lines(
    models: Models, read: Callable[[Files], xr.DataArray], label: str, low: float | None = None
) -> Figure:
    """One panel with a line for every model."""
    figure, axes = _panels(1, 1, (5.6, 3.8))
    for index, files in enumerate(models):
        _curve(axes[0, 0], read(files), index, _name(files))
    axes[0, 0].set_ylim(low)
    axes[0, 0].set_ylabel(label)
    return _legend(figure, models)


def _curve(axis: Axes, values: xr.DataArray, index: int, label: str, **style: Any) -> None:
    """Draw a curve over relative depth, with a 95 % band where there are sequences."""
    if "sequence" in values.dims:
        mean, error = values.mean("sequence", skipna=False), standard_error(values)
        _band(axis, position(values), mean, BAND * error.fillna(0), index, label, **style)
    else:
        _band(axis, position(values), values, None, index, label, **style)
    axis.set_xlabel("relative depth")


def _band(
    axis: Axes, x: Any, line: xr.DataArray, band: Any, index: int, label: str, **style: Any
) -> None:
    colour, marker = COLOURS[index % len(COLOURS)], MARKERS[index % len(MARKERS)]
    axis.plot(x, line, color=colour, marker=marker, markersize=3, label=label, **style)
    if band is not None:
        lower = line - band
        if line.name == "kl":
            lower = lower.clip(min=line / 10)
        axis.fill_between(x, lower, line + band, color=colour, alpha=0.2, linewidth=0)
    axis.grid(alpha=0.3)


def _logarithmic(axis: Axes) -> None:
    """Make an axis logarithmic, if there is anything above 0 on it."""
    if any(np.any(np.asarray(line.get_ydata(), float) > 0) for line in axis.lines):
        axis.set_yscale("log")


def _readout(axis: Axes, metric: str) -> None:
    if metric == "kl":
        _logarithmic(axis)
        axis.set_ylabel("KL(clean ‖ intervened) [nat]")
    else:
        axis.set_ylim(0, 1)
        axis.set_ylabel("share of tokens with the clean top-1")


def _task(
    axis: Axes, dataset: xr.Dataset, name: str, intervention: str, index: int, label: str
) -> None:
    """Draw a task's accuracy under an intervention, by the metric that it is reported in."""
    if name not in dataset["task"]:
        return
    metric = task_metric(dataset, name)
    chosen = dataset.sel(task=name, metric=metric)
    here = chosen.sel(intervention=intervention)
    band = BAND * here["standard_error"].fillna(0)
    _band(axis, position(here["value"]), here["value"], band, index, label)
    clean = float(chosen["clean_value"])
    axis.axhline(clean, color=COLOURS[index % len(COLOURS)], linestyle=":", linewidth=1.2)
    axis.set_title(f"{name} [{metric}]", fontsize="medium")
    axis.set_xlabel("relative depth")
    axis.set_ylabel("share answered right")


def _effects(axis: Axes, data: xr.Dataset) -> None:
    """Draw effects on logits, a floor for each neuron."""
    for floor in range(data.sizes["neuron"]):
        neuron = data.isel(neuron=floor)
        for index, tokens in enumerate(data["tokens"].values):
            line = neuron["effect"].sel(tokens=tokens)
            height = line / float(neuron["effect"].max()) * 0.9 + floor
            label = f"-{data.attrs['suffix']}" if tokens == "with" else "other tokens"
            axis.fill_between(
                line["bin"], floor, height, step="mid", color=COLOURS[index], alpha=0.55,
                linewidth=0, label=None if floor else label,
            )  # fmt: skip
        kind = "raises" if float(neuron["shift"]) > 0 else "lowers"
        name = f"{int(neuron['layer'])}.{int(neuron['index'])} {kind}"
        axis.text(float(data["bin"][0]), floor + 0.7, name, fontsize="small")
    axis.set_yticks([])
    axis.set_xlabel("effect on logits")
    axis.legend(frameon=False, fontsize="small", loc="upper right")


def _top(files: Files) -> float:
    """Upper end of an axis for shares of neurons, also where there are none."""
    shares = files[NEURONS]["share"].sel(neuron_class=["prediction", "suppression"])
    return max(0.01, 1.1 * float(shares.max()))


def _with_layers(models: Models, span: int) -> Models:
    """Return the models that have so many layers."""
    able = [files for files in models if files.layers >= span]
    if not able:
        raise Absent(f"{models[0].layers} layers have no span of {span} blocks")
    return able


def _name(files: Files) -> str:
    """What a model is called in a figure, where a dollar sign would begin a formula."""
    return files.label.replace("$", r"\$")


def _legend(figure: Figure, models: Models) -> Figure:
    """Name the models below the panels, where there are several."""
    if len(models) > 1:
        handles, labels = figure.axes[0].get_legend_handles_labels()
        figure.legend(
            handles, labels, loc="outside lower center", ncols=min(4, len(labels)), frameon=False
        )
    return figure
