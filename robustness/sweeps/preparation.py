"""What a sweep is to do, laid out before any of it is run."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import psutil
import xarray as xr
from numpy.typing import NDArray

from robustness.errors import Refusal
from robustness.files.labels import Labels, blank_dataset, schedule_labels, sweep_labels
from robustness.files.metrics import CLEAN_READOUTS, MODAL_SHARE, NONFINITE, READOUTS, Metric
from robustness.files.provenance import file_attributes
from robustness.files.sequences import sequence_coords
from robustness.files.tally import modal_share
from robustness.models import dissection
from robustness.models.model import Model
from robustness.runs.batching import ROOM, check_corpus, state_cap, tokens_of_text
from robustness.schedules.interventions import check_total
from robustness.schedules.interventions import schedules as sweep_schedules
from robustness.schedules.plan import Plan, compile_plan
from robustness.schedules.schedule import Schedule, check, clean, count_blocks, to_text
from robustness.statistics import stopping
from robustness.sweeps import shards
from robustness.sweeps.shards import Shard
from robustness.text.corpus import Corpus

USUAL = ("drop", "swap")
"""The interventions that are made where none are asked for."""

COUNTS = 3
"""Arrays of counts of tokens: those of all batches, of the last one, and their sum."""

READOUT_NAMES = tuple(metric.name for metric in READOUTS)


@dataclass(frozen=True, eq=False)
class Work:
    """What a sweep is to do, before any of it is run."""

    model: Model
    """With what is known of its sublayers, where a schedule has any."""
    corpus: Corpus
    """All of the text, or a shard of it."""
    runs: list[Schedule]
    labels: Labels
    parts: list[slice]
    """The sequences of every batch."""
    cap: int
    chosen: list[Metric]
    kept: list[Metric]
    """Readouts of the clean run."""
    blank: xr.Dataset
    """What is to be filled, with settings and provenance."""
    per_token: bool

    @property
    def divergences(self) -> list[str]:
        """The kinds of KL that are read."""
        return [metric.name for metric in self.chosen if metric.name == "kl"]

    def plan(self, cap: int) -> Plan:
        """Compile the schedules."""
        return compile_plan(self.runs, clean(self.model.layers), cap=cap, room=ROOM)

    def tokens(self, rows: slice) -> int:
        """Return how many tokens a batch has when its sequences are filled up."""
        return (rows.stop - rows.start) * int(self.corpus.lengths[rows].max())

    def complete(self, dataset: xr.Dataset, tally: NDArray[np.int32]) -> xr.Dataset:
        """Add what follows from the most likely tokens of all sequences."""
        kind = next(dataset[metric.name].dtype for metric in self.chosen)
        share = self.labels.spread(modal_share(tally, kind))
        return dataset.assign({MODAL_SHARE.name: (self.labels.dims, share, MODAL_SHARE.attrs)})


def count_bytes(work: Work) -> int:
    """Return the bytes of the counts of most likely tokens, of every schedule and token."""
    return COUNTS * len(work.runs) * work.model.vocabulary * 4


def check_room(work: Work) -> None:
    """Refuse more schedules than there is memory for the counts of their most likely tokens."""
    needed, free = count_bytes(work), psutil.virtual_memory().available
    if needed > free:
        raise Refusal(
            f"the most likely of {work.model.vocabulary:,} tokens under {len(work.runs):,} "
            f"schedules take {needed / 1e9:.3g} GB to count, and {free / 1e9:.3g} GB are free: ask "
            "for some --layers, or for fewer interventions at a time"
        )


def lay_out(
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
    command: str = "",
    divided_by: int | None = None,
) -> Work:
    """Check what is asked of a sweep, and return what it is to do; as for `sweep`.

    A shard is one of the run whose batches have `divided_by` tokens: those that it began with,
    where it goes on with others.
    """
    strange = [name for name in readouts if name not in READOUT_NAMES]
    if strange or not readouts:
        what = f"no readout {strange[0]!r}" if strange else "no readout was asked for"
        raise Refusal(f"{what}; there are: {', '.join(READOUT_NAMES)}")
    if until_se is not None:
        stopping.check_bound(until_se)
        if "kl" not in readouts:
            raise Refusal("--until-se looks at the KL, which is not among the readouts asked for")
        if per_token:
            raise Refusal("a run that stops by itself keeps no single tokens: leave one out")
        if shard is not None:
            raise Refusal(
                "a shard does not know when all of them have enough: leave out --until-se"
            )
    if schedules:
        if layers is not None or interventions:
            what = (
                "interventions are" if layers is None else "layers go with interventions, which are"
            )
            raise Refusal(f"{what} run apart from schedules of one's own")
        if isinstance(schedules, str):
            raise Refusal(f"schedules are a list: [{schedules!r}]")
        runs = list(dict.fromkeys(check(schedule, model.layers) for schedule in schedules))
        total = sum(map(count_blocks, runs))
        check_total(total, f"the {len(runs):,} schedules", "ask for fewer at a time")
        labels = schedule_labels(runs)
        asked = {"measurement": "schedules", "schedules": ", ".join(map(to_text, runs))}
    else:
        interventions = USUAL if interventions is None else interventions
        named = sweep_schedules(interventions, model.layers, layers)
        runs = list(named.values())
        labels = sweep_labels(named, model.layers, layers)
        kind = "pairs" if "layer_to" in labels.dims else "sweep"
        asked = {"measurement": kind, "interventions": ", ".join(interventions)}
        if layers is not None:
            asked["layers"] = ", ".join(map(str, labels.coords["layer"]))
    check_corpus(model, corpus)
    model = dissection.ready(model, runs)
    batch_tokens = batch_tokens or tokens_of_text(model)
    parts = corpus.batches(batch_tokens)
    cap = cap or state_cap(model, parts[0].stop * corpus.context)
    described, first = corpus.settings(), 0
    if shard is not None:
        whole, rows = corpus, shard.rows(corpus.batches(divided_by or batch_tokens))
        corpus, first = whole.part(rows), rows.start
        parts, described = corpus.batches(batch_tokens), shards.settings(whole, corpus, shard)
    chosen = [metric for metric in READOUTS if metric.name in readouts]
    settings = {
        **model.identity,
        **described,
        **asked,
        "batch_tokens": batch_tokens,
        "state_cap": cap,
        "until_se": until_se,
        "per_token": "yes" if per_token else None,
        "readouts": None if len(chosen) == len(READOUTS) else ", ".join(m.name for m in chosen),
    }
    kept = [m for m in CLEAN_READOUTS if m.name.removeprefix("clean_") in readouts]
    variables = {metric.name: (metric, (*labels.dims, "sequence")) for metric in chosen}
    variables |= {metric.name: (metric, ("sequence",)) for metric in kept}
    variables[NONFINITE.name] = (NONFINITE, (*labels.dims, "sequence"))
    blank = blank_dataset(
        variables,
        {**labels.coords, **sequence_coords(corpus.document, first, corpus.counted())},
        file_attributes(settings, command),
        model.precision,
    )
    return Work(model, corpus, runs, labels, parts, cap, chosen, kept, blank, per_token)
