"""What a search is to do, laid out before any of it is run."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import xarray as xr

from robustness.errors import Refusal
from robustness.files import changes, output, ownership
from robustness.files.kinds.searches import SEARCH
from robustness.files.labels import blank_dataset
from robustness.files.metrics import CLEAN_READOUTS
from robustness.files.provenance import file_attributes
from robustness.models import sublayer_calls
from robustness.models.model import Model
from robustness.pruning import methods
from robustness.pruning.choice import maps_path
from robustness.pruning.known import digests
from robustness.pruning.measuring import Measurer
from robustness.pruning.parts import Parts, divide
from robustness.pruning.racing import Cut
from robustness.pruning.record import CLEAN_LOSS
from robustness.pruning.settings import PruningSettings
from robustness.pruning.sizes import size_of
from robustness.pruning.units import Unit, units_of, without
from robustness.runs.settings import RunOptions
from robustness.schedules import Schedule, clean
from robustness.text.corpus import Corpus


@dataclass(frozen=True, eq=False)
class Search:
    """A search before any of it is run."""

    model: Model
    parts: Parts
    settings: PruningSettings
    units: tuple[Unit, ...]
    last: int
    """Number of removed units after which it ends, if known, and otherwise the largest possible."""
    methods: tuple[str, ...]
    measurer: Measurer
    batches: list[slice]
    """Sequences of every batch; those of the searched part come first."""
    searched: int
    """Number of batches of the searched part."""
    blank: xr.Dataset
    """The dataset without candidates."""

    def is_reached(self, cut: Cut) -> bool:
        """Whether the target is reached without some units."""
        if len(cut) == self.last:
            return True
        if self.settings.to_params is None:
            return False
        count = parameters_of(self.model, self.schedule(cut))
        return count <= target_parameters(self.model, self.settings)

    def schedule(self, cut: Cut) -> Schedule:
        """Return the schedule without some units."""
        return without(self.model.layers, cut)


def prepare(
    model: Model, corpora: Sequence[Corpus], settings: PruningSettings, options: RunOptions
) -> Search:
    """Check that a search is possible, and return what it is to do; see `prune`."""
    layers = range(model.layers) if settings.layers is None else sorted(set(settings.layers))
    for layer in layers:
        if not 0 <= layer < model.layers:
            raise Refusal(f"{model.name} has no layer {layer}: it has 0 to {model.layers - 1}")
    units = units_of(settings.units, layers)
    sublayer_calls.check_schedules(model, [without(model.layers, {unit}) for unit in units[:1]])
    last = _last(model, settings, units)
    parts = divide(corpora, settings.holdout)
    if options.out is not None:
        ownership.check(options.out, SEARCH)
        if settings.heal:
            ownership.check(maps_path(options.out), ownership.MAPS)
    if options.out is not None and not options.fresh:
        # Batches stay those that the search began with, whatever memory is free now.
        began = changes.began_with(output.resumed_attributes(options.out))
        options = replace(options, batch_tokens=began or options.batch_tokens)
    measurer = Measurer(model, parts.corpus, options)
    searched, held_out = parts.batches(measurer.batch_tokens)
    chosen = methods.chosen(settings, len(units))
    if settings.is_counted:
        methods.check_sets(chosen, units, last)
    whole = size_of(model, clean(model.layers), parts.corpus.context)
    attributes = {
        "measurement": SEARCH,
        **model.identity,
        **model.execution,
        **parts.corpus.settings(),
        "units": settings.units,
        "target": settings.target,
        "objective": settings.objective,
        "methods": ", ".join(chosen),
        "layers": None if settings.layers is None else ", ".join(map(str, layers)),
        "holdout": settings.holdout,
        "level": settings.level,
        "beam": settings.beam,
        "finalists": settings.finalists,
        "heal": "yes" if settings.heal else None,
        "clean_parameters": whole.parameters,
        "clean_kv_bytes": whole.kv_bytes,
        "measured_from": digests(settings.measured),
        "batch_tokens": measurer.batch_tokens,
        "state_cap": measurer.state_cap,
    }
    loss = next(metric for metric in CLEAN_READOUTS if metric.name == CLEAN_LOSS)
    coords = {
        "sequence": np.arange(len(parts.source)),
        "document": ("sequence", parts.corpus.document),
        "part": ("sequence", parts.part),
        "source": ("sequence", parts.source),
    }
    blank = blank_dataset(
        {CLEAN_LOSS: (loss, ("sequence",))},
        coords,
        file_attributes(attributes, options.command),
        model.precision,
    )
    batches = [*searched, *held_out]
    return Search(
        model, parts, settings, units, last, chosen, measurer, batches, len(searched), blank
    )


def _last(model: Model, settings: PruningSettings, units: Sequence[Unit]) -> int:
    """Return after how many removed units a search ends, or how many can be removed at most."""
    count = len(units)
    # A schedule executes at least one block or sublayer.
    whole = model.layers * (1 if settings.units in ("block", "attention", "mlp") else 2)
    most = count - (count == whole and settings.units in ("block", "sublayer"))
    if not most:
        raise Refusal(
            f"of {count} {_kind(settings)} none can be removed, since a model keeps at least one"
        )
    wanted = settings.remove
    if settings.keep is not None:
        wanted = count - settings.keep
        if wanted < 1:
            raise Refusal(
                f"`keep` {settings.keep} leaves nothing to remove: of {count} {_kind(settings)}, "
                f"keep {count - 1} or fewer"
            )
    if wanted is not None and wanted > most:
        raise Refusal(
            f"{wanted} {_kind(settings)} cannot be removed: {most} of the model's {count} can"
            if settings.layers is None
            else f"{wanted} {_kind(settings)} cannot be removed: `layers` has {most} that can"
        )
    if settings.to_params is not None:
        _check_parameters(model, settings, units[:most])
    return wanted or most


def _kind(settings: PruningSettings) -> str:
    names_of = {"block": "blocks", "attention": "attentions", "mlp": "MLPs"}
    return names_of.get(settings.units, "attentions and MLPs")


def target_parameters(model: Model, settings: PruningSettings) -> int:
    """Return the number of parameters that a search comes down to."""
    wanted = settings.to_params or 0.0
    whole = parameters_of(model, clean(model.layers))
    return int(wanted * whole if wanted < 1 else wanted)


def parameters_of(model: Model, schedule: Schedule) -> int:
    """Return the number of parameters that a schedule takes."""
    # Operations, which are not read, are counted for one token.
    return size_of(model, schedule, 1).parameters


def _check_parameters(model: Model, settings: PruningSettings, units: Sequence[Unit]) -> None:
    """Refuse a number of parameters that removing all units would not reach."""
    wanted = target_parameters(model, settings)
    least = parameters_of(model, without(model.layers, units))
    whole = parameters_of(model, clean(model.layers))
    if not least <= wanted < whole:
        raise Refusal(
            f"{wanted:,} parameters cannot be reached: {model.name} has {whole:,}, and {least:,} "
            f"without all {_kind(settings)} that can be removed"
        )
