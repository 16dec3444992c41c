"""Datasets to text tables."""

from collections.abc import Callable, Iterator, Mapping
from math import floor, inf, isnan, log10

import numpy as np
import xarray as xr

from recipes.terminal import printable
from robustness.errors import Refusal
from robustness.files.metrics import CLEAN_READOUTS, MODAL_SHARE, NONFINITE, READOUTS
from robustness.files.sequences import COUNTED, mean_over_tokens, measured_sequences
from robustness.statistics.uncertainty import bootstrap, standard_error

Section = tuple[str, str, Mapping[str, xr.DataArray]]
"""A heading, the dimension of the rows, and the columns by name.

A column has that dimension and perhaps `sequence`, over which its mean and error are taken."""

FEW = 10
"""Documents below which standard errors, and intervals made of them, are too small."""

EXTREMES = 10
"""Pairs of layers that are shown at either end."""


Spread = Callable[[xr.DataArray, float], str]
"""Writes the mean of values over sequences, and how uncertain it is."""


def table(dataset: xr.Dataset, *, by_bootstrap: bool = False) -> str:
    """Write a dataset as a text table: means over sequences with standard errors.

    By bootstrap, with 95 % intervals instead.

    Raises
    ------
    Refusal
        If it holds nothing that is tabulated.
    """
    kind = dataset.attrs.get("measurement", "")
    planned = dataset.sizes.get("sequence", 0)
    dataset = measured_sequences(dataset)
    sections = list(SECTIONS.get(kind, _any)(dataset))
    if not sections:
        raise Refusal(f"nothing in the file is shown; it holds: {', '.join(map(str, dataset))}")
    spread = _interval if by_bootstrap else _error
    lines = list(_header(dataset, planned, spread))
    for heading, dim, columns in sections:
        lines += ["", *([heading] if heading else []), *_rows(dim, _both(columns), spread)]
    # A name with a line break in it would look like a line of numbers.
    return "\n".join(printable(line.replace("\n", "\\n").replace("\t", "\\t")) for line in lines)


def _both(columns: Mapping[str, xr.DataArray]) -> dict[str, xr.DataArray]:
    """Add beside means over documents of different length those over all of their tokens."""
    found = {}
    for name, values in columns.items():
        found[name] = values
        if values.dtype.kind == "f" and _uneven(values):
            found[f"{name} by token"] = mean_over_tokens(values)
    return found


def _uneven(values: xr.Dataset | xr.DataArray) -> bool:
    """Whether means of sequences are over more tokens of some than of others."""
    return COUNTED in values.coords and np.unique(values[COUNTED]).size > 1


def _sweep(dataset: xr.Dataset) -> Iterator[Section]:
    shares = [MODAL_SHARE.name] if MODAL_SHARE.name in dataset else []
    names = [*(metric.name for metric in READOUTS if metric.name in dataset), *shares]
    if "intervention" not in dataset.dims:
        yield "", "schedule", {name: dataset[name] for name in names}
        return
    for name in dataset["intervention"].values:
        chosen = dataset.sel(intervention=name)
        yield str(name), "layer", {name: chosen[name] for name in names}


