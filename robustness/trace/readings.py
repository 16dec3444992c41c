"""Readings of a plan's final states: readouts of every query, and scores of continuations.

Both run the rows of a plan from the clean states of a trace, and reduce each final state at once,
so that no more than one reading is kept.

Trace bodies reach this module, so it keeps to plain functions of tensors: it travels as source.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from robustness.trace import (
    block_calls,
    interpreter,
    readout,
    token_metrics,
    transfer,
    unembedding,
)

if TYPE_CHECKING:
    from robustness.trace.types import (
        CleanReadout,
        CleanRun,
        ContinuationQueries,
        Modules,
        PlanRows,
        QueryPositions,
        Readout,
        ReadoutQueries,
        TokenFacts,
    )


def measure(plan: PlanRows, clean: CleanRun, queries: ReadoutQueries) -> dict[str, Tensor]:
    """Run a plan and reduce every readout to one number per sequence.

    Parameters
    ----------
    plan : PlanRows
        What is executed.
    clean : CleanRun
        What the plan starts from.
    queries : ReadoutQueries
        The positions that are read, and what is kept of them.

    Returns
    -------
    dict of str to tensor
        Per schedule the divergences, `agreement`, `loss`, `entropy`, `accuracy` and `nonfinite`
        (schedule, sequence); further metrics like the readouts; `clean_loss`, `clean_entropy`,
        `clean_accuracy` (sequence); and how often each token is the most likely one, as
        `count_tokens` returns it, all on the CPU.
        Where single tokens are wanted, of each readout `token_NAME` too (…, sequence, query), NaN
        where none counts or is known.
    """
    modules, final = clean["modules"], clean["final"]
    here: ReadoutQueries = block_calls.move(queries, final.device)

    def head_input(state: Tensor) -> Tensor:
        kept = state.to(final.device)[:, here["first"] : here["last"]]
        return through_norms(kept, modules).flatten(0, 1)

    targets = here["targets"].flatten()
    reference = _reference(head_input(final), targets, modules, here["vocabulary"])
    read_out: list[Readout] = [{} for _ in range(plan["schedules"])]
    further = here["metrics"]

    def read(finals: list[Tensor], ends: Sequence[Any]) -> None:
        states = torch.stack([head_input(state) for state in finals])
        values = readout.compare(states, reference, here["divergences"])
        values |= token_metrics.evaluate(further, states, reference, values)
        for position, indices in enumerate(ends):
            for index in indices:
                read_out[index] = {name: value[position] for name, value in values.items()}

    clean.get("run", interpreter.run)(plan["rows"], clean, read)
    masks, per_token = masks_of(here), here["per_token"]
    measured = reduce(read_out, masks, per_token, further=[name for name, _, _ in further])
    unchanged = reduce([reference["readout"]], masks, per_token)
    for name in sorted(reference["readout"].keys() - {"top"}):
        measured[f"clean_{name}"] = unchanged[name][0]
        if per_token:
            measured[f"token_clean_{name}"] = unchanged[f"token_{name}"][0]
    on_host = transfer.together(measured, transfer.HOST)
    # On the host, so that a device is not waited for once per schedule.
    counts = count_tokens(on_host.pop("top"))
    return on_host | counts


def count_tokens(top: Tensor) -> dict[str, Tensor]:
    """Count the tokens of every schedule, which are fewer numbers than the tokens themselves.

    Parameters
    ----------
    top : int32 tensor of shape (schedule, sequence, query)
        The most likely token of each query; -1 where none counts or is known.

    Returns
    -------
    dict of str to int32 tensor
        `top_sizes` (schedule,), the number of different tokens of each schedule; `top_tokens`
        (n,), these tokens in ascending order, one schedule after the other; and `top_counts` (n,),
        how often each is there.
    """
    tokens, counts = [], []
    for of_schedule in top.flatten(1):
        histogram = torch.bincount(of_schedule[of_schedule >= 0])
        tokens.append(histogram.nonzero()[:, 0])
        counts.append(histogram[tokens[-1]])
    sizes = torch.tensor([len(found) for found in tokens], dtype=torch.int32)
    joined = {"top_tokens": torch.cat(tokens), "top_counts": torch.cat(counts)}
    return {"top_sizes": sizes} | {name: value.int() for name, value in joined.items()}


def score(plan: PlanRows, clean: CleanRun, queries: ContinuationQueries) -> dict[str, Tensor]:
    """Run a plan and score the tokens of continuations; only their positions are unembedded.

    Parameters
    ----------
    plan : PlanRows
        What is executed.
    clean : CleanRun
        What the plan starts from.
    queries : ContinuationQueries
        The tokens of the continuations.

    Returns
    -------
    dict of str to tensor of shape (schedule, token)
        `loss`, in nats, and `hit`, whether the token is the most likely one, on the CPU.
    """
    modules, final = clean["modules"], clean["final"]
    here: ContinuationQueries = block_calls.move(queries, final.device)

    def head_input(state: Tensor) -> Tensor:
        kept = state.to(final.device)[here["item"], here["query"]]
        return through_norms(kept[None], modules)[0]

    reference = _reference(head_input(final), here["targets"], modules, here["vocabulary"])
    losses: list[Any] = [None] * plan["schedules"]
    hits: list[Any] = [None] * plan["schedules"]

    def read(finals: list[Tensor], ends: Sequence[Any]) -> None:
        states = torch.stack([head_input(state) for state in finals])
        values = readout.compare(states, reference, ())
        for position, indices in enumerate(ends):
            for index in indices:
                losses[index] = values["loss"][position]
                hits[index] = values["accuracy"][position]

    clean.get("run", interpreter.run)(plan["rows"], clean, read)
    scored = {"loss": torch.stack(losses), "hit": torch.stack(hits)}
    return transfer.together(scored, transfer.HOST)


def through_norms(state: Tensor, modules: Modules) -> Tensor:
    """Return what the head receives of a final state."""
    if modules["norms"]:
        state = block_calls.owned(state, modules)
    for norm in modules["norms"]:
        state = norm(state)
    return state


def _reference(hidden: Tensor, targets: Tensor, modules: Modules, vocabulary: int) -> CleanReadout:
    """Read the clean run's final states, as the head receives them (token, width)."""
    predict = unembedding.predictor(modules["head"], modules["squash"])

    def head(states: Tensor) -> Tensor:
        return predict(block_calls.owned(states, modules))

    return readout.reference(hidden, targets, head, vocabulary, modules["matrix"])


