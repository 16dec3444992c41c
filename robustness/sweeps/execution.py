"""Executes schedules: opens the one trace that runs them, here or on a server."""

import warnings
from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import nnsight
import numpy as np
import torch
import xarray as xr
from nnsight import TransformersModel
from nnsight.intervention.iterator import Iterations
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from robustness.errors import Refusal
from robustness.files import changes, resumable
from robustness.files.metrics import NONFINITE
from robustness.models import dissection
from robustness.models.model import Model
from robustness.ndif import answer
from robustness.runs import remote_traffic
from robustness.runs.batching import check_tokens, queries, rest
from robustness.runs.out_of_memory import Matrix, Portions
from robustness.runs.settings import Progress
from robustness.schedules.plan import Plan
from robustness.schedules.schedule import Schedule, check, clean, lowest_block, plain, to_text
from robustness.statistics import stopping
from robustness.sweeps import token_file
from robustness.sweeps.preparation import READOUT_NAMES, Work, check_room, lay_out
from robustness.sweeps.shards import Shard
from robustness.text.corpus import Corpus
from robustness.trace import block_calls, interpreter, readings, unembedding

# A rewired model asks for its blocks at every step of a generation, and so for one step too many.
warnings.filterwarnings("ignore", message=".*was never reached: the loop asked for a step")


def rewire(model: Model, schedule: Schedule | str) -> TransformersModel:
    """Return an nnsight model that executes a schedule; the original is left as it is.

    In a trace of it, the natural pass hands the entering residual stream from block to block
    unchanged, and its last block leaves what the schedule makes of it; norm and head follow.

    Parameters
    ----------
    model : Model
        An opened model.
    schedule : tuple of int, Attention, Mlp or Parallel, or str
        The steps to execute, in order.

    Returns
    -------
    TransformersModel
        To be traced like any other, under the names of the original. It has no cache of keys and
        values: generate with `use_cache=False`.

    Raises
    ------
    Refusal
        If the schedule is empty or names a block that is not there, or executes a sublayer alone
        and blocks are not the sum of theirs.
    """
    schedule = check(schedule, model.layers)
    model = dissection.ready(model, [schedule])
    order = [plain(step) for step in schedule]
    parts, attentions = dissection.parts(model, order)
    blocks, returns, last = model.blocks, model.returns, model.layers - 1
    with model.traced.edit() as (_, edited):
        # Not the tracer's own `iter`, which would send the finished tracer along to a server.
        for _ in Iterations()[:]:
            contexts: dict[str, Any] = {"blocks": [], "attentions": {}}
            for layer, block in enumerate(blocks):
                entering, context = block_calls.split_inputs(block.inputs)
                contexts["blocks"].append(context)
                if layer in attentions:
                    # It has to run for its attention to be called; what it makes is replaced.
                    _, context = block_calls.split_inputs(attentions[layer].inputs)
                    contexts["attentions"][layer] = context
                if layer == last:
                    for step in order:
                        entering = interpreter.execute(step, entering, contexts, parts)
                left = block_calls.as_returned(entering, returns)
                if layer in attentions:
                    block.output = left
                else:
                    block.skip(left)
    return edited


def residuals(
    model: Model, tokens: ArrayLike, schedule: Schedule | str | None = None
) -> xr.DataArray:
    """Return the residual stream before the first and after every step of a schedule.

    Parameters
    ----------
    model : Model
        An opened model.
    tokens : array_like of int, shape (sequence, token)
        Token ids.
    schedule : tuple of int, Attention, Mlp or Parallel, or str, optional
        The steps to execute; the clean schedule without it.

    Returns
    -------
    DataArray
        Dimensions (step, sequence, token, feature). Step k is the state after k steps, 0 what
        enters the first; the coordinate `block` names the block that was executed, the lowest of
        several, and `executed` the step as text; -1 and nothing at step 0.

    Raises
    ------
    Refusal
        As for `rewire`.
    """
    schedule = clean(model.layers) if schedule is None else check(schedule, model.layers)
    ids = torch.as_tensor(np.asarray(tokens), device=model.device)
    check_tokens(model, ids)
    model = dissection.ready(model, [schedule])
    order = [plain(step) for step in schedule]
    parts, attentions = dissection.parts(model, order)
    blocks, head = model.blocks, model.head
    wanted = {"states": ((len(order) + 1, *ids.shape, model.width), answer.STATES)}
    request = model.asking(answer.size(wanted))
    with torch.no_grad(), model.traced.trace(ids, use_cache=False, **request):
        entering, contexts = interpreter.enter(blocks, attentions)
        block_calls.pass_over(head)
        hidden = entering[0]
        states = [hidden.cpu()]
        for step in order:
            hidden = interpreter.execute(step, hidden, contexts, parts)
            states.append(hidden.cpu())
        stacked = nnsight.save(torch.stack(states))
    stacked = answer.take({"states": stacked}, wanted)["states"]
    return xr.DataArray(
        stacked.to(torch.promote_types(stacked.dtype, torch.float32)).numpy(),
        dims=("step", "sequence", "token", "feature"),
        coords={
            "step": np.arange(len(schedule) + 1),
            "block": ("step", [-1, *map(lowest_block, schedule)]),
            "executed": ("step", ["", *(to_text((step,)) for step in schedule)]),
            "schedule": to_text(schedule),
        },
        attrs={"long_name": "residual stream", "units": "1", **model.identity},
        name="residual",
    )


