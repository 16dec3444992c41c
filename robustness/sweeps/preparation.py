"""What a sweep is to do, laid out before any of it is run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.files import changes, output
from robustness.files.labels import Labels, blank_dataset, schedule_labels, sweep_labels
from robustness.files.metrics import (
    CLEAN_READOUTS,
    DEFAULT_READOUTS,
    DISTRIBUTION,
    LOGITS,
    MODAL_SHARE,
    NONFINITE,
    READOUTS,
    Metric,
    TokenMetric,
)
from robustness.files.provenance import file_attributes
from robustness.files.sequences import sequence_coords
from robustness.files.tally import modal_share
from robustness.models import sublayer_calls
from robustness.models.model import Model
from robustness.runs import batching, server_sizes, sizes
from robustness.runs.server_sizes import Reads
from robustness.runs.settings import RunOptions
from robustness.schedules import Schedule, check, clean, count_blocks, interventions, to_text
from robustness.schedules.division import Division
from robustness.schedules.plan import Plan
from robustness.sweeps import metric_trial, shards
from robustness.sweeps.settings import USUAL_INTERVENTIONS, SweepSettings
from robustness.text.corpus import Corpus

TALLIES = 3
"""Arrays of token counts in memory at once: of all batches, of the last batch, and their sum."""

TALLY_ITEM_BYTES = 4
"""Bytes of one count."""


@dataclass(frozen=True, eq=False)
class PreparedSweep:
    """A sweep before any of it is run."""

    settings: SweepSettings
    model: Model
    """The model, with what is known of its sublayers where a schedule has any."""
    text: Corpus
    """All of the text."""
    corpus: Corpus
    """All of the text, or the share of it that a shard measures."""
    schedules: list[Schedule]
    labels: Labels
    """Where each schedule stands in the dataset."""
    batches: list[slice]
    """Sequences of every batch."""
    state_cap: int
    """Maximum number of states that go through a block together."""
    division: Division
    """The schedules, and how they are divided over requests."""
    requests: int
    """Number of requests to a server for the schedules of a batch."""
    readouts: list[TokenMetric]
    """Readouts of every schedule, and metrics of the user's own."""
    clean_readouts: list[TokenMetric]
    """Readouts of the clean run."""
    blank: xr.Dataset
    """The dataset to fill, with settings and provenance."""

    @property
    def divergences(self) -> list[str]:
        """The kinds of KL that are read."""
        return [metric.name for metric in self.readouts if metric.name == "kl"]

    @property
    def further(self) -> list[TokenMetric]:
        """The metrics that are not made of the sums from which the other readouts are."""
        return [metric for metric in self.readouts if metric.reads != DISTRIBUTION]

    @property
    def reads_logits(self) -> bool:
        """Whether a metric reads logits, which are computed for it again."""
        return any(metric.reads == LOGITS for metric in self.further)

    def plan(self, cap: int, group: slice | None = None) -> Plan:
        """Compile all schedules or a group, as a plan that stacks at most `cap` states."""
        return self.division.plan(cap, group)

    def tokens(self, rows: slice) -> int:
        """Return how many tokens a batch has when its sequences are padded."""
        return (rows.stop - rows.start) * int(self.corpus.lengths[rows].max())

    def complete(self, dataset: xr.Dataset, tally: NDArray[np.int32]) -> xr.Dataset:
        """Add the variables that follow from the most likely tokens of all sequences."""
        kind = next(dataset[metric.name].dtype for metric in self.readouts)
        share = self.labels.spread(modal_share(tally, kind))
        return dataset.assign({MODAL_SHARE.name: (self.labels.dims, share, MODAL_SHARE.attrs)})


def prepare(
    model: Model, corpus: Corpus, settings: SweepSettings, options: RunOptions
) -> PreparedSweep:
    """Check that a sweep is possible, and return what it is to do.

    Parameters
    ----------
    model : Model
        An opened model.
    corpus : Corpus
        Token sequences.
    settings : SweepSettings
        What is measured.
    options : RunOptions
        How the run proceeds. A shard that continues at `out` is a share of the batches that its
        run began with.

    Raises
    ------
    Refusal
        If an intervention or schedule is not possible, or the corpus does not fit the model.
    """
    schedules, labels, described = lay_out_schedules(model, settings)
    batching.check_corpus(model, corpus)
    metric_trial.try_out(settings, model)
    sublayer_calls.check_schedules(model, schedules)
    division = divide(model, schedules)
    chosen = choose_sizes(model, division, corpus.context, reads_of(corpus, settings), options)
    batch_tokens = options.batch_tokens or chosen.text
    batches = corpus.batches(batch_tokens)
    widest = batches[0].stop * corpus.context
    state_cap = options.state_cap or chosen.state_cap(widest)
    text, described_corpus, first = corpus, corpus.settings(), 0
    if settings.shard is not None:
        rows = _share(text, settings.shard, options, batch_tokens)
        corpus, first = text.part(rows), rows.start
        batches = corpus.batches(batch_tokens)
        described_corpus = shards.shard_attributes(text, corpus, settings.shard)
    readouts = [metric for metric in READOUTS if metric.name in settings.readouts]
    kept = [m for m in CLEAN_READOUTS if m.name.removeprefix("clean_") in settings.readouts]
    attributes = {
        **model.identity,
        **model.execution,
        **described_corpus,
        **described,
        "batch_tokens": batch_tokens,
        "state_cap": state_cap,
        changes.REQUESTS: len(division.groups(chosen.requests)) if model.request else None,
        "until_se": settings.until_se,
        "per_token": "yes" if settings.per_token else None,
        "readouts": None if set(settings.readouts) == set(DEFAULT_READOUTS) else _names(readouts),
        "metrics": _names(settings.metrics) or None,
        "metrics_sha256": metric_trial.digest(settings.metrics),
    }
    readouts += settings.metrics
    sequences = sequence_coords(corpus.document, first, corpus.counted())
    blank = blank_dataset(
        _variables(readouts, kept, labels.dims),
        {**labels.coords, **sequences},
        file_attributes(attributes, options.command),
        model.precision,
    )
    return PreparedSweep(
        settings,
        model,
        text,
        corpus,
        schedules,
        labels,
        batches,
        state_cap,
        division,
        chosen.requests,
        readouts,
        kept,
        blank,
    )


