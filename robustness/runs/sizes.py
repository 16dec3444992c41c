"""Sizes of a run: tokens of text in a trace, and tokens that go through a block together.

On a GPU they follow from the memory that is free before the first batch. Of it, the share `SHARE`
is planned with; the rest is for readouts, for libraries and for pieces that fit nothing:

    bytes = tokens of text · live states · bytes of a state + tokens of a call · bytes of a call

A call has as many tokens as half of the share holds, up to `MOST_CALL`, with more of which a GPU
gains no speed. Where these are fewer than `LEAST_CALL`, which keep it busy, a call takes more than
half, as long as one sequence still fits. Text takes what is left, up to `MOST_TEXT`. All sizes are
powers of two, so that small differences in free memory change nothing. On a CPU and for a server
they are constant.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch

from robustness.models.intermediates import numbers_of_token
from robustness.models.model import Model

SHARE = 0.6
"""Share of the free memory that a run is planned to take."""

LEAST_CALL, MOST_CALL = 4096, 32768
"""Tokens in a call of a block that keep a GPU busy, and with which it is fastest."""

MOST_TEXT = 8192
"""Maximum number of tokens of text in a trace."""


@dataclass(frozen=True)
class Sizes:
    """Sizes that suit a device."""

    text: int
    """Tokens of text in a trace."""
    call: int
    """Tokens that go through a block together."""
    requests: int = 1
    """Number of requests to a server for the schedules of a batch."""

    def state_cap(self, tokens: int) -> int:
        """Return how many states of `tokens` tokens go through a block together."""
        return max(1, self.call // tokens)


ON_CPU = Sizes(text=1024, call=2048)
"""What a processor's caches are used best by."""

ON_SERVER = Sizes(text=8192, call=65536)
"""What suits a large GPU, where its free memory is not known."""


def choose(model: Model, states: Callable[[], int], length: int) -> Sizes:
    """Return the sizes of a run.

    Parameters
    ----------
    model : Model
        An opened model, whose weights are on the device already.
    states : callable
        Returns the number of states that are alive at once; called if sizes depend on it.
    length : int
        Number of tokens of the longest sequence.
    """
    device = model.identity["device"]
    if device == "cpu":
        return ON_CPU
    free = None if model.request else free_bytes(model)
    if free is None:
        return ON_SERVER
    item = {"float64": 8, "float32": 4}.get(model.identity["dtype"], 2)
    if model.offloaded:
        # The weights of a block are on the device while it runs.
        free -= item * max(model.block_parameters)
    of_states, of_call = states() * model.width, numbers_of_token(model, length)
    return fitting(free, of_states * item, of_call * item, length)


def of_clean_run(model: Model, length: int) -> int:
    """Return the tokens of text in a trace of the clean run, for sequences of at most `length`."""
    # Of each block, what is captured is alive with the state that enters it.
    return choose(model, lambda: 2 * model.layers, length).text


def fitting(free: int, state_bytes: int, call_bytes: int, length: int) -> Sizes:
    """Return the sizes that fit into free memory.

    Parameters
    ----------
    free : int
        Bytes that are free.
    state_bytes : int
        Bytes of all live states of one token.
    call_bytes : int
        Bytes that a call of a block takes for one token.
    length : int
        Number of tokens of the longest sequence.

    >>> fitting(40 * 2**30, 65 * 8192, 2 * 106_000, 256)
    Sizes(text=8192, call=32768, requests=1)
    """
    planned = SHARE * free
    call = min(MOST_CALL, power_of_two(planned / 2 / call_bytes))
    if call < LEAST_CALL:
        call = min(LEAST_CALL, power_of_two((planned - length * state_bytes) / call_bytes))
    text = power_of_two((planned - call * call_bytes) / state_bytes)
    return Sizes(text=min(MOST_TEXT, call, text), call=call)


def free_bytes(model: Model) -> int | None:
    """Return the bytes that are free on the device of a model, or None where it cannot be told.

    Of several devices it is the one with the least.
    """
    kind = model.identity["device"]
    weights = model.traced._module.parameters()
    devices = {weight.device for weight in weights if weight.device.type == kind}
    if kind == "cuda":
        return min(map(_free_on_cuda, devices or {torch.device(kind)}))
    if kind == "mps":
        return torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory()
    return None


def _free_on_cuda(device: torch.device) -> int:
    free, _ = torch.cuda.mem_get_info(device)
    # Torch keeps what it freed for itself.
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def power_of_two(number: float) -> int:
    """Return the largest power of two up to a number, and 1 for any below."""
    return 1 << max(0, int(number).bit_length() - 1) if number >= 1 else 1
