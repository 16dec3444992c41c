"""Generation: continuations of a prompt by a model whose blocks run in other orders."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import nnsight
import torch
from torch import Tensor

from robustness.errors import Refusal
from robustness.models import pass_check
from robustness.models.exact_products import exact_products
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.reordered.rebuilding import rebuild
from robustness.reordered.settings import Sampling
from robustness.runs import remote_traffic
from robustness.runs.settings import Progress
from robustness.schedules import Schedule, check, clean
from robustness.schedules.passes import compile_passes
from robustness.schedules.plan import Plan, compile_plan
from robustness.sweeps.rewiring import rewire
from robustness.text import encoding
from robustness.trace import passes


@dataclass(frozen=True)
class Continuation:
    """Continuation of a prompt under one schedule."""

    schedule: Schedule
    """Steps that were executed."""
    tokens: tuple[int, ...]
    """Generated token ids, without the prompt."""
    text: str
    """Generated text; empty for a model without a tokenizer."""


def generate(
    model: Model,
    prompt: str | Sequence[int],
    schedules: Sequence[Schedule | str],
    sampling: Sampling | None = None,
    *,
    progress: Progress | None = None,
) -> list[Continuation]:
    """Continue a prompt under several schedules.

    A schedule of whole blocks runs in a plain model that is rebuilt in that order, with a cache of
    keys and values, if a configuration can describe the order. Any other schedule, and any on a
    server, runs in the rewired model, which computes every prefix again. Their logits are the same
    but for rounding.

    Parameters
    ----------
    model : Model
        An opened model.
    prompt : str or sequence of int
        Text, which gets the tokenizer's BOS if there is one, or token ids.
    schedules : sequence of tuple or str
        Schedules to execute, one after the other.
    sampling : Sampling, optional
        Choice of tokens; by default 40 tokens, the most likely one each time.
    progress : callable, optional
        Callback for the number of tokens generated, and the maximum of all.

    Returns
    -------
    list of Continuation
        Continuations in the order of the schedules.

    Raises
    ------
    Refusal
        If the prompt is empty, or too long for the tokens that are asked for, or a text without a
        tokenizer; a schedule is not possible; or draws are asked of a server, whose random numbers
        have no seed.
    """
    sampling = sampling or Sampling()
    checked = [check(schedule, model.layers) for schedule in schedules]
    if sampling.temperature and model.request:
        raise Refusal("random numbers of a server cannot be seeded: leave `temperature` at 0")
    ids = _encode(model, prompt)
    tokens, before = sampling.tokens, ids.shape[1]
    if model.context is not None and before + tokens > model.context:
        raise Refusal(
            f"a prompt of {before} tokens and {tokens} more are longer than {model.name} takes, "
            f"{model.context}: shorten the prompt, or ask for fewer `tokens`"
        )
    crossings = []
    for schedule in checked:
        crossings.append(remote_traffic.of_generation(model, schedule, before, tokens))
    remote_traffic.allow(model, crossings, "fewer `tokens`")
    report = progress or (lambda done, whole: None)
    options = generation_options(model, sampling)
    continuations, whole = [], tokens * len(checked)
    devices = [model.device] if model.device.type == "cuda" else []
    for number, schedule in enumerate(checked):

        def tell(done: int, earlier: int = number * tokens) -> None:
            report(earlier + done, whole)

        tell(0)
        # Seeded for each schedule, so that a continuation does not depend on the others. The state
        # of the caller's random numbers is restored.
        with torch.random.fork_rng(devices), torch.no_grad(), exact_products():
            torch.manual_seed(sampling.seed)
            written = _write(model, schedule, ids, options, tell)
        new = tuple(written[0, before:].tolist())
        text = model.tokenizer.decode(new, skip_special_tokens=True) if model.tokenizer else ""
        continuations.append(Continuation(schedule, new, text))
    report(whole, whole)
    return continuations


def generation_options(model: Model, sampling: Sampling) -> dict[str, Any]:
    """Return the arguments of transformers' `generate`."""
    options: dict[str, Any] = {
        "max_new_tokens": sampling.tokens,
        "num_beams": 1,
        "repetition_penalty": 1.0,
        "pad_token_id": _padding(model),
        "do_sample": bool(sampling.temperature),
    }
    if sampling.temperature:
        # The generation configuration of a model may exclude unlikely tokens.
        options |= {"temperature": sampling.temperature, "top_k": 0, "top_p": 1.0}
    return options