def lay_out_schedules(
    model: Model, settings: SweepSettings
) -> tuple[list[Schedule], Labels, dict[str, str]]:
    """Return the schedules, how they are laid out, and what the file says of them.

    Raises
    ------
    Refusal
        If an intervention or schedule is not possible.
    """
    if settings.schedules:
        checked = [check(schedule, model.layers) for schedule in settings.schedules]
        schedules = list(dict.fromkeys(checked))
        total = sum(map(count_blocks, schedules))
        what = f"the {len(schedules):,} schedules"
        interventions.check_total(total, what, "ask for fewer at a time")
        texts = ", ".join(map(to_text, schedules))
        described = {"measurement": "schedules", "schedules": texts}
        return schedules, schedule_labels(schedules), described
    asked = settings.interventions
    records = interventions.resolve(USUAL_INTERVENTIONS if asked is None else asked)
    placed = interventions.schedules(records, model.layers, settings.layers)
    labels = sweep_labels(placed, model.layers, settings.layers)
    kind = "pairs" if "layer_to" in labels.dims else "sweep"
    described = {"measurement": kind, "interventions": ", ".join(record.name for record in records)}
    if settings.layers is not None:
        described["layers"] = ", ".join(map(str, labels.coords["layer"]))
    return list(placed.values()), labels, described


def reads_of(corpus: Corpus, settings: SweepSettings) -> Reads:
    """Return what is read of the final states of a sequence."""
    return Reads(
        corpus.context if corpus.authors_alignment else corpus.context - 2,
        diverges="kl" in settings.readouts,
        logits=any(metric.reads == LOGITS for metric in settings.metrics),
    )


def divide(model: Model, schedules: Sequence[Schedule]) -> Division:
    """Return the division of schedules of a model."""
    return Division(schedules, clean(model.layers), batching.SCHEDULES_PER_GROUP)


def choose_sizes(
    model: Model, division: Division, length: int, reads: Reads, options: RunOptions
) -> sizes.Sizes:
    """Return the sizes of a run of schedules, for sequences of at most `length` tokens.

    Parameters
    ----------
    model : Model
        An opened model.
    division : Division
        The schedules.
    length : int
        Number of tokens of the longest sequence.
    reads : Reads
        What is read of a sequence.
    options : RunOptions
        `batch_tokens` and `state_cap` are those of the user.
    """
    if not model.request:
        return sizes.choose(model, lambda: division.plan().peak, length)
    text, cap = options.batch_tokens, options.state_cap
    return server_sizes.choose(model, division, length, reads, text, cap)


def _share(corpus: Corpus, shard: shards.Shard, options: RunOptions, batch_tokens: int) -> slice:
    """Return the sequences of a shard: a share of the batches that its run began with."""
    began_with = None
    if options.out is not None and not options.fresh:
        began_with = changes.began_with(output.resumed_attributes(options.out))
    return shard.rows(corpus.batches(began_with or batch_tokens))


def _names(metrics: Sequence[Metric]) -> str:
    return ", ".join(metric.name for metric in metrics)


def _variables(
    readouts: Sequence[Metric], clean_readouts: Sequence[Metric], dims: tuple[str, ...]
) -> dict[str, tuple[Metric, tuple[str, ...]]]:
    """Return the metric and the dimensions of every variable."""
    variables: dict[str, tuple[Metric, tuple[str, ...]]] = {}
    for metric in readouts:
        variables[metric.name] = (metric, (*dims, "sequence"))
    for metric in clean_readouts:
        variables[metric.name] = (metric, ("sequence",))
    variables[NONFINITE.name] = (NONFINITE, (*dims, "sequence"))
    return variables


def tally_bytes(prepared: PreparedSweep) -> int:
    """Return the bytes of the counts of most likely tokens, of every schedule and token."""
    cells = len(prepared.schedules) * prepared.model.vocabulary
    return TALLIES * cells * TALLY_ITEM_BYTES


def check_memory(prepared: PreparedSweep) -> None:
    """Refuse more schedules than memory has room for counts of their most likely tokens."""
    needed, free = tally_bytes(prepared), psutil.virtual_memory().available
    if needed > free:
        raise Refusal(
            f"counting the most likely of {prepared.model.vocabulary:,} tokens under "
            f"{len(prepared.schedules):,} schedules takes {needed / 1e9:.3g} GB, and "
            f"{free / 1e9:.3g} GB are free: ask for some `layers`, or for fewer interventions at a "
            "time"
        )
