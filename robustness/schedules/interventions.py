"""Schedules of interventions on a model, by intervention and layer or pair of layers."""

from collections.abc import Sequence

from robustness.errors import Refusal
from robustness.schedules.built_in import FORMS, PAIRS, intervention
from robustness.schedules.intervention import Intervention
from robustness.schedules.schedule import Schedule

Place = tuple[str, *tuple[int, ...]]
"""Place of a schedule in a sweep: the intervention, and the layer or the two layers."""

LARGEST_TOTAL = 5_000_000
"""Maximum number of blocks that all schedules of a sweep execute together.

All of `PAIRS` at every pair of 126 layers, as the deepest models have, execute 4 million. Their
plan takes half a minute and 1.3 GB, and grows with the number of blocks.
"""


def resolve(interventions: Sequence[str | Intervention]) -> list[Intervention]:
    """Return the record of every intervention, which is given by its name or as a record.

    Raises
    ------
    Refusal
        If none is given, one is unknown or given twice, or some are made at pairs of layers and
        others at single ones.
    """
    if isinstance(interventions, (str, Intervention)) or callable(interventions):
        raise Refusal(f"interventions are a list, such as ['drop'], not {interventions!r:.80}")
    if not interventions:
        raise Refusal(f"no intervention was asked for; there are: {', '.join((*FORMS, *PAIRS))}")
    records = [_record(given) for given in interventions]
    names = [record.name for record in records]
    for name in names:
        if names.count(name) > 1:
            raise Refusal(f"intervention {name!r} was asked for twice")
    # Results over pairs have one dimension more than those over layers.
    pairs = [record.name for record in records if record.pair]
    if 0 < len(pairs) < len(names):
        single = next(name for name in names if name not in pairs)
        raise Refusal(
            f"{pairs[0]} is made at every two layers and {single} at every one: run them apart"
        )
    return records


def _record(given: object) -> Intervention:
    """Return the record of an intervention that is given by its name or as a record."""
    if isinstance(given, str):
        return intervention(given)
    if not isinstance(given, Intervention):
        raise Refusal(
            "an intervention is a name, or a record Intervention(name, span, edit) of a function "
            f"of your own, not {given!r:.80}"
        )
    built_in = [form.read(given.name) for form in FORMS.values()] + [PAIRS.get(given.name)]
    for record in built_in:
        if record is not None and _function(record) is not _function(given):
            raise Refusal(f"{given.name} is the name of a built-in intervention: choose another")
    return given


def _function(record: Intervention) -> object:
    """Return the function of an edit without the numbers that are bound to it."""
    return getattr(record.edit, "func", record.edit)


def schedules(
    interventions: Sequence[str | Intervention], layers: int, chosen: Sequence[int] | None = None
) -> dict[Place, Schedule]:
    """Return every schedule of some interventions, by intervention and layer or pair of layers.

    With `chosen`, only the schedules at these layers are returned.

    >>> schedules(["swap"], 3)
    {('swap', 0): (1, 0, 2), ('swap', 1): (0, 2, 1)}
    >>> schedules(["skip-span"], 2)
    {('skip-span', 0, 0): (1,), ('skip-span', 1, 1): (0,)}
    """
    records = resolve(interventions)
    for layer in chosen or ():
        if not 0 <= layer < layers:
            raise Refusal(f"there is no layer {layer}: the model has layers 0 to {layers - 1}")
    _check_total(records, layers, chosen)
    made: dict[Place, Schedule] = {}
    for record in records:
        for place, schedule in record.schedules(layers, chosen).items():
            made[record.name, *place] = schedule
    if not made:
        names = ", ".join(record.name for record in records)
        raise Refusal(f"{names} fits at none of the layers that were asked for")
    return made


def check_total(count: int, what: str, remedy: str) -> None:
    """Refuse schedules that together execute more blocks than a plan can hold."""
    if count > LARGEST_TOTAL:
        raise Refusal(
            f"{what} execute about {count:,} blocks, and {LARGEST_TOTAL:,} are the most: {remedy}"
        )


def _check_total(
    records: Sequence[Intervention], layers: int, chosen: Sequence[int] | None
) -> None:
    """Refuse too many schedules before any of them is built: they may not fit into memory."""
    counts = {record.name: len(record.places(layers, chosen)) for record in records}
    total = sum(counts[record.name] * (layers + record.added) for record in records)
    check_total(
        total,
        f"the {sum(counts.values()):,} schedules of {', '.join(counts)}",
        "ask for some `layers`, or for fewer interventions at a time",
    )