def _pairs(dataset: xr.Dataset) -> Iterator[Section]:
    shares = [MODAL_SHARE.name] if MODAL_SHARE.name in dataset else []
    names = [*(metric.name for metric in READOUTS if metric.name in dataset), *shares]
    for intervention in dataset["intervention"].values:
        chosen = dataset.sel(intervention=intervention)
        more = {}
        if intervention == "drop-pair" and "kl" in dataset and "difference" not in dataset.attrs:
            more["kl beyond sum"] = _beyond_sum(chosen["kl"])
        several = "several layers" if str(intervention).endswith("-span") else "two layers"
        flat = chosen.assign(more).stack(pair=("layer", "layer_to"))
        labels = [f"{i},{j}" for i, j in zip(flat["layer"].values, flat["layer_to"].values)]
        schedules = flat["schedule"] if "schedule" in flat.coords else None
        mean = flat[names[0]].mean("sequence", skipna=False)
        fits = mean.notnull() if schedules is None else schedules != ""
        order = np.argsort(mean.values, kind="stable")
        order = order[fits.values[order]]
        alone = (flat["layer"].values == flat["layer_to"].values)[order]
        others = ("layer", "layer_to", "relative_depth", "schedule")
        flat = flat.reset_index("pair").drop_vars(others, errors="ignore")
        flat = flat.assign_coords(pair=labels)
        for what, rows in ((several, order[~alone]), ("one layer alone", order[alone])):
            parts = {f"all {len(rows)} by": rows} if len(rows) else {}
            if len(rows) > 2 * EXTREMES:
                of = f"{EXTREMES} of {len(rows)}, with the"
                parts = {
                    f"{of} lowest": rows[:EXTREMES],
                    f"{of} highest": rows[: -EXTREMES - 1 : -1],
                }
            shown = names if what == "one layer alone" else [names[0], *more, *names[1:]]
            for which, part in parts.items():
                columns = {name: flat[name].isel(pair=part) for name in shown}
                if schedules is not None:
                    columns["schedule"] = flat["pair"].copy(data=schedules.values).isel(pair=part)
                columns = {name: each.rename(pair="layer,to") for name, each in columns.items()}
                yield f"{intervention}, {what}: {which} {names[0]}", "layer,to", columns


def _beyond_sum(kl: xr.DataArray) -> xr.DataArray:
    """Return by how much dropping two layers changes more than dropping each, (…, layer_to)."""
    alone = xr.DataArray(
        np.diagonal(kl.transpose("sequence", "layer", "layer_to"), axis1=1, axis2=2),
        dims=("sequence", "layer"),
        coords={"layer": kl["layer"]},
    )
    return kl - alone - alone.rename(layer="layer_to")


def _lens(dataset: xr.Dataset) -> Iterator[Section]:
    for lens in dataset["lens"].values:
        yield str(lens), "depth", _named(dataset.sel(lens=lens))


def _cka(dataset: xr.Dataset) -> Iterator[Section]:
    if "cka" not in dataset:
        return
    depths = dataset.sizes["depth"]
    for processing in dataset["processing"].values:
        chosen = dataset.sel(processing=processing)
        columns = {}
        for name, to in (
            ("with next", np.minimum(np.arange(depths) + 1, depths - 1)),
            ("with first", np.zeros(depths, int)),
            ("with last", np.full(depths, depths - 1)),
        ):
            there = {"depth_to": xr.DataArray(to, dims="depth")}
            columns[name] = chosen["cka"].isel(there)
            columns[f"{name} se"] = chosen["cka_standard_error"].isel(there)
        yield f"{processing} residual streams", "depth", columns


def _attention(dataset: xr.Dataset) -> Iterator[Section]:
    heads = dataset.mean("head", skipna=False)
    profile = heads["profile"]
    yield (
        "mean over heads",
        "layer",
        {
            "own token": profile.sel(offset=0),
            "previous": profile.sel(offset=1),
            "previous 5": profile.sel(offset=slice(1, 5)).sum("offset", skipna=False),
            "first token": heads["first_token"],
            "entropy": heads["entropy"],
        },
    )


def _norms(dataset: xr.Dataset) -> Iterator[Section]:
    for processing in dataset["processing"].values:
        chosen = dataset.sel(processing=processing)
        for statistic in dataset["statistic"].values:
            here = chosen.sel(statistic=statistic).data_vars.values()
            columns = {
                str(values.name): values
                for values in here
                if "statistic" in dataset[values.name].dims and "layer" in values.dims
            }
            residual = chosen["residual_norm"].sel(statistic=statistic)
            entering = residual.isel(depth=slice(0, -1)).rename(depth="layer")
            columns["residual_norm"] = entering.assign_coords(layer=dataset["layer"])
            yield f"{processing}, {statistic} token", "layer", columns
    turns = dataset["angular_distance"]
    columns = {"block_influence": dataset["block_influence"]}
    columns |= {
        f"angle over {span}": turns.sel(span=span) for span in (1, 2, 4) if span in turns["span"]
    }
    yield "turning of the residual stream", "layer", columns