def sweep(
    model: Model,
    corpus: Corpus,
    interventions: Sequence[str] | None = None,
    *,
    schedules: Sequence[Schedule | str] = (),
    layers: Sequence[int] | None = None,
    readouts: Sequence[str] = READOUT_NAMES,
    batch_tokens: int | None = None,
    cap: int | None = None,
    until_se: float | None = None,
    shard: Shard | None = None,
    per_token: bool = False,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Progress | None = None,
    tell: Callable[[str], object] = lambda text: None,
) -> xr.Dataset:
    """Run interventions at every layer over a corpus and compare each with the clean model.

    All schedules of a batch of text run in one trace, from the clean pass that the same trace
    takes, and no shared prefix is computed twice.

    Parameters
    ----------
    model : Model
        An opened model.
    corpus : Corpus
        Token sequences.
    interventions : sequence of str, optional
        Names as in `robustness.schedules.interventions.FORMS`, or all as in `PAIRS`, made at every
        two layers; drop and swap where neither these nor schedules are given.
    schedules : sequence of tuple or str, optional
        Free schedules, measured instead of interventions.
    layers : sequence of int, optional
        The layers at which interventions are made; all without it.
    readouts : sequence of str
        Which of `kl`, `agreement`, `loss`, `entropy` and `accuracy` are measured.
    batch_tokens : int, optional
        Tokens of text in a trace.
    cap : int, optional
        The most states that go through a block together.
    until_se : float, optional
        The run stops after the first batch at which no mean KL has a larger relative standard
        error; see `robustness.statistics.stopping`.
    shard : Shard, optional
        The part of the batches that is run; see `robustness.sweeps.shards`.
    per_token : bool
        Whether readouts are kept of every token too, (…, sequence, token), in a file beside `out`,
        `NAME.tokens.nc`; see `robustness.sweeps.token_file`.
    out : str or path, optional
        Where the dataset is saved. What is done is kept beside it after every batch, and the same
        call goes on from there.
    fresh : bool
        Whether to throw away what is there.
    command : str
        The command line, for the record.
    progress : callable, optional
        Called at the start and after every batch.
    tell : callable
        Told when memory ran out and less is run at once from there on.

    Returns
    -------
    Dataset
        `kl`, `agreement`, `loss`, `entropy`, `accuracy`, `nonfinite` (intervention, layer,
        sequence), `modal_share` (intervention, layer), `clean_loss`, `clean_entropy` and
        `clean_accuracy` (sequence); with free schedules (schedule, …) instead. NaN where an
        intervention does not fit. Interventions on two layers have (intervention, layer, layer_to,
        sequence).

    Raises
    ------
    Refusal
        If an intervention or schedule is not possible, the corpus does not fit the model, or `out`
        holds a run of other settings.
    """
    there = {} if shard is None or out is None or fresh else resumable.resumed_attributes(Path(out))
    work = lay_out(
        model,
        corpus,
        interventions,
        schedules=schedules,
        layers=layers,
        readouts=readouts,
        batch_tokens=batch_tokens,
        cap=cap,
        until_se=until_se,
        shard=shard,
        per_token=per_token,
        command=command,
        divided_by=changes.began_with(there),
    )
    if per_token and out is None:
        raise Refusal("values of single tokens are streamed to disk: say where, with out")
    check_room(work)
    model = work.model
    lower = "fewer --tokens, some --layers, or --readout agreement alone"
    run = resumable.Run(
        work.blank,
        np.zeros((len(work.runs), model.vocabulary), np.int32),
        path=out if out is None else Path(out),
        fresh=fresh,
        complete=work.complete,
    )
    single = None
    if per_token:
        metrics = [*work.chosen, *work.kept]
        single = token_file.Tokens(
            Path(str(out)), work.blank, work.corpus, metrics, work.labels.dims, model.precision
        )
    with run:
        if single is not None:
            single.begin(run.done, run.finished)
        left = rest(work.parts, [run.done])
        plan = lru_cache(maxsize=1)(work.plan)
        divergences = len(work.divergences)
        crossings = [
            remote_traffic.of_plan(model, plan(work.cap), width, width, divergences)
            for width in map(work.tokens, left if model.sandboxed else [])
        ]
        remote_traffic.allow(model, crossings, lower)
        total = len(work.corpus.document)
        if progress is not None:
            progress(run.done, total)
        portions = Portions(run.lost, tell)
        portions.begin(changes.lowered(run.dataset.attrs))
        matrix = portions.matrix(model.unembedding, run.done) if left else (None, None)
        for rows in left:
            if until_se is not None and run.done and stopping.is_enough(run.measured(), until_se):
                break
            values, counts = _batch(work, rows, portions, plan, matrix)
            if single is not None:
                each = [name for name in values if name.startswith(token_file.PREFIX)]
                single.add(rows, {name: values.pop(name) for name in each})
            run.add(rows, values, counts=counts)
            if progress is not None:
                progress(run.done, total)
        if until_se is None:
            dataset = run.finish()
            if single is not None:
                kept = {*changes.ADJUSTABLE, *changes.NOTES} & dataset.attrs.keys()
                single.finish(**{name: dataset.attrs[name] for name in kept})
            elif out is not None:
                token_file.remove(Path(out))
            return dataset
        read = int(work.corpus.lengths[: run.done].sum())
        dataset = run.finish(**stopping.record(run.measured(), read))
        if out is not None and single is None:
            token_file.remove(Path(out))
        return dataset


