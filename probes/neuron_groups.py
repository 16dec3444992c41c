"""Probes on single neurons and on growing groups of neurons, beside the model's own answer."""

from functools import partial

import numpy as np
import xarray as xr

from probes.classifier import Floats, Probe, Split, fit_all, labelled, threshold
from probes.windows import SHARES, Task

GROUPS = ("mixed", "prediction", "suppression", "random", "shuffled")
"""Groups: all chosen neurons; those that raise the suffix's logits; those that lower them; random
neurons of the same layers; all chosen neurons with shuffled labels."""

READINGS = ("hard", "half", "tuned")
"""Readings of the model's own answer: its top-1 token has the suffix; the suffix has more than half
of the probability; the suffix has more than a share that is best on dev."""


def fit_groups(activations: xr.Dataset, task: Task, chosen: xr.Dataset, seed: int) -> xr.Dataset:
    """Fit probes on single neurons and on groups of every kind, ranked on dev.

    Parameters
    ----------
    activations : Dataset
        `activation` and `control` (neuron, window), `top` and `share` (window).
    task : Task
        The windows.
    chosen : Dataset
        Result of `probes.neuron_choice.choose_neurons`.
    seed : int
        Seed of the shuffled labels and the bootstrap.

    Returns
    -------
    Dataset
        As `probes.suffix.probe_suffix` returns it.
    """
    test = task.part == "test"
    cluster = task.document[test]
    own = _split(activations["activation"].values.T, task)
    splits = dict.fromkeys(GROUPS, own)
    splits["random"] = _split(activations["control"].values.T, task)
    splits["shuffled"] = own.shuffled(seed)
    groups, single = [], xr.Dataset()
    for kind, members in _members(chosen).items():
        if not members:
            continue
        single_neurons = [partial(splits[kind].only, [at]) for at in members]
        alone = fit_all(single_neurons)
        # Ranked on dev, so that the accuracies on test are those of groups chosen without it.
        order = np.argsort([-probe.dev_accuracy for probe in alone], kind="stable")
        ranked = np.array(members)[order].tolist()
        sizes = list(range(1, len(ranked) + 1))
        probes = fit_all([partial(splits[kind].only, ranked[:size]) for size in sizes])
        fitted = labelled(probes, "size", cluster, seed).assign_coords(size=sizes)
        groups.append(fitted.expand_dims(kind=[kind]))
        if kind == "mixed":
            single = labelled(alone, "neuron", cluster, seed)
    answers = labelled(_answers(activations, task), "reading", cluster, seed)
    together = [
        _joined(groups),
        _prefixed(single, "single"),
        _prefixed(answers, "model"),
        chosen,
    ]
    coords = {
        "reading": list(READINGS),
        "item": np.arange(test.sum()),
        "label": ("item", task.label[test].astype(np.int8)),
        "document": ("item", cluster),
    }
    return xr.merge(together).assign_coords(coords).assign_attrs(activations.attrs)


def _prefixed(dataset: xr.Dataset, prefix: str) -> xr.Dataset:
    """Return a dataset whose variables have a prefix in their names."""
    return dataset.rename({name: f"{prefix}_{name}" for name in dataset.data_vars})


def _members(chosen: xr.Dataset) -> dict[str, list[int]]:
    """Return the neurons of every group, by their position among the chosen ones."""
    shift = chosen["shift"].values
    members = {kind: list(range(chosen.sizes["neuron"])) for kind in GROUPS}
    members["prediction"] = np.flatnonzero(shift > 0).tolist()
    members["suppression"] = np.flatnonzero(shift < 0).tolist()
    return members


def _joined(groups: list[xr.Dataset]) -> xr.Dataset:
    """Join groups of different sizes; values that smaller ones lack are NaN, or -1 for integers."""
    # Without an integer to fill with, xarray would make `correct` floating-point.
    missing = dict.fromkeys(map(str, groups[0].data_vars), np.nan)
    return xr.concat(groups, "kind", join="outer", fill_value=missing | {"correct": np.int8(-1)})


def _answers(activations: xr.Dataset, task: Task) -> list[Probe]:
    """Return the model's own answers, in every reading of `READINGS`."""
    top = _split(activations["top"].values[:, None], task)
    share = _split(activations["share"].values[:, None], task)
    # Quantiles of the dev shares themselves, which are often far from evenly spread.
    grid = np.unique(np.quantile(share.dev[0], np.linspace(0, 1, 101))).tolist()
    return [threshold(top, (0.5,)), threshold(share, (0.5,)), threshold(share, grid)]


def _split(features: Floats, task: Task) -> Split:
    """Divide features (window, feature) into the parts of the windows."""
    return Split.by_part(features, task.label, task.part, list(SHARES))