def _similarity(dataset: xr.Dataset) -> Iterator[Section]:
    for processing in dataset["processing"].values:
        for component in dataset["component"].values:
            chosen = dataset["cosine"].sel(processing=processing, component=component)
            names = dataset["comparison"].values
            columns = {str(name): chosen.sel(comparison=name) for name in names}
            yield f"{component}, {processing}", "layer", columns


def _neurons(dataset: xr.Dataset) -> Iterator[Section]:
    if "share" in dataset:
        names = dataset["neuron_class"].values
        columns = {str(name): dataset["share"].sel(neuron_class=name) for name in names}
        yield "share of neurons", "layer", columns


def _named(dataset: xr.Dataset) -> dict[str, xr.DataArray]:
    return {str(name): values for name, values in dataset.data_vars.items()}


def _wic(dataset: xr.Dataset) -> Iterator[Section]:
    columns: dict[str, xr.DataArray] = {}
    for probe in dataset["probe"].values:
        chosen = dataset.sel(probe=probe)
        columns |= _bounded(str(probe), chosen, "accuracy")
    yield "accuracy on test, with 95 % intervals", "depth", columns


def _suffix(dataset: xr.Dataset) -> Iterator[Section]:
    yield "the model itself", "reading", _bounded("accuracy", dataset, "model_accuracy")
    yield (
        "single neurons",
        "neuron",
        {
            "layer": dataset["layer"],
            "index": dataset["index"],
            "shift": dataset["shift"],
            **_bounded("accuracy", dataset, "single_accuracy"),
        },
    )
    groups: dict[str, xr.DataArray] = {}
    for kind in dataset["kind"].values:
        groups |= _bounded(str(kind), dataset.sel(kind=kind), "accuracy")
    yield "groups of the best neurons, ranked on dev", "size", groups


def _subjoiner(dataset: xr.Dataset) -> Iterator[Section]:
    flat = dataset.stack(place=("layer", "head")).reset_index("place")
    best = flat.isel(place=np.argsort(-flat["finding_score"].values, kind="stable")[:10])
    names = [f"{layer}.{head}" for layer, head in zip(best["layer"].values, best["head"].values)]
    best = best.drop_vars(("layer", "head", "relative_depth")).assign_coords(place=names)
    columns = {
        "found": best["found"],
        "found by": best["finding_score"],
        **_bounded("held out", best, "score"),
        "monotone": best["monotone"],
    }
    shown = {name: values.rename(place="layer.head") for name, values in columns.items()}
    yield "the best heads", "layer.head", shown


def _tasks(dataset: xr.Dataset) -> Iterator[Section]:
    for task in dataset["task"].values:
        for metric in dataset["metric"].values:
            chosen = dataset.sel(task=task, metric=metric)
            clean = float(chosen["clean_value"])
            if isnan(clean):
                continue
            columns: dict[str, xr.DataArray] = {}
            for name in chosen["intervention"].values:
                columns[str(name)] = chosen["value"].sel(intervention=name)
                columns[f"{name} se"] = chosen["standard_error"].sel(intervention=name)
            error = float(chosen["clean_standard_error"])
            yield f"{task}, {metric}: clean {clean:.3f} ±{error:.3f}", "layer", columns


def _bounded(name: str, dataset: xr.Dataset, variable: str) -> dict[str, xr.DataArray]:
    ends = {name: "", f"{name} from": "_low", f"{name} to": "_high"}
    return {heading: dataset[f"{variable}{end}"] for heading, end in ends.items()}


def _any(dataset: xr.Dataset) -> Iterator[Section]:
    for dim in ("layer", "depth"):
        columns = {
            name: values
            for name, values in _named(dataset).items()
            if set(values.dims) == {dim, "sequence"}
        }
        if columns:
            yield "", dim, columns


