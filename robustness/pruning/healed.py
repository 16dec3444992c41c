"""Healing of what a search has chosen, judged on the part of the text that is held out."""

from dataclasses import dataclass, replace

from robustness.healing import heal
from robustness.models.model import Model
from robustness.pruning.measuring import Measurer
from robustness.pruning.preparation import Search
from robustness.pruning.record import Record
from robustness.runs.settings import RunOptions
from robustness.schedules import Schedule, to_text

CUT = "cut"
"""Label of the schedule that is healed, beside the kinds of healing."""


@dataclass(frozen=True, eq=False)
class Healings:
    """Healed schedules of a search."""

    schedules: dict[str, Schedule]
    """Schedule by the kind of healing; `cut` is the one without any."""
    model: Model
    """The model with the maps that they take."""


def measure_healed(
    search: Search, record: Record, schedule: Schedule, options: RunOptions
) -> Healings:
    """Fit what stands in the place of removed blocks, and measure it on the held-out part.

    It is fitted on the searched part.

    Parameters
    ----------
    search : Search
        What was looked for.
    record : Record
        What is measured, to which the healed schedules are added.
    schedule : tuple
        Schedule to heal.
    options : RunOptions
        Sizes of batches, and callbacks.
    """
    corpus = search.parts.corpus.take(search.parts.searched)
    options.tell(f"healing {to_text(schedule)}")
    healed = heal(search.model, schedule, corpus)
    for name, reason in healed.impossible.items():
        options.tell(f"no {name} heals it: {reason}")
    model = search.model.with_maps(healed.maps) if healed.maps.matrices else search.model
    sized = replace(options, batch_tokens=search.measurer.batch_tokens)
    measurer = Measurer(model, search.parts.corpus, sized)
    measurer.begin("", lambda sequence, text, lacking: None)
    wanted = list(healed.schedules.values())
    for batch in range(search.searched, len(search.batches)):
        missing = record.missing(wanted, batch)
        if missing:
            rows = search.batches[batch]
            record.add(missing, batch, measurer.measure(missing, rows))
    return Healings({CUT: schedule, **healed.schedules}, model)
