"""Notes above the tables of a file, and the title of its figure: model, text, uncertainty."""

from collections.abc import Iterator

import numpy as np
import xarray as xr

from recipes.views.readouts import is_difference
from recipes.views.sections import is_uneven
from robustness.files.kinds.searches import HELD_OUT, SEARCHED
from robustness.files.metrics import CLEAN_READOUTS, NONFINITE
from robustness.files.precision_floor import (
    FLOOR_ERROR,
    FLOOR_FROM,
    describe_near,
    floor_of,
    remedy,
)
from robustness.files.sequences import mean_over_tokens, measured_sequences
from robustness.statistics.bootstrap_intervals import bootstrap
from robustness.statistics.uncertainty import standard_error

SEARCH = "search"
"""Kind of the files whose candidates are measured on as many sequences as it takes."""

FEW_DOCUMENTS = 10
"""Number of documents below which a note calls intervals unreliable."""


def notes(dataset: xr.Dataset, planned: int, *, by_bootstrap: bool) -> Iterator[str]:
    """Yield sentences on model and text, on how means are taken, and on doubts about them.

    Parameters
    ----------
    dataset : Dataset
        Dataset of the sequences that are measured.
    planned : int
        Number of sequences of the whole run.
    by_bootstrap : bool
        Whether means have bootstrap intervals instead of standard errors.
    """
    attrs = dataset.attrs
    dtype = f", {attrs['dtype']}" if "dtype" in attrs else ""
    text = f" on {attrs['corpus']}" if "corpus" in attrs else ""
    yield f"{attrs['model']} ({attrs['architecture']}{dtype}){text}"
    if is_difference(dataset):
        yield f"{attrs['difference']}: paired differences"
    if "batch_sequences" in attrs:
        yield from _notes_on_batches(dataset)
    if attrs.get("gated"):
        yield "gated MLPs: the sign of the skew does not tell prediction from suppression"
    if "sequence" in dataset.dims:
        yield from _notes_on_sequences(dataset, planned, by_bootstrap=by_bootstrap)


def _notes_on_batches(dataset: xr.Dataset) -> Iterator[str]:
    batches, attrs = dataset.sizes["batch"], dataset.attrs
    size = attrs["batch_sequences"]
    yield f"{batches} batches of {size} sequences, context {attrs['context']}"
    if batches < 3:
        yield "too few batches for a standard error: use more --tokens"


def _notes_on_sequences(dataset: xr.Dataset, planned: int, *, by_bootstrap: bool) -> Iterator[str]:
    sequences, documents = dataset.sizes["sequence"], np.unique(dataset["document"]).size
    text = f"{counted(sequences, 'sequence')} of {counted(documents, 'document')}"
    # A file of one's own may be about texts of any length.
    yield f"{text}, context {dataset.attrs['context']}" if "context" in dataset.attrs else text
    searches = dataset.attrs.get("measurement") == SEARCH
    if searches:
        yield from _notes_on_search(dataset)
    if sequences < planned and not searches:
        yield f"unfinished: {sequences} of {planned} sequences are measured"
    yield from _notes_on_clean(dataset, by_bootstrap=by_bootstrap)
    bad = int(dataset[NONFINITE.name].sum()) if NONFINITE.name in dataset else 0
    if bad:
        yield f"{bad} predictions had NaN or infinite logits; values with any of them are -"
    yield from _notes_on_floor(dataset)
    spread = "± standard error clustered by document"
    if by_bootstrap:
        spread = "[95 % bootstrap interval over documents]"
    elif searches:
        spread = "[95 % interval clustered by document]"
    yield f"mean {spread}; KL, loss and entropy in nats"
    if is_uneven(dataset):
        yield "a mean weighs every document the same; a mean by token weighs every token the same"
    judged, of = documents, "documents"
    # The numbers of what a search has chosen are of the held-out documents alone.
    if searches and "chosen" in dataset and _documents(dataset, HELD_OUT):
        judged, of = _documents(dataset, HELD_OUT), "held-out documents"
    # A single document has no standard error at all.
    if 1 < judged < FEW_DOCUMENTS:
        limit = f"with fewer than {FEW_DOCUMENTS} {of}"
        yield f"{limit}, standard errors and intervals are unreliable"


