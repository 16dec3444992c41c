"""Runs a sweep over a corpus, batch by batch, and saves what it measures."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import xarray as xr

from robustness.errors import Refusal
from robustness.files import changes, resumable
from robustness.files.metrics import DEFAULT_READOUTS, TokenMetric
from robustness.files.precision_floor import FLOOR, floor_attributes
from robustness.models.model import Model
from robustness.runs.ahead import TokensAhead
from robustness.runs.announcement import announce
from robustness.runs.batching import rest
from robustness.runs.budget import pace_of
from robustness.runs.heap import kept_heap
from robustness.runs.portions import Portions
from robustness.runs.settings import Progress, RunOptions, Tell, silent
from robustness.schedules import Schedule
from robustness.schedules.intervention import Intervention
from robustness.statistics import stopping
from robustness.sweeps import token_file
from robustness.sweeps.batch import Values, measure_in_portions, work_of
from robustness.sweeps.precision_floor import measure_floor
from robustness.sweeps.preparation import PreparedSweep, check_memory, prepare
from robustness.sweeps.requests import foresee
from robustness.sweeps.settings import SweepSettings
from robustness.sweeps.shards import Shard
from robustness.sweeps.token_file import TokenFile
from robustness.sweeps.tracing import measure_batch
from robustness.text.corpus import Corpus

LESS_TRAFFIC = "fewer `tokens` or some `layers`"
"""What lowers the traffic of a sweep on a sandboxed server."""


def sweep(  # noqa: PLR0913 - its keywords are the settings
    model: Model,
    corpus: Corpus,
    interventions: Sequence[str | Intervention] | None = None,
    *,
    schedules: Sequence[Schedule | str] = (),
    layers: Sequence[int] | None = None,
    readouts: Sequence[str] = DEFAULT_READOUTS,
    metrics: Sequence[TokenMetric] = (),
    until_se: float | None = None,
    shard: Shard | None = None,
    per_token: bool = False,
    batch_tokens: int | None = None,
    state_cap: int | None = None,
    out: str | Path | None = None,
    fresh: bool = False,
    command: str = "",
    progress: Progress | None = None,
    tell: Tell = silent,
) -> xr.Dataset:
    """Run interventions at every layer over a corpus and compare each with the clean model.

    All schedules of a batch of text run in one trace, from the clean pass of the same trace, and no
    shared prefix is computed twice.

    Parameters
    ----------
    model : Model
        An opened model.
    corpus : Corpus
        Token sequences.
    interventions : sequence of str or Intervention, optional
        Names as in `robustness.schedules.built_in.FORMS`, or all as in `PAIRS`, made at every
        two layers, or records of one's own; drop and swap where neither these nor schedules are
        given.
    schedules : sequence of tuple or str, optional
        Free schedules, measured instead of interventions.
    layers : sequence of int, optional
        Layers at which interventions are made; all without it.
    readouts : sequence of str
        Readouts to measure, of `robustness.sweeps.settings.READOUT_NAMES`.
    metrics : sequence of TokenMetric
        Metrics of one's own, measured besides: records with a function.
    until_se : float, optional
        Relative standard error at which the run stops: after the first batch at which that of no
        mean KL is larger; see `robustness.statistics.stopping`.
    shard : Shard, optional
        Share of the batches that is run; see `robustness.sweeps.shards`.
    per_token : bool
        Whether the readouts of every token are kept too, (…, sequence, token), in a file beside
        `out`, `NAME.tokens.nc`; see `robustness.sweeps.token_file`.
    batch_tokens : int, optional
        Tokens of text in one trace.
    state_cap : int, optional
        Maximum number of states that go through a block together.
    out : str or path, optional
        Path of the file to write. Finished batches are kept beside it, and the same call continues
        from there.
    fresh : bool
        Whether an existing file or an unfinished run at `out` is discarded.
    command : str
        Command line to record in the file.
    progress : callable, optional
        Called with the number of finished sequences and of all, at the start and after every batch.
    tell : callable
        Called with a message where memory ran out and smaller portions follow.

    Returns
    -------
    Dataset
        `kl`, `agreement`, `loss`, `entropy`, `accuracy`, `nonfinite` (intervention, layer,
        sequence), `modal_share` (intervention, layer), `clean_loss`, `clean_entropy` and
        `clean_accuracy` (sequence), and metrics of one's own like `kl`; with free schedules
        (schedule, …) instead. NaN where an intervention does not fit. Interventions on two layers
        have (intervention, layer, layer_to, sequence).

    Raises
    ------
    Refusal
        If an intervention or schedule is not possible, the corpus does not fit the model, or `out`
        holds a run of other settings.
    """
    settings = SweepSettings(
        interventions=interventions,
        schedules=schedules,
        layers=layers,
        readouts=readouts,
        metrics=metrics,
        until_se=until_se,
        shard=shard,
        per_token=per_token,
    )
    options = RunOptions(
        out=None if out is None else Path(out),
        fresh=fresh,
        batch_tokens=batch_tokens,
        state_cap=state_cap,
        command=command,
        progress=progress,
        tell=tell,
    )
    return run_sweep(model, corpus, settings, options)


def run_sweep(
    model: Model, corpus: Corpus, settings: SweepSettings, options: RunOptions
) -> xr.Dataset:
    """Run a sweep, as `sweep` does, from its settings and options.

    Parameters
    ----------
    model : Model
        An opened model.
    corpus : Corpus
        Token sequences.
    settings : SweepSettings
        What is measured.
    options : RunOptions
        How the run proceeds.

    Returns
    -------
    Dataset
        As of `sweep`.

    Raises
    ------
    Refusal
        As of `sweep`.
    """
    prepared = prepare(model, corpus, settings, options)
    if settings.per_token and options.out is None:
        raise Refusal("the readouts of single tokens are streamed to disk: give a path with `out`")
    check_memory(prepared)
    run = resumable.Run(
        prepared.blank,
        np.zeros((len(prepared.schedules), prepared.model.vocabulary), np.int32),
        path=options.out,
        fresh=options.fresh,
        complete=prepared.complete,
    )
    with run, kept_heap(model.device):
        tokens = _token_file(prepared, options, run)
        # Before the first batch, so that an interrupted run has it, and measures it once.
        if not run.finished and FLOOR not in run.dataset.attrs:
            run.dataset.attrs |= measure_floor(prepared.model, prepared.text, options.tell)
        _run_batches(prepared, options, run, tokens)
        return _finish(prepared, options, run, tokens)


def _token_file(
    prepared: PreparedSweep, options: RunOptions, run: resumable.Run
) -> TokenFile | None:
    """Open the file of single tokens where they are kept."""
    if options.out is None or not prepared.settings.per_token:
        return None
    tokens = TokenFile(
        options.out,
        prepared.blank,
        prepared.corpus,
        [*prepared.readouts, *prepared.clean_readouts],
        prepared.labels.dims,
        prepared.model.precision,
    )
    tokens.begin(run.done, run.finished)
    return tokens


def _run_batches(
    prepared: PreparedSweep, options: RunOptions, run: resumable.Run, tokens: TokenFile | None
) -> None:
    """Measure the batches that are not done yet, until all are or enough is known."""
    model, until_se = prepared.model, prepared.settings.until_se
    progress = options.progress or (lambda done, total: None)
    batches, total = rest(prepared.batches, [run.done]), len(prepared.corpus.document)
    if model.request or options.foresee is not None:
        announce(foresee(prepared, batches), options, LESS_TRAFFIC)
    progress(run.done, total)
    portions = Portions(run.lost, options.tell, pace=pace_of(model, options.tell))
    portions.begin(changes.lowered(run.dataset.attrs))
    matrix = portions.matrix(model.unembedding, run.done) if batches else None
    ahead = TokensAhead(model, prepared.corpus, batches)

    work = work_of(prepared, lambda rows, plan: measure_batch(prepared, rows, plan, matrix, ahead))
    for rows in batches:
        if until_se is not None and run.done and stopping.is_enough(run.measured(), until_se):
            break
        counts = np.zeros_like(run.tally)
        values = measure_in_portions(prepared, rows, portions, work, counts)
        if tokens is not None:
            tokens.add(rows, _take_tokens(values))
        run.add(rows, values, counts=counts)
        progress(run.done, total)


def _take_tokens(values: Values) -> Values:
    """Remove the values of single tokens from those of a batch, and return them."""
    names = [name for name in values if name.startswith(token_file.PREFIX)]
    return {name: values.pop(name) for name in names}


def _finish(
    prepared: PreparedSweep, options: RunOptions, run: resumable.Run, tokens: TokenFile | None
) -> xr.Dataset:
    """Save the finished dataset, and the file of single tokens where they are kept."""
    stopped = {}
    if prepared.settings.until_se is not None:
        read = int(prepared.corpus.lengths[: run.done].sum())
        stopped = stopping.stopping_attributes(run.measured(), read)
    dataset = run.finish(**stopped)
    if tokens is not None:
        kept = {*changes.ADJUSTABLE, *changes.NOTES} & dataset.attrs.keys()
        notes = {name: dataset.attrs[name] for name in kept}
        tokens.finish(**notes, **floor_attributes(dataset.attrs))
    elif options.out is not None:
        token_file.remove(options.out)
    return dataset