def masks_of(queries: QueryPositions | TokenFacts) -> dict[str, Tensor]:
    """Return the mask (sequence, query) of the queries that count for each readout, by its name."""
    of_tokens = {"compared": queries["compared"], "predicted": queries["predicted"]}
    return {name: of_tokens[tokens] for name, tokens in queries["readout_tokens"].items()}


def reduce(
    readouts: Sequence[Readout],
    masks: Mapping[str, Tensor],
    per_token: bool = False,
    further: Collection[str] = (),
) -> dict[str, Tensor]:
    """Return means over the tokens that count, and what else is kept of a sequence.

    Sums are taken in float64, and so on the CPU where the device has none.

    Parameters
    ----------
    readouts : sequence of dict
        Readouts of every schedule (token,).
    masks : mapping of str to tensor of shape (sequence, query)
        Queries that count for each readout, and for `top`.
    per_token : bool
        Whether the readouts of single tokens are kept too.
    further : collection of str
        Names of readouts that do not tell whether the logits of a token are numbers.
    """
    stacked = {}
    for name in readouts[0]:
        stacked[name] = torch.stack([one[name] for one in readouts])
    place = transfer.place_of_sums(stacked["top"].device)
    masks = transfer.together(masks, place)
    values = {}
    for name, value in transfer.together(stacked, place).items():
        values[name] = value.unflatten(-1, masks["top"].shape)
    top = values.pop("top")
    telling = [torch.isfinite(value) for name, value in values.items() if name not in further]
    finite = torch.stack(telling).all(0)
    reduced = {}
    for name, value in values.items():
        mask = masks[name]
        # A token with a bad logit has a top-1 prediction too, which must not pass for a number.
        known = torch.where(finite, value, torch.full_like(value, torch.nan))
        kept = torch.where(mask, known, torch.zeros_like(value)).double().sum(-1)
        reduced[name] = (kept / mask.sum(-1)).to(value.dtype)
        if per_token:
            reduced[f"token_{name}"] = torch.where(mask, known, torch.full_like(value, torch.nan))
    counted = torch.stack([*masks.values()]).any(0)
    reduced["nonfinite"] = (~finite & counted).sum(-1).to(torch.int32)
    known_top = torch.where(masks["top"] & finite, top, torch.full_like(top, -1))
    reduced["top"] = known_top.to(torch.int32)
    return reduced