def _notes_on_search(dataset: xr.Dataset) -> Iterator[str]:
    """Yield what a search looked for, on which text, and how its table is to be read."""
    attrs, held = dataset.attrs, _documents(dataset, HELD_OUT)
    yield (
        f"{attrs.get('target', 'search')}, units {attrs['units']}, scored by {attrs['objective']}: "
        f"chosen on {counted(_documents(dataset, SEARCHED), 'document')}, {held} held out"
    )
    if "chosen" not in dataset and not is_difference(dataset):
        yield "unfinished: the same command goes on from here"
    elif "chosen" in dataset:
        tied = "tied: not told apart from the best one when the race ended"
        yield f"optimism: held-out mean less search score; {tied}" if held else tied
        if not held:
            text = "the text that sets were chosen on"
            yield f"nothing is held out: means and intervals are of {text}, hence optimistic"


def _documents(dataset: xr.Dataset, part: str) -> int:
    """Return the number of documents of a part of a search's text."""
    return np.unique(dataset["document"].values[dataset["part"].values == part]).size


def _notes_on_clean(dataset: xr.Dataset, *, by_bootstrap: bool) -> Iterator[str]:
    """Yield the clean model's readouts, and their means by token where these are different."""
    means, by_token = [], []
    for metric in CLEAN_READOUTS:
        if metric.name in dataset:
            values = dataset[metric.name]
            means.append(_clean_mean(values, by_bootstrap=by_bootstrap))
            if is_uneven(dataset):
                by_token.append(f"{_short(metric.name)} {float(mean_over_tokens(values)):.4f}")
    if means:
        yield f"clean: {', '.join(means)}"
    if by_token:
        yield f"clean, by token: {', '.join(by_token)}"


def _notes_on_floor(dataset: xr.Dataset) -> Iterator[str]:
    """Yield what rounding to half precision does to the KL of the clean model, and what is near."""
    floor = floor_of(dataset)
    if floor is None:
        return
    error = dataset.attrs.get(FLOOR_ERROR)
    spread = "" if error is None else f" ±{float(error):.1g}"
    source = f", estimated by {dataset.attrs[FLOOR_FROM]}" if FLOOR_FROM in dataset.attrs else ""
    kind = dataset.attrs.get("dtype", "half precision")
    yield f"floor of {kind} under KL: {floor:.2g}{spread}{source}"
    near = describe_near(dataset)
    if near is not None:
        yield f"{near}: {remedy(dataset)}"


def _clean_mean(values: xr.DataArray, *, by_bootstrap: bool) -> str:
    text = f"{_short(str(values.name))} {float(values.mean('sequence', skipna=False)):.3f}"
    if by_bootstrap:
        low, high = map(float, bootstrap(values))
        return text if np.isnan(low) else f"{text} [{low:.3f}, {high:.3f}]"
    error = float(standard_error(values))
    return text if np.isnan(error) else f"{text} ±{error:.3f}"


def _short(name: str) -> str:
    return name.removeprefix("clean_")


def figure_title(dataset: xr.Dataset) -> str:
    """Return the title of a file's figure: model, text, amount of text, and kind of bands."""
    attrs = dataset.attrs
    text = f"model {attrs.get('model', 'unknown')}"
    if str(attrs.get("measurement")).startswith("tasks"):
        return f"{text}, {dataset.sizes['item']:,} items, 95 % bands"
    if "corpus" not in attrs:
        return text
    text += f", text {attrs['corpus']}"
    if is_difference(dataset):
        text += f", {attrs['difference']}"
    if "sequences" not in attrs:
        return f"{text}, 95 % intervals"
    done = int(attrs.get("sequences_done", attrs["sequences"]))
    share = done / attrs["sequences"]
    amounts, bands = [], ""
    if "tokens" in attrs:
        amounts.append(f"{round(attrs['tokens'] * share):,} tokens")
    if "document" in dataset.coords:
        documents = np.unique(measured_sequences(dataset)["document"]).size
        amounts.append(counted(documents, "document"))
        only_heat_maps = attrs.get("measurement") == "pairs" or "token" in dataset.dims
        bands = "" if only_heat_maps or documents == 1 else ", 95 % bands"
    # A run that was interrupted is drawn too, from what it has.
    unfinished = f" (unfinished: {share:.0%})" if share < 1 else ""
    return f"{text}: {' of '.join(amounts)}{bands}{unfinished}"


def counted(number: int, what: str) -> str:
    """Return a number and its noun, as in `1 document` and `2 documents`."""
    return f"{number:,} {what}{'' if number == 1 else 's'}"
