"""Measures the floor that half precision puts under KL, of a sweep's own model and text."""

from typing import Any

import numpy as np
import torch
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import first_line, is_out_of_memory
from robustness.files.precision_floor import (
    FLOOR,
    FLOOR_AGREEMENT,
    FLOOR_ERROR,
    FLOOR_TOKENS,
)
from robustness.models import float32_pass
from robustness.models.model import Model
from robustness.runs.batching import query_positions
from robustness.runs.settings import Tell
from robustness.statistics.uncertainty import standard_error
from robustness.sweeps.rounding_floor import estimate_floor
from robustness.text.corpus import Corpus
from robustness.trace import readout, transfer

HALF = ("bfloat16", "float16")
"""Types of weights whose rounding is measured."""

TOKENS = 2048
"""Number of tokens that the floor is measured on, if sequences are short enough."""

FEWEST_SEQUENCES = 4
"""Minimum number of sequences, so that there is a standard error."""


def measure_floor(model: Model, corpus: Corpus, tell: Tell) -> dict[str, Any]:
    """Measure KL(float32 ‖ half) of the clean model, the same weights in both.

    Parameters
    ----------
    model : Model
        An opened model.
    corpus : Corpus
        All of the text of a run; the floor is measured on some of its sequences.
    tell : callable
        Called with a message where the floor cannot be measured.

    Returns
    -------
    dict
        Attributes of a file, as in `robustness.files.precision_floor`. None for models in float32
        or float64, and where the model cannot run in float32. Of a model on a server, an estimate.
    """
    if model.identity["dtype"] not in HALF:
        return {}
    if model.request:
        return estimate_floor(model, corpus, tell)
    if model.offloaded:
        tell(f"{_left_out(model)}: weights are loaded for each call")
        return {}
    chosen = choose_sequences(corpus)
    try:
        # Without TF32, which has no more bits than float16.
        with model.computing():
            kl, agreement = _compare(model, corpus, chosen)
    except Exception as error:  # whatever a model's own code raises
        reason = "memory ran out" if is_out_of_memory(error) else first_line(error)
        tell(f"{_left_out(model)}: {reason}")
        return {}
    if not np.isfinite(kl).all():
        tell(f"{_left_out(model)}: predictions are not all finite numbers")
        return {}
    of_sequences = xr.DataArray(
        kl, dims="sequence", coords={"document": ("sequence", corpus.document[chosen])}
    )
    spread = float(standard_error(of_sequences))
    return {
        FLOOR: float(kl.mean()),
        # One document has no standard error.
        **({FLOOR_ERROR: spread} if np.isfinite(spread) else {}),
        FLOOR_AGREEMENT: float(agreement.mean()),
        FLOOR_TOKENS: int(corpus.lengths[chosen].sum()),
    }


def choose_sequences(corpus: Corpus) -> NDArray[np.int64]:
    """Return the indices of the sequences that the floor is measured on, evenly spaced.

    They have `TOKENS` tokens or fewer, unless `FEWEST_SEQUENCES` have more.
    """
    sequences = len(corpus.tokens)
    count = min(sequences, max(FEWEST_SEQUENCES, TOKENS // corpus.context))
    return np.arange(count, dtype=np.int64) * sequences // count


def _left_out(model: Model) -> str:
    return f"the floor that {model.identity['dtype']} puts under KL is not measured"


def _compare(
    model: Model, corpus: Corpus, chosen: NDArray[np.int64]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return mean KL(float32 ‖ half) and agreement of each of some sequences, (sequence,)."""
    matrix = model.unembedding(copied=False)
    if matrix is None:
        raise ValueError("its head is no matrix that can be read")
    means = []
    # Not in batches: sequences of several lengths would be padded.
    for sequence in chosen:
        text = corpus.part(slice(sequence, sequence + 1))
        tokens = torch.from_numpy(text.tokens[:, : text.lengths[0]]).to(model.device)
        query = query_positions(text, slice(0, 1), tokens)
        read = slice(query["first"], query["last"])
        wide = float32_pass.final_states(model, tokens, wide=True)[0, read]
        half = float32_pass.final_states(model, tokens, wide=False)[0, read]
        clean = readout.reference(wide, query["targets"][0], model.head, model.vocabulary, matrix)
        values = readout.compare(half[None].to(wide), clean)
        both = torch.stack([values["kl"][0], values["agreement"][0]])
        # MPS has no float64.
        on_host = both.to(transfer.HOST).double()
        means.append(on_host[:, query["compared"][0].to(transfer.HOST)].mean(1))
    kl, agreement = torch.stack(means, 1).numpy()
    return kl, agreement