def _stages(dataset: xr.Dataset) -> Iterator[Section]:
    segments = xr.DataArray(dataset["segment"].values, dims="segment")
    chosen = int(dataset.attrs["criterion_segments"])
    for partition in dataset["partition"].values:
        here = dataset.sel(partition=partition)
        count = int(here["stage"].max()) + 1
        firsts = xr.DataArray(
            [int((here["stage"] < number).sum()) for number in range(count)],
            dims="segment",
            coords={"segment": segments[:count]},
        )
        columns = {"first layer": firsts}
        for name in ("low", "high"):
            ends = here[f"boundary_{name}"].rename(edge="segment")
            columns[name] = ends.reindex(segment=firsts["segment"].values)
        means = here["mean"].isel(segment=slice(0, count))
        columns |= {str(n): means.sel(signature_name=n) for n in dataset["signature_name"].values}
        heading = f"{partition}: {count} segments"
        if partition == "chosen":
            heading = f"chosen by the criterion: {count} segment{'s' if count > 1 else ''}"
        if chosen == 1 and partition == "chosen":
            heading += ", that is no boundary"
        yield heading, "segment", columns


def _compare(dataset: xr.Dataset) -> Iterator[Section]:
    (_, *models), *rows = comparison_rows(dataset)
    labels = [label for label, *_ in rows]
    columns = {
        name: xr.DataArray(
            [row[place] for row in rows], dims="quantity", coords={"quantity": labels}
        )
        for place, name in enumerate(models, 1)
    }
    yield "", "quantity", columns
    claims = dataset["verdict"]
    columns = {str(name): claims.sel(model=name).astype(str) for name in dataset["model"].values}
    yield "claims about one model", "claim", columns
    across = dataset["verdict_across"].astype(str)
    yield "claims about several", "claim_across", {"verdict": across}


def comparison_rows(dataset: xr.Dataset) -> list[list[str]]:
    """Lay out models side by side as rows of text, the first of them the headings."""
    models = dataset["model"].values
    rows = [["", *map(str, models)]]
    for name in ("layers", "corpus", "context", "tokens", "dtype"):
        rows.append([name, *map(str, dataset[name].values)])
    for quantity in dataset["quantity"].values:
        cells = []
        for model in models:
            here = dataset.sel(quantity=quantity, model=model)
            value, low, high = (float(here[name]) for name in ("value", "low", "high"))
            interval = "" if low == high else f" [{low:.3g}, {high:.3g}]"
            cells.append("-" if isnan(value) else f"{value:.3g}{interval}")
        rows.append([str(quantity), *cells])
    return rows


def _claims(dataset: xr.Dataset) -> Iterator[Section]:
    yield (
        "",
        "claim",
        {
            "verdict": dataset["verdict"].astype(str),
            "what the paper says": dataset["text"].astype(str),
            "why it cannot be judged": dataset["reason"].astype(str),
        },
    )
    numbers = dataset.set_index(check="check_text").rename(check="number")
    yield (
        "the numbers behind them",
        "number",
        {
            "claim": numbers["check_claim"].astype(str),
            **{name: numbers[name] for name in ("value", "low", "high", "least", "most")},
        },
    )


SECTIONS: dict[str, Callable[[xr.Dataset], Iterator[Section]]] = {
    "sweep": _sweep,
    "schedules": _sweep,
    "pairs": _pairs,
    "lens": _lens,
    "cka": _cka,
    "attention": _attention,
    "norms": _norms,
    "similarity": _similarity,
    "neurons": _neurons,
    "wic": _wic,
    "suffix": _suffix,
    "subjoiner": _subjoiner,
    "tasks": _tasks,
    "stages": _stages,
    "claims": _claims,
    "compare": _compare,
}
"""The tables of every kind of file; for others, whatever has layers or depths and sequences."""


