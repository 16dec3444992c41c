"""Kinds of files that `sweep` writes."""

from robustness.files.metrics import CLEAN_READOUTS, MODAL_SHARE, NONFINITE, READOUTS
from robustness.files.precision_floor import (
    FLOOR,
    FLOOR_AGREEMENT,
    FLOOR_ERROR,
    FLOOR_FROM,
    FLOOR_TOKENS,
)
from robustness.files.ranges import SHARE
from robustness.files.schema import (
    LAYERS,
    NUMBER,
    NUMBER_OR_NAN,
    PART,
    SEQUENCES,
    TEXT,
    Kind,
    Variable,
    number_labels,
    text_labels,
    whole_from,
)


def _sweep(*runs: str) -> Kind:
    """Return what a sweep holds, over interventions and layers, or over schedules."""
    rows = (*runs, "sequence")
    variables = {metric.name: Variable(rows, "f", metric.least, metric.most) for metric in READOUTS}
    for metric in CLEAN_READOUTS:
        variables[metric.name] = Variable(("sequence",), "f", metric.least, metric.most)
    variables[NONFINITE.name] = Variable(rows, "i", 0)
    variables[MODAL_SHARE.name] = Variable(runs, "f", *SHARE)
    variables["token_id"] = Variable(("sequence", "token"), "i", 0)
    for name in ("compared", "predicted"):
        variables[name] = Variable(("sequence", "token"), "i", 0, 1)
    labels = {**SEQUENCES, "schedule": Variable(runs, "U"), **number_labels(0, "token")}
    if "layer" in runs:
        labels |= {**LAYERS, **text_labels("intervention"), **number_labels(0, *runs[1:])}
    return Kind(
        variables,
        labels,
        attrs={
            **dict.fromkeys(
                ("interventions", "schedules", "layers", "readouts", "metrics", "per_token"), TEXT
            ),
            **dict.fromkeys(("corpus_sequences", "corpus_tokens", "documents"), whole_from(0)),
            **dict.fromkeys(("shards_created", "shards_command"), TEXT),
            "state_cap": whole_from(1),
            "until_se": NUMBER,
            "until_se_reached": NUMBER_OR_NAN,
            "shard": PART,
            **dict.fromkeys((FLOOR, FLOOR_ERROR, FLOOR_AGREEMENT), NUMBER),
            FLOOR_TOKENS: whole_from(1),
            FLOOR_FROM: TEXT,
        },
        needed_attrs=("context",),
        own=Variable(rows, "f"),
    )


SWEEPS = {
    "sweep": _sweep("intervention", "layer"),
    "pairs": _sweep("intervention", "layer", "layer_to"),
    "schedules": _sweep("schedule"),
}
