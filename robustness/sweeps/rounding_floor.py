"""Estimates the floor that half precision puts under KL of a model on a server.

A server cannot run a model of its size in float32 besides. Instead, its clean run is compared with
one whose states are rounded anew before every block. Rounding errors of the two runs are different
and of equal size, so that their KL is at most twice the floor, where nothing is rounded alike. It
is the floor itself where what the model rounds afterwards is alike, and only what is rounded anew
is not. Taken as √2 floors it is right within a factor of 1.5; see `docs/precision.md`.
"""

import math
from dataclasses import replace
from typing import Any

import nnsight
import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal, Unanswered, first_line
from robustness.files.metrics import READOUTS
from robustness.files.precision_floor import (
    FLOOR,
    FLOOR_ERROR,
    FLOOR_FROM,
    FLOOR_TOKENS,
    ROUNDED_ANEW,
)
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs.batching import query_positions
from robustness.runs.settings import Tell
from robustness.statistics.uncertainty import standard_error
from robustness.text.corpus import Corpus
from robustness.trace import block_calls, rounding, unembedding
from robustness.trace.types import Modules, ReadoutQueries

TOKENS = 512
"""Maximum number of tokens that are run twice."""

FEWEST_SEQUENCES = 4
"""Number of sequences, of which only the beginnings are taken if they are long."""

SANDBOXED_TOKENS = 128
"""As `TOKENS`, where states cross a socket."""

SANDBOXED_BYTES = 3e9
"""Maximum number of bytes that may cross it."""

FLOORS = math.sqrt(2)
"""Number of floors that the KL of the two runs is taken for."""


def estimate_floor(model: Model, corpus: Corpus, tell: Tell) -> dict[str, Any]:
    """Estimate the floor of a model in half precision on a server, in one request.

    Parameters
    ----------
    model : Model
        A model on a server.
    corpus : Corpus
        All of the text of a run.
    tell : callable
        Called with a message where the floor cannot be estimated.

    Returns
    -------
    dict
        Attributes of a file, as in `robustness.files.precision_floor`.
    """
    left_out = f"the floor that {model.identity['dtype']} puts under KL is not estimated"
    text = _beginnings(corpus, SANDBOXED_TOKENS if model.sandboxed else TOKENS)
    crossing = _crossing(model, text)
    if model.sandboxed and crossing > SANDBOXED_BYTES:
        tell(f"{left_out}: {crossing / 1e9:.2g} GB would cross the sandbox's socket")
        return {}
    try:
        kl = _compare(model, text)
    except Unanswered:
        raise
    except Refusal as error:
        tell(f"{left_out}: {first_line(error)}")
        return {}
    if not np.isfinite(kl).all():
        tell(f"{left_out}: predictions are not all finite numbers")
        return {}
    floors = xr.DataArray(
        kl / FLOORS, dims="sequence", coords={"document": ("sequence", text.document)}
    )
    spread = float(standard_error(floors))
    return {
        FLOOR: float(floors.mean()),
        **({FLOOR_ERROR: spread} if np.isfinite(spread) else {}),
        FLOOR_TOKENS: int(text.lengths.sum()),
        FLOOR_FROM: ROUNDED_ANEW,
    }


def _beginnings(corpus: Corpus, most: int) -> Corpus:
    """Return the beginnings of evenly spaced sequences, of `most` tokens together."""
    sequences = len(corpus.tokens)
    width = min(corpus.tokens.shape[1], most // FEWEST_SEQUENCES)
    count = min(sequences, most // width)
    chosen = np.arange(count) * sequences // count
    return replace(
        corpus,
        tokens=corpus.tokens[chosen, :width],
        lengths=corpus.lengths[chosen].clip(max=width),
        document=corpus.document[chosen],
    )


def _crossing(model: Model, text: Corpus) -> float:
    """Return the bytes that cross a sandbox's socket, nearly all of them states."""
    # A state is read twice, each time both ways, and written once; two bytes a number.
    return 5 * model.layers * 2 * text.tokens.size * model.width * 2.0


def _compare(model: Model, text: Corpus) -> NDArray[np.float64]:
    """Return the mean KL of both runs for each sequence, (sequence,)."""
    tokens = torch.from_numpy(text.tokens)
    queries: ReadoutQueries = {
        "vocabulary": model.vocabulary,
        "divergences": ["kl"],
        "per_token": False,
        "metrics": [],
        **query_positions(text, slice(0, len(tokens)), tokens),
    }
    blocks, norms, head = model.blocks, model.norms, model.head
    modules: Modules = {"norms": norms, "head": head, "squash": model.squash, "matrix": None}
    there = model.head_there(2 * tokens.numel())
    wanted = {"kl": ((1, len(tokens)), answer.FLOATS)}
    # Of every readout a number for each sequence, and at most as many counts as there are tokens.
    numbers = 4 * len(READOUTS) * len(tokens) + 3 * tokens.numel()
    request, twice = model.asking(numbers), torch.cat([tokens, tokens])
    with model.computing(), model.traced.trace(twice, use_cache=False, **request):
        rounding.disturb(blocks)
        final = norms[0].input if norms else head.input
        block_calls.pass_over(head)
        modules["matrix"] = unembedding.matrix_there(head, there)
        measured = nnsight.save(rounding.measure(final, modules, queries))
    return answer.take(measured, wanted)["kl"][0].double().numpy()