def _header(dataset: xr.Dataset, planned: int, spread: Spread) -> Iterator[str]:
    attrs = dataset.attrs
    dtype = f", {attrs['dtype']}" if "dtype" in attrs else ""
    text = f" on {attrs['corpus']}" if "corpus" in attrs else ""
    yield f"{attrs['model']} ({attrs['architecture']}{dtype}){text}"
    if "difference" in attrs:
        yield f"{attrs['difference']}: paired differences"
    if "batch_sequences" in attrs:
        groups = dataset.sizes["batch"]
        yield (
            f"{groups} batches of {attrs['batch_sequences']} sequences, context {attrs['context']}"
        )
        if groups < 3:
            yield "too few batches for a standard error: read more --tokens"
    if attrs.get("gated"):
        yield "gated MLPs: the sign of the skew does not tell prediction from suppression"
    if "sequence" not in dataset.dims:
        return
    sequences, documents = dataset.sizes["sequence"], np.unique(dataset["document"]).size
    text = f"{counted(sequences, 'sequence')} of {counted(documents, 'document')}"
    yield f"{text}, context {attrs['context']}"
    if sequences < planned:
        yield f"unfinished: {sequences} of {planned} sequences are measured"
    parts = [
        f"{metric.name.removeprefix('clean_')} {_cell(dataset[metric.name], spread)}"
        for metric in CLEAN_READOUTS
        if metric.name in dataset
    ]
    if parts:
        yield f"clean: {', '.join(parts)}"
    if parts and _uneven(dataset):
        there = [metric.name for metric in CLEAN_READOUTS if metric.name in dataset]
        means = {name: float(mean_over_tokens(dataset[name])) for name in there}
        told = (f"{name.removeprefix('clean_')} {mean:.4f}" for name, mean in means.items())
        yield f"clean, by token: {', '.join(told)}"
    bad = int(dataset[NONFINITE.name].sum()) if NONFINITE.name in dataset else 0
    if bad:
        yield f"{bad} predictions had NaN or infinite logits: what they enter is shown as -"
    what = "± standard error clustered by document"
    if spread is _interval:
        what = "[95 % bootstrap interval over documents]"
    yield f"mean {what}; KL, loss and entropy in nats"
    if _uneven(dataset):
        yield "every document weighs the same in a mean; by token, every token of all of them does"
    if 1 < documents < FEW:
        yield f"of fewer than {FEW} documents, how uncertain a mean is can hardly be told"


def counted(number: int, what: str) -> str:
    """Write how many there are of something."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"


def _rows(dim: str, columns: Mapping[str, xr.DataArray], spread: Spread) -> Iterator[str]:
    labels = [str(label) for label in next(iter(columns.values()))[dim].values]
    shown = [[dim, *labels]]
    for name, values in columns.items():
        cells = [_cell(values.isel({dim: index}), spread) for index in range(len(labels))]
        shown.append([name, *cells])
    widths = [max(map(len, column)) for column in shown]
    texts = [False, *(values.dtype.kind in "OUS" for values in columns.values())]
    for row in zip(*shown, strict=True):
        padded = (
            cell.ljust(width) if text else cell.rjust(width)
            for cell, width, text in zip(row, widths, texts, strict=True)
        )
        yield "  ".join(padded).rstrip()


def _cell(values: xr.DataArray, spread: Spread) -> str:
    if values.dtype.kind in "OUS":
        return str(values.values)
    if values.dtype.kind in "iu" and not values.dims:
        return str(int(values))
    if "sequence" not in values.dims:
        return "-" if isnan(values) else f"{float(values):.{_decimals(float(values))}f}"
    mean = float(values.mean("sequence", skipna=False))
    return "-" if isnan(mean) else spread(values, mean)


def _error(values: xr.DataArray, mean: float) -> str:
    error = float(standard_error(values))
    if isnan(error):
        return f"{mean:.{_decimals(mean)}f}"
    places = _decimals(mean, error)
    return f"{mean:.{places}f} ±{error:.{places}f}"


def _interval(values: xr.DataArray, mean: float) -> str:
    low, high = map(float, bootstrap(values))
    if isnan(low):
        return f"{mean:.{_decimals(mean)}f}"
    places = _decimals(mean, low, high)
    return f"{mean:.{places}f} [{low:.{places}f}, {high:.{places}f}]"


def _decimals(*numbers: float) -> int:
    """Return how many decimals show at least two digits of the largest of some numbers."""
    largest = max(map(abs, numbers))
    return 3 if largest in (0, inf) else min(9, max(3, 1 - floor(log10(largest))))