def _batch(
    work: Work,
    rows: slice,
    portions: Portions,
    plan: Callable[[int], Plan],
    matrix: Matrix,
) -> tuple[dict[str, NDArray[Any]], NDArray[np.int32]]:
    """Measure a batch, in smaller portions where memory runs out.

    Returns
    -------
    values : dict of str to array
        Of every variable, laid out, its last dimension the sequence.
    counts : int32 array of shape (run, token)
        Of the most likely tokens.
    """

    def planned(cap: int | None) -> Plan:
        return plan(min(work.cap, cap or work.cap))

    def part_of(part: slice, cap: int | None) -> tuple[dict[str, NDArray[Any]], NDArray[Any]]:
        found = measure(
            work.model,
            work.corpus,
            part,
            planned(cap),
            matrix,
            work.divergences,
            work.per_token,
        )
        return _lay_out(work, found), found["top"]

    found: list[dict[str, NDArray[Any]]] = []
    counts = np.zeros((len(work.runs), work.model.vocabulary), np.int32)
    parts = portions.each(rows, part_of, work.tokens, lambda cap: planned(cap).widest)
    for _, (values, tops) in parts:
        found.append(values)
        for run, top in enumerate(tops):
            counts[run] += np.bincount(top[top >= 0], minlength=work.model.vocabulary)
    joined = {name: np.concatenate([each[name] for each in found], axis=-1) for name in found[0]}
    return joined, counts


def _lay_out(work: Work, measured: dict[str, NDArray[Any]]) -> dict[str, NDArray[Any]]:
    """Lay out what some sequences yielded as it stands in the file, and that of single tokens."""
    unchanged = {metric.name: measured[metric.name] for metric in work.kept}
    changed = {m.name: work.labels.spread(measured[m.name]) for m in (*work.chosen, NONFINITE)}
    singles = {}
    if work.per_token:
        names = [f"{token_file.PREFIX}{metric.name}" for metric in (*work.chosen, *work.kept)]
        first = 0 if work.corpus.authors_alignment else 1
        singles = token_file.spread(
            {name: measured[name] for name in names}, work.labels, first, work.corpus.context
        )
    return changed | unchanged | singles


def measure(
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
        raise answer.other(f"a token is {top.max()}")
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
    grows = dissection.grows(model)
    order, clean_states, schedules = plan.rows, plan.clean_states, plan.schedules
    parts, attentions = dissection.parts(model, {step for _, step, *_ in order})
    request = model.asking(answer.size(wanted))
    with torch.no_grad(), model.traced.trace(tokens, use_cache=False, **request):
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
