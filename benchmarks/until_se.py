"""Measures what stopping by the data does to intervals: `stages sweep --until-se`.

The KL of every sequence of a text is measured once. Then its documents are put into the orders of a
hundred seeds, and each order is stopped by the very function that stops a run. Of every repetition
it is noted whether the 95 % interval of what was measured until then covers the value on all of the
text: of the mean over layers, which is stated beforehand to be what counts, and of every layer. As
many intervals of samples of a fixed size, that of the median repetition, are put beside them, so
that what is due to the stopping can be told from the rest. Some of the orders are really run, with
`--seed` and `--until-se`, and must stop where the simulation does, with its numbers.

    python benchmarks/until_se.py MODEL TEXT --kept whole.nc
"""

import argparse
from pathlib import Path

import numpy as np
import xarray as xr

from robustness.models.opening import open_model
from robustness.statistics.stopping import is_enough
from robustness.statistics.uncertainty import standard_error
from robustness.sweeps import sweep
from robustness.text.corpus import Corpus, cut
from robustness.text.sources import documents

NORMAL = 1.959964
"""Standard errors to either side in an interval of 95 %."""


def windows(source: str, tokenizer: object, context: int) -> int:
    """Return how many sequences a text has."""
    width = context - (tokenizer.bos_token_id is not None)
    texts = [text for _, text in documents(source)]
    ids = tokenizer(texts, add_special_tokens=False, verbose=False)["input_ids"]
    return sum(len(each) // width for each in ids)


def order(document: np.ndarray, source: str, seed: int) -> np.ndarray:
    """Return the places of sequences in the order of a seed."""
    places: dict[int, list[int]] = {}
    for place, each in enumerate(document.tolist()):
        places.setdefault(each, []).append(place)
    found = [places.get(index, []) for index, _ in documents(source, seed=seed)]
    return np.array([place for each in found for place in each])


def stop(whole: xr.Dataset, batches: list[slice], bound: float) -> xr.Dataset:
    """Return what a run would have measured when it stops."""
    ends = (whole.isel(sequence=slice(0, rows.stop)) for rows in batches)
    return next((measured for measured in ends if is_enough(measured, bound)), whole)


def covers(measured: xr.Dataset, whole: xr.Dataset) -> dict[str, xr.DataArray]:
    """Return of both quantities whether an interval covers the value on all of the text."""
    found = {}
    for name, average in (("mean over layers", True), ("each layer", False)):
        values, all_of_them = (
            each["kl"].mean("layer") if average else each["kl"] for each in (measured, whole)
        )
        mean, truth = (each.mean("sequence", dtype="float64") for each in (values, all_of_them))
        found[name] = abs(mean - truth) <= NORMAL * standard_error(values)
    return found


def really(model: object, text: Corpus, bound: float, measured: xr.Dataset) -> str:
    """Run an order that was simulated, and say how far the two are apart."""
    run = sweep(model, text, readouts=("kl",), until_se=bound)
    there = f"a run stops after {run.sequences} sequences, the simulation after"
    there += f" {measured.sizes['sequence']}"
    if run.sequences != measured.sizes["sequence"]:
        return there
    off = float(np.nanmax(abs(run["kl"].values / measured["kl"].values - 1)))
    return f"{there}; their KL differ by {off:.1e} of it at most"


def main() -> None:
    """Run the benchmark."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("model")
    parser.add_argument("text")
    parser.add_argument("--kept", type=Path, help="Where the whole text's KL is saved.")
    parser.add_argument("--bound", type=float, default=0.02)
    parser.add_argument("--context", type=int, default=256)
    parser.add_argument("--repetitions", type=int, default=100)
    parser.add_argument("--real", type=int, default=5, help="How many of them are run, too.")
    options = parser.parse_args()
    model = open_model(options.model)
    tokens = windows(options.text, model.tokenizer, options.context) * options.context
    cutting = {"context": options.context, "tokens": tokens}
    corpus = cut(options.text, model.tokenizer, **cutting)
    whole = sweep(model, corpus, readouts=("kl",), out=options.kept)
    batches = corpus.batches(int(whole.batch_tokens))
    print(f"{whole.sequences:,} sequences of {np.unique(whole.document).size:,} documents")
    orders = [order(corpus.document, options.text, at) for at in range(options.repetitions)]
    stopped = [stop(whole.isel(sequence=rows), batches, options.bound) for rows in orders]
    taken = np.array([measured.sizes["sequence"] for measured in stopped])
    for seed in range(options.real):
        text = cut(options.text, model.tokenizer, **cutting, seed=seed)
        print(f"seed {seed}: {really(model, text, options.bound, stopped[seed])}", flush=True)
    words = taken * options.context
    print(
        f"tokens until it stops: median {int(np.median(words)):,}, {words.min():,} to "
        f"{words.max():,}, of {corpus.tokens.size:,}"
    )
    fixed = [whole.isel(sequence=rows[: int(np.median(taken))]) for rows in orders]
    for title, samples in (("stopped", stopped), ("of a fixed size", fixed)):
        noted = [covers(sample, whole) for sample in samples]
        for name in noted[0]:
            counts = xr.concat([each[name] for each in noted], "repetition").sum("repetition")
            for intervention in counts["intervention"].values.tolist():
                there = counts.sel(intervention=intervention)
                if "layer" in there.dims and intervention == "swap":
                    there = there.isel(layer=slice(0, -1))  # the last has no next
                shown = np.atleast_1d(there.values).tolist()
                print(f"{title}, {intervention}, {name}: {shown} of {options.repetitions}")


if __name__ == "__main__":
    main()
