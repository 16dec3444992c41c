"""Runs a plan on a batch of text, in one trace, here or on a server."""

from collections.abc import Callable, Sequence
from typing import Any

import nnsight
import torch
from numpy.typing import NDArray
from torch import Tensor

from robustness.models import sublayer_calls
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs.batching import queries
from robustness.runs.out_of_memory import Matrix
from robustness.schedules.plan import Plan
from robustness.text.corpus import Corpus
from robustness.trace import block_calls, interpreter, readings, unembedding


def measure_batch(
    model: Model,
    corpus: Corpus,
    rows: slice,
    plan: Plan,
    matrix: Matrix,
    divergences: Sequence[str] = ("kl",),
    per_token: bool = False,
) -> dict[str, NDArray[Any]]:
    """Run a plan on a batch of sequences, in one trace; see `comparison.measure`."""
    ids = torch.from_numpy(corpus.tokens[rows, : corpus.lengths[rows].max()]).to(model.device)
    text = {
        "vocabulary": model.vocabulary,
        "divergences": list(divergences),
        "per_token": per_token,
        **queries(corpus, rows, ids),
    }
    wanted = _wanted(plan.schedules, text)
    found = run_plan(model, ids, plan, text, matrix, readings.measure, wanted)
    top = found["top"]
    if model.request and not -1 <= top.min() <= top.max() < model.vocabulary:
        raise answer.unexpected(f"a token is {top.max()}")
    return found


def _wanted(schedules: int, text: dict[str, Any]) -> answer.Wanted:
    """Return what `comparison.measure` gives, with the shapes it has."""
    single = tuple(text["targets"].shape)
    sequences = single[:1]
    names = [*text["divergences"], "agreement", "loss", "entropy", "accuracy"]
    unchanged = ["clean_loss", "clean_entropy", "clean_accuracy"]
    wanted = {name: ((schedules, *sequences), answer.FLOATS) for name in names}
    wanted |= {name: (sequences, answer.FLOATS) for name in unchanged}
    wanted["nonfinite"] = ((schedules, *sequences), answer.INTEGERS)
    wanted["top"] = ((schedules, *single), answer.INTEGERS)
    if text["per_token"]:
        wanted |= {f"token_{name}": ((schedules, *single), answer.FLOATS) for name in names}
        wanted |= {f"token_{name}": (single, answer.FLOATS) for name in unchanged}
    return wanted


def run_plan(
    model: Model,
    tokens: Tensor,
    plan: Plan,
    text: dict[str, Any],
    matrix: Matrix,
    read: Callable[..., dict[str, Tensor]],
    wanted: answer.Wanted,
) -> dict[str, NDArray[Any]]:
    """Run a plan from the clean pass over tokens, in one trace, and read its final states there.

    Parameters
    ----------
    model : Model
        An opened model.
    tokens : int64 tensor of shape (sequence, token)
        On the model's device.
    plan : Plan
        What is executed.
    text, matrix
        As for `read`.
    read : callable
        With the arguments of `comparison.measure`; it travels.
    wanted : mapping
        What `read` gives, which is all that a server may send.
    """
    blocks, norms, head, squash = model.blocks, model.norms, model.head, model.squash
    order, clean_states, schedules = plan.rows, plan.clean_states, plan.schedules
    parts, attentions = sublayer_calls.called_parts(model, {step for _, step, *_ in order})
    grows = sublayer_calls.growth(model, attentions)
    request = model.asking(answer.size(wanted))
    with model.lock, torch.no_grad(), model.traced.trace(tokens, use_cache=False, **request):
        entering, contexts = interpreter.enter(blocks, attentions)
        final = norms[0].input if norms else head.input
        block_calls.pass_over(head)
        entering.append(final)
        states = {depth: entering[depth] for depth in clean_states}
        del entering
        measured = nnsight.save(
            read(
                order,
                schedules,
                states,
                final,
                contexts,
                grows,
                parts,
                norms,
                unembedding.predictor(head, squash),
                text,
                matrix,
            )
        )
    if model.request:
        measured = answer.take(measured, wanted)
    return {name: value.numpy() for name, value in measured.items()}
