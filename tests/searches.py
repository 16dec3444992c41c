"""Searches of a model that was never run: every unit has a damage, and damages add up."""

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import xarray as xr

from robustness.files.kinds.searches import CHOSEN, DROPPED, HELD_OUT, SEARCHED, TIED
from robustness.files.provenance import file_attributes
from robustness.pruning.units import names, without
from robustness.schedules import to_text

DAMAGE = (3.0, 0.5, 0.2, 0.1, 0.4, 2.0)
"""Nats that each of six blocks costs when it is left out."""

BATCH = 4


def planted_search(
    damage: Sequence[float] | None = None,
    *,
    damages: Sequence[Sequence[float]] = (),
    sizes: Sequence[int] = (1, 2, 3),
    texts: Sequence[str] = ("stories",),
    documents: int = 16,
    noise: float = 0.3,
    held: int = 4,
    identity: dict[str, str] | None = None,
    objective: str = "kl",
    seed: int = 0,
) -> xr.Dataset:
    """Return a search of two methods over all sets of some sizes.

    `pairwise` weighs all sets; `greedy` those that contain its set of the step before. A document
    has two sequences, and texts take turns document by document. The last `held` documents are held
    out. `damages` has the damage of every unit on each text.
    """
    random = np.random.default_rng(seed)
    damages = damages or [damage or DAMAGE] * len(texts)
    units = range(len(damages[0]))
    sets = [set(chosen) for size in sizes for chosen in combinations(units, size)]
    document = np.repeat(np.arange(documents), 2)
    text = document % len(texts)
    part = np.where(document < documents - held, SEARCHED, HELD_OUT)
    wobble = np.exp(noise * random.normal(size=(documents, len(units))))[document]
    cost = np.asarray(damages)[text] * wobble
    kl = np.stack([cost[:, list(chosen)].sum(1) for chosen in sets])
    search = part == SEARCHED
    clean = 2 + 0.1 * random.normal(size=len(document))
    loss = clean + 0.9 * kl
    score = (kl if objective == "kl" else loss - clean)[:, search].mean(1)
    schedules = [to_text(without(len(units), chosen)) for chosen in sets]
    standing = np.zeros((2, len(sizes), len(sets)), int)
    chosen_texts = np.full((2, len(sizes)), "", dtype=object)
    before: set[int] = set()
    for step, size in enumerate(sizes):
        for method in range(2):
            weighed = [
                at
                for at, chosen in enumerate(sets)
                if len(chosen) == size and (method == 0 or before <= chosen)
            ]
            best = min(weighed, key=lambda at: score[at])
            for at in weighed:
                standing[method, step, at] = TIED if score[at] < 1.2 * score[best] else DROPPED
            standing[method, step, best] = CHOSEN
            chosen_texts[method, step] = schedules[best]
        before = sets[schedules.index(chosen_texts[1, step])]
    # A race drops candidates after the first batch; the held-out text is for the chosen alone.
    at = np.arange(len(document))
    lost = (standing < TIED).all((0, 1))
    kl[np.ix_(lost, at >= BATCH)] = np.nan
    unread = (standing < CHOSEN).all((0, 1))
    kl[np.ix_(unread, ~search)] = np.nan
    loss = np.where(np.isnan(kl), np.nan, loss)
    batches = -(-len(document) // BATCH)
    measured = np.stack([np.isfinite(kl[:, rows]).all(1) for rows in _batches(len(document))], 1)
    size_of = np.array([len(chosen) for chosen in sets])
    per_step = np.arange(1, 2 * len(sizes) + 1).reshape(2, -1) * 1000
    rows = ("candidate", "sequence")
    steps = ("strategy", "step")
    return xr.Dataset(
        {
            "kl": (rows, kl.astype(np.float32), {"units": "nat", "long_name": "KL"}),
            "agreement": (rows, np.exp(-np.abs(kl)).astype(np.float32), {"units": "1"}),
            "loss": (rows, loss.astype(np.float32), {"units": "nat", "long_name": "loss"}),
            "clean_loss": ("sequence", clean.astype(np.float32), {"units": "nat"}),
            "measured": (("candidate", "batch"), measured.astype(np.int8)),
            "predicted": ("candidate", score, {"units": "nat"}),
            "parameters": ("candidate", 10_000 - 1_000 * size_of),
            "flops_share": ("candidate", 1 - size_of / len(units)),
            "kv_bytes": ("candidate", 64 * (len(units) - size_of), {"units": "byte"}),
            "chosen": (steps, chosen_texts),
            "standing": (("strategy", "step", "candidate"), standing.astype(np.int8)),
            "tokens_read": (steps, per_step),
            "tokens_in_full": (steps, 3 * per_step),
            "applications": (steps, per_step // 10),
        },
        coords={
            "candidate": schedules,
            "removed": ("candidate", [names(chosen) for chosen in sets]),
            "size": ("candidate", size_of),
            "sequence": at,
            "document": ("sequence", document),
            "part": ("sequence", part),
            "source": ("sequence", np.array(texts)[text]),
            "strategy": ["pairwise", "greedy"],
            "step": list(sizes),
            "batch": np.arange(batches),
            "unit": list(map(str, units)),
        },
        attrs=_attributes(identity, objective, len(document), len(units)),
    )


def finished(dataset: xr.Dataset) -> xr.Dataset:
    """Return a search with all that is made of it at its end."""
    from robustness.pruning import stability

    found = dataset.assign(probability=stability.probability(dataset))
    found = found.assign(rank_correlation=stability.rank_correlation(dataset))
    best = str(dataset["chosen"].values[0, -1])
    found["healed"] = ("healing", np.array([best] * 2, dtype=object))
    found = found.assign_coords(healing=["cut", "scalar"])
    times = np.stack([np.full((2, 5), 3.0), np.full((2, 5), 2.0)]) + 0.1 * np.arange(5)
    found["milliseconds"] = (("version", "phase", "repetition"), times, {"units": "ms"})
    return found.assign_coords(
        version=["before", "after"], phase=["prefill", "decode"], repetition=np.arange(5)
    )


def unfinished(dataset: xr.Dataset) -> xr.Dataset:
    """Return what a search has on the disk before its end."""
    made_at_the_end = ("predicted", "parameters", "flops_share", "kv_bytes", "removed", "size")
    left = dataset.drop_dims(("strategy", "step", "unit")).drop_vars(made_at_the_end)
    return left.assign_attrs(requests_done=3)


def _batches(sequences: int) -> list[slice]:
    return [slice(at, at + BATCH) for at in range(0, sequences, BATCH)]


def _attributes(
    identity: dict[str, str] | None, objective: str, sequences: int, layers: int
) -> dict[str, Any]:
    known = identity or {"model": "planted", "architecture": "GPT2LMHeadModel"}
    settings = {
        "measurement": "search",
        **known,
        "units": "block",
        "target": "remove 3",
        "objective": objective,
        "methods": "pairwise, greedy",
        "corpus": "stories",
        "context": 16,
        "sequences": sequences,
        "tokens": 16 * sequences,
        "holdout": 0.25,
        "level": 0.95,
        "beam": 4,
        "finalists": 20,
        "clean_parameters": 10_000,
        "clean_kv_bytes": 64 * layers,
    }
    return file_attributes(settings)
