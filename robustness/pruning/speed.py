"""Speed of a pruned model: milliseconds a token, as plain transformers generates text."""

from time import perf_counter
from typing import Any

import numpy as np
import torch
import xarray as xr
from torch import Tensor

from robustness.errors import Refusal
from robustness.models.model import Model
from robustness.reordered.rebuilding import rebuild
from robustness.schedules import Schedule, clean

VERSIONS = ("before", "after")
"""The model with all of its blocks, and the one that runs the schedule."""

PHASES = ("prefill", "decode")
"""Reading the prompt, all tokens at once, and writing, one token after the other."""


def measure(
    model: Model,
    schedule: Schedule | str,
    *,
    prompt: int = 128,
    written: int = 16,
    repetitions: int = 5,
) -> xr.DataArray:
    """Measure the time that a model takes for a token, with all of its blocks and in another order.

    Both are plain models of transformers that share the weights, and generate greedily from one
    sequence with a cache of keys and values. They take turns, so that what else the machine does
    meets both, and either is first in every other repetition. A first round is not counted.

    Parameters
    ----------
    model : Model
        An opened model with its weights in memory.
    schedule : tuple of int, or str
        Whole blocks.
    prompt : int
        Tokens of the prompt; fewer where the context is shorter.
    written : int
        Tokens that are written, 2 or more.
    repetitions : int
        Number of measurements.

    Returns
    -------
    DataArray
        Milliseconds a token, (version, phase, repetition): of `before` and `after`, of the prompt's
        tokens in `prefill` (until the first token is written), and of the others in `decode`.

    Raises
    ------
    Refusal
        If no plain model runs the schedule, as with sublayers, or the weights are elsewhere.
    """
    context = model.context or prompt + written
    written = min(written, context // 2)
    prompt = min(prompt, context - written)
    if written < 2 or prompt < 1:
        raise Refusal(f"{model.name} takes {context} tokens: too few to measure its speed")
    nets = [rebuild(model, clean(model.layers)), rebuild(model, schedule)]
    tokens = (5 * torch.arange(prompt, device=model.device)[None] + 1) % model.vocabulary
    times = np.empty((len(VERSIONS), len(PHASES), repetitions + 1))
    with model.lock, torch.no_grad():
        for repetition in range(repetitions + 1):
            order = (0, 1) if repetition % 2 else (1, 0)
            for version in order:
                times[version, :, repetition] = _time(nets[version], tokens, written)
    about = f"time for a token of one sequence: {prompt} of a prompt, {written} written"
    return xr.DataArray(
        1000 * times[..., 1:],
        dims=("version", "phase", "repetition"),
        coords={
            "version": list(VERSIONS),
            "phase": list(PHASES),
            "repetition": np.arange(repetitions),
        },
        attrs={"units": "ms", "long_name": about},
    )


class _Clock:
    """Streamer of transformers that notes when each token is there, the prompt first.

    Tokens arrive on the CPU, so that a GPU has finished what makes them.
    """

    def __init__(self) -> None:
        self.times: list[float] = []

    def put(self, _tokens: Tensor) -> None:
        self.times.append(perf_counter())

    def end(self) -> None:
        pass


def _time(net: Any, tokens: Tensor, written: int) -> tuple[float, float]:
    """Return the seconds a token of prefill and of decode."""
    clock = _Clock()
    net.generate(
        tokens,
        attention_mask=torch.ones_like(tokens),
        max_new_tokens=written,
        # No model stops early, at a token that it holds for the end.
        min_new_tokens=written,
        do_sample=False,
        num_beams=1,
        pad_token_id=0,
        use_cache=True,
        streamer=clock,
    )
    begun, first, *_, last = clock.times
    return (first - begun) / tokens.shape[1], (last - first) / (written - 1)
