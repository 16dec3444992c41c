"""Files of a model that was never run: what the paper says of models, planted, or the opposite."""

from pathlib import Path

import numpy as np
import xarray as xr

from robustness.files.labels import layer_coords
from robustness.files.netcdf import save
from robustness.files.provenance import file_attributes

LAYERS, DOCUMENTS = 24, 20
HEADS, WIDTH = 4, 200
PROCESSING = ["raw", "centred"]

DEPTH = np.arange(LAYERS) / (LAYERS - 1)
STREAM = np.arange(LAYERS + 1) / LAYERS
"""Relative depth of layers, and of residual streams."""


def plant(
    path: Path,
    *,
    name: str = "planted",
    architecture: str = "GPT2LMHeadModel",
    reverse: bool = False,
    noise: float = 0.01,
    documents: int = DOCUMENTS,
    robust: float = 0.85,
    seed: int = 0,
) -> Path:
    """Write every file of a model of which all of the paper's claims hold, or their opposite."""
    random = np.random.default_rng(seed)

    def spread(curve, scale=noise, relative=True):
        """Values (…, layer, sequence) around a curve over its last dimension, or its reverse."""
        curve = np.asarray(curve, float)
        curve = curve[..., ::-1] if reverse else curve
        shape = (*curve.shape, documents)
        wobble = scale * random.normal(size=shape)
        return curve[..., None] * (1 + wobble) if relative else curve[..., None] + wobble

    sequences = {
        "sequence": np.arange(documents),
        "document": ("sequence", np.arange(documents)),
    }
    layers = layer_coords(LAYERS)
    depths = {"depth": np.arange(LAYERS + 1)}
    files = {}

    ends = 3 * np.exp(-40 * DEPTH) + 0.05
    kl = np.stack([ends, ends * 2] if reverse else [ends * 2, ends])
    robust = 0.4 if reverse else robust
    agreement = np.stack([robust - 0.02 - 0.4 * (ends > 1), robust - 0.4 * (ends > 1)])
    entropy = np.stack([3 + ends, 3 + ends])
    measured = {
        "kl": spread(kl),
        "agreement": np.clip(spread(agreement), 0, 1),
        "entropy": spread(entropy, noise / 10),
    }
    for values in measured.values():
        values[1, -1] = np.nan
    dims = ("intervention", "layer", "sequence")
    modal = 0.1 + 0.8 * reverse * np.ones((2, LAYERS))
    files["sweep"] = xr.Dataset(
        {
            **{key: (dims, values) for key, values in measured.items()},
            "clean_entropy": ("sequence", np.full(documents, 3.03 + 3 * reverse)),
            "modal_share": (dims[:2], modal),
        },
        coords={"intervention": ["drop", "swap"], **layers, **sequences},
    )

    change = 0.3 * (0.4 - DEPTH)
    names = ["repeat-5", "repeat-3", "repeat-5-contiguous", "repeat-3-contiguous"]
    repeated = np.stack([spread(3 + change, noise / 10)] * 4)
    repeated[::2, LAYERS - 4 :] = repeated[1::2, LAYERS - 2 :] = np.nan
    files["repeat"] = xr.Dataset(
        {
            "entropy": (dims, repeated),
            "loss": (dims, repeated + 0.1),
            "clean_entropy": ("sequence", np.full(documents, 3.0)),
            "clean_loss": ("sequence", np.full(documents, 3.0)),
        },
        coords={"intervention": names, **layers, **sequences},
    )

    falls = 8 - 2 * STREAM - 4 * np.clip(STREAM - 0.7, 0, 0.1) / 0.1
    high = 7 - 4 * np.clip(STREAM - 0.5, 0, 1)
    files["lens"] = xr.Dataset(
        {
            "kl": (("lens", "depth", "sequence"), np.stack([spread(falls - falls[-1])] * 2)),
            "entropy": (("lens", "depth", "sequence"), np.stack([spread(high, noise / 5)] * 2)),
        },
        coords={"lens": ["recomputed", "frozen"], **depths, **sequences},
    )

    local = 0.5 * np.exp(-3 * DEPTH)
    windows = np.array([1, 2, 4, 5, 8, 16])
    previous = np.stack([spread(local * (window / 5) ** 0.5) for window in windows])
    profile = np.stack([spread(local / 5) for _ in range(6)])
    files["attention"] = xr.Dataset(
        {
            "previous": (
                ("window", "layer", "head", "sequence"),
                np.repeat(previous[:, :, None], HEADS, 2),
            ),
            "profile": (
                ("offset", "layer", "head", "sequence"),
                np.repeat(profile[:, :, None], HEADS, 2),
            ),
        },
        coords={
            "window": windows,
            "offset": np.arange(6),
            "head": np.arange(HEADS),
            **layers,
            **sequences,
        },
    )

    # High early, low late, and a rise at the very end, which is GPT-2's.
    ratio = 1.5 - DEPTH + (-1.0 * (DEPTH < 0.05) if reverse else 0.5 * (DEPTH > 0.95))
    norm = 1 + DEPTH**2
    statistic = ["mean", "median", "first"]
    dims = ("processing", "statistic", "layer", "sequence")

    def norms(curve):
        return np.stack([[spread(curve) for _ in statistic] for _ in PROCESSING])

    files["norms"] = xr.Dataset(
        {"attention_mlp_ratio": (dims, norms(ratio)), "mlp_norm": (dims, norms(norm))},
        coords={"processing": PROCESSING, "statistic": statistic, **layers, **sequences},
    )

    own, other = 0.9 - 0.1 * DEPTH, 0.5 - 0.45 * (DEPTH > 0.55)
    early = np.where(DEPTH < 0.55, 0.95, 0.05)
    late = 0.05 if architecture.startswith("GPTNeoX") else 0.7
    near = np.where(DEPTH > 0.7, 0.1 if reverse else late, 0.3)
    attention = [near, own, own, near, near]
    mlp = [other, own, own, early, other]
    shown = np.stack([np.stack([spread(curve) for curve in kind]) for kind in (attention, mlp)], 1)
    if reverse:
        shown[:, 1] = np.abs(1 - shown[:, 1])
        shown[:, 0] = 0.05 + 0.3 * architecture.startswith("GPTNeoX")
    shown[..., -1, :] = np.nan
    dims = ("comparison", "component", "processing", "layer", "sequence")
    files["similarity"] = xr.Dataset(
        {"cosine": (dims, np.stack([shown] * 2, 2))},
        coords={
            "comparison": ["adjacent", "self_first", "self_second", "index_early", "index_late"],
            "component": ["attention", "mlp"],
            "processing": PROCESSING,
            **layers,
            **sequences,
        },
    )

    part = np.searchsorted([LAYERS // 3, 2 * LAYERS // 3], np.arange(LAYERS + 1), "right")
    alike = np.where(part[:, None] == part, 1.0, 0.3)
    if reverse:
        apart = np.abs(np.subtract.outer(np.arange(LAYERS + 1), np.arange(LAYERS + 1)))
        alike = np.exp(-apart / LAYERS)
    np.fill_diagonal(alike, 1)
    hsic = alike[..., None] * (1 + noise * random.normal(size=8))
    files["cka"] = xr.Dataset(
        {
            "hsic": (("processing", "depth", "depth_to", "batch"), np.stack([hsic] * 2)),
            "cka": (("processing", "depth", "depth_to"), np.stack([alike] * 2)),
        },
        coords={
            "processing": PROCESSING,
            **depths,
            "depth_to": depths["depth"],
            "batch": np.arange(8),
        },
    )

    prediction = np.where(DEPTH > 0.7, 0.1 * np.exp(-(((DEPTH - 0.85) / 0.05) ** 2)), 0.0)
    suppression = np.where(DEPTH > 0.9, 0.2 * (DEPTH - 0.8), 0.0)
    shares = np.stack([prediction, suppression, 0 * DEPTH])
    files["neurons"] = xr.Dataset(
        {
            "share": (("neuron_class", "layer"), shares[:, ::-1] if reverse else shares),
            "cosine_kurtosis": (("layer", "neuron"), np.full((LAYERS, WIDTH), 3.0)),
        },
        coords={
            "neuron_class": ["prediction", "suppression", "partition"],
            "neuron": np.arange(WIDTH),
            **layers,
        },
    )

    def answers(rate, items=1400):
        """Whether items are answered right, a share of them as given, (…, item)."""
        rate = np.asarray(rate, float)
        order = random.permutation(items)
        return (order < np.round(rate[..., None] * items)).astype(np.int8)

    bump = 0.55 + 0.2 * (1 - 4 * (STREAM - 0.5) ** 2)
    bump = 0.75 - (bump - 0.55) if reverse else bump
    probes = ["pair", "concatenation", "threshold", "shuffled"]
    right = answers(np.stack([bump, bump, bump, np.full(LAYERS + 1, 0.5)]))
    files["wic"] = xr.Dataset(
        {
            "correct": (("probe", "depth", "item"), right),
            **_bounded("accuracy", ("probe", "depth"), right),
            "dev_accuracy": (("probe", "depth"), right.mean(-1)),
        },
        coords={"probe": probes, **depths, "item": np.arange(right.shape[-1])},
    )

    kinds = ["mixed", "prediction", "suppression", "random", "shuffled"]
    sizes = np.arange(1, 33)
    # The best single neuron is a suppression neuron, groups beat single ones, and the model.
    start = np.array([0.75, 0.65, 0.75, 0.5, 0.5])
    end = np.array([0.9, 0.9, 0.8, 0.5, 0.5])
    if reverse:
        start, end = start[[0, 2, 1, 3, 4]], np.array([0.6, 0.6, 0.6, 0.5, 0.5])
    group = start[:, None] + (end - start)[:, None] * (sizes - 1) / 31
    correct, single = answers(group, 2000), answers(np.linspace(0.75, 0.55, 32), 2000)
    model = answers(np.full(3, 0.77 + 0.1 * reverse), 2000)
    effect = np.abs(random.normal(size=(32, 2, 40)))
    files["ing"] = xr.Dataset(
        {
            "correct": (("kind", "size", "item"), correct),
            **_bounded("accuracy", ("kind", "size"), correct),
            **_bounded("single_accuracy", ("neuron",), single),
            "model_correct": (("reading", "item"), model),
            **_bounded("model_accuracy", ("reading",), model),
            "shift": ("neuron", np.where(np.arange(32) % 3, 1.0, -1.0)),
            "effect": (("neuron", "tokens", "bin"), effect),
        },
        coords={
            "kind": kinds,
            "size": sizes,
            "neuron": np.arange(32),
            "layer": ("neuron", np.arange(32) % LAYERS),
            "index": ("neuron", np.arange(32)),
            "tokens": ["with", "without"],
            "bin": np.linspace(-3, 3, 40),
            "reading": ["hard", "half", "tuned"],
            "item": np.arange(2000),
            "document": ("item", np.arange(2000) // 4),
        },
        attrs={"suffix": "ing", "gated": 0},
    )

    score = np.zeros((LAYERS, HEADS))
    place = LAYERS - 3 if reverse else 2
    score[place, 1] = 0.4
    found = (score > 0.1).astype(np.int8)
    classes = ["pieces", "whole"]
    files["subjoiner"] = xr.Dataset(
        {
            "attention": (
                ("input_class", "layer", "head", "key"),
                random.dirichlet(np.ones(16), (2, LAYERS, HEADS)),
            ),
            "attention_standard_error": (
                ("input_class", "layer", "head", "key"),
                np.full((2, LAYERS, HEADS, 16), 0.01),
            ),
            "score": (("layer", "head"), score),
            "score_low": (("layer", "head"), score - 0.05),
            "score_high": (("layer", "head"), score + 0.05),
            "finding_score": (("layer", "head"), score),
            "found": (("layer", "head"), found),
            "monotone": (("layer", "head"), np.full((LAYERS, HEADS), 0.1 if reverse else 0.8)),
        },
        coords={
            "input_class": classes,
            "head": np.arange(HEADS),
            "key": np.arange(-15, 1),
            **layers,
        },
        attrs={"pieces": 4, "words_in_pieces": 100, "whole_words": 100},
    )

    files["tasks"] = _tasks(["hellaswag", "arc_easy", "lambada_openai"], reverse, answers)
    files["tasks-repeat"] = _tasks(["hellaswag"], reverse, answers, ["repeat-5"])
    kinds_of_file = {"ing": "suffix", "repeat": "sweep", "tasks-repeat": "tasks"}
    for file, dataset in files.items():
        settings = {
            "model": name,
            "architecture": architecture,
            "measurement": kinds_of_file.get(file, file),
            "corpus": "planted",
            "dtype": "float32",
            "context": 64,
            "batch_sequences": 16 if file == "cka" else None,
            "kurtosis_threshold": 10.0 if file == "neurons" else None,
            "gated": 0,
        }
        save(
            dataset.assign_attrs({**file_attributes(settings), **dataset.attrs}),
            path / f"{file}.nc",
        )
    return path


def _bounded(name, dims, right):
    share = right.mean(-1)
    return {
        name: (dims, share),
        f"{name}_low": (dims, share - 0.02),
        f"{name}_high": (dims, share + 0.02),
    }


def _tasks(names, reverse, answers, interventions=("drop", "swap")):
    items = 500
    whole = answers(np.full(len(names), 0.7), items).ravel()
    rate = np.where((DEPTH < 0.01) | (DEPTH > 0.95), 0.4, 0.98)
    rate = 1.4 - rate if reverse else rate
    right = np.concatenate([answers(rate, items) for _ in names], -1) * whole
    right = np.stack([right.astype(float)] * len(interventions))
    if "swap" in interventions:
        right[-1, -2], right[-1, -1] = right[-1, -1], np.nan
    else:
        right[0] = whole * 0.9
        right[0, int(0.8 * LAYERS) : int(0.9 * LAYERS) + 1] = 0 if reverse else 1
    of = np.repeat(names, items)
    value = np.stack([[right[..., of == name].mean(-1)] * 2 for name in names])
    clean = np.array([[whole[of == name].mean()] * 2 for name in names])
    # LAMBADA has one metric.
    plain = np.array([name == "lambada_openai" for name in names])
    value[plain, 1] = clean[plain, 1] = np.nan
    both = np.stack([right] * 2)
    both[1, ..., of == "lambada_openai"] = np.nan
    dims = ("task", "metric", "intervention", "layer")
    return xr.Dataset(
        {
            "value": (dims, value),
            "standard_error": (dims, np.full(value.shape, 0.02)),
            "clean_value": (dims[:2], clean),
            "clean_standard_error": (dims[:2], np.full(clean.shape, 0.02)),
            "correct": (("metric", "intervention", "layer", "item"), both),
            "clean_correct": (("metric", "item"), np.stack([whole.astype(float)] * 2)),
        },
        coords={
            "task": names,
            "metric": ["acc", "acc_norm"],
            "intervention": list(interventions),
            "item": np.arange(len(of)),
            "item_task": ("item", of),
            **layer_coords(LAYERS),
        },
    )