class _Counter:
    """Streamer of transformers that counts the generated tokens."""

    def __init__(self, tell: Callable[[int], object]) -> None:
        # From -1, since the first call is of the prompt.
        self._done, self._tell = -1, tell

    def put(self, _tokens: Tensor) -> None:
        self._done += 1
        self._tell(self._done)

    def end(self) -> None:
        pass


def _write(
    model: Model,
    schedule: Schedule,
    ids: Tensor,
    options: dict[str, Any],
    tell: Callable[[int], object],
) -> Tensor:
    """Return the tokens of prompt and continuation, int64 of shape (1, token)."""
    try:
        net: Any = rebuild(model, schedule)
    except Refusal:
        plan = compile_plan([schedule], clean(model.layers))
        if model.sandboxed and pass_check.as_passes(model, plan):
            return _write_in_passes(model, plan, ids, options)
        request = model.asking(ids.shape[1] + options["max_new_tokens"])
        rewired = rewire(model, schedule)
        with model.lock, rewired.generate(ids, use_cache=False, **options, **request) as tracer:
            result = tracer.result.save()
        return _checked(model, ids, options["max_new_tokens"], result)
    mask, counter = torch.ones_like(ids), _Counter(tell)
    written = net.generate(ids, attention_mask=mask, use_cache=True, streamer=counter, **options)
    return written.cpu()


def _write_in_passes(model: Model, plan: Plan, ids: Tensor, options: dict[str, Any]) -> Tensor:
    """Write with passes, of which fewer states cross the socket of a sandboxed server."""
    way, most = pass_check.walkway(model, ids), options["max_new_tokens"]
    rows, start = compile_passes(plan, model.layers), plan.clean_states
    given = {**options, "use_cache": False}
    request = model.asking(ids.shape[1] + most)
    with model.computing(), model.traced.session(**request):
        result = nnsight.save(passes.generate(rows, start, way, given, most))
    return _checked(model, ids, most, result)


def _checked(model: Model, ids: Tensor, most: int, written: Tensor) -> Tensor:
    """Return generated tokens on the CPU, after a check that they are the prompt and some more."""
    new = written.shape[-1] - ids.shape[1] if isinstance(written, Tensor) and written.ndim else -1
    if not 0 <= new <= most:
        raise answer.unexpected(f"it is not of {most} tokens")
    outputs = {"tokens": ((1, ids.shape[1] + new), answer.INTEGERS)}
    written = answer.take({"tokens": written}, outputs)["tokens"].cpu()
    same = torch.equal(written[:, : ids.shape[1]], ids.cpu().to(written.dtype))
    if not same or not 0 <= written.min() <= written.max() < model.vocabulary:
        raise answer.unexpected("it does not go on from the prompt with tokens of the model")
    return written


def _encode(model: Model, prompt: str | Sequence[int]) -> Tensor:
    """Return the token ids of a prompt, of shape (1, token)."""
    if not isinstance(prompt, str):
        ids = [int(token) for token in prompt]
    elif model.tokenizer is None:
        raise Refusal(f"{model.name} has no tokenizer: give token ids instead of a text")
    # Lone surrogates are what Python makes of bytes on the command line that are not UTF-8.
    elif not prompt.isascii() and any("\ud800" <= letter <= "\udfff" for letter in prompt):
        raise Refusal("the prompt is not UTF-8 text: give it in UTF-8")
    elif not prompt.strip():
        raise Refusal("the prompt is empty: there is nothing to continue")
    else:
        ids = encoding.encode_with_bos(model.tokenizer, prompt)
    if not ids:
        raise Refusal("the prompt is empty: there is nothing to continue")
    strange = [token for token in ids if not 0 <= token < model.vocabulary]
    if strange:
        raise Refusal(
            f"there is no token {strange[0]}: {model.name} has tokens 0 to {model.vocabulary - 1}"
        )
    return torch.tensor([ids], device=model.device)


def _padding(model: Model) -> int:
    """Return the padding token that transformers requires, although one sequence needs none."""
    return next(iter(pass_check.ending_tokens(model)), 0)
