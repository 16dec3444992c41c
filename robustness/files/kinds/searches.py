"""Kind of files that `prune` writes."""

from robustness.files.metrics import READOUTS, TokenMetric
from robustness.files.precision_floor import (
    FLOOR,
    FLOOR_AGREEMENT,
    FLOOR_ERROR,
    FLOOR_FROM,
    FLOOR_TOKENS,
)
from robustness.files.ranges import SHARE
from robustness.files.schema import (
    NUMBER,
    SEQUENCES,
    TEXT,
    Kind,
    Variable,
    number_labels,
    text_labels,
    whole_from,
)

SEARCH = "search"
"""Attribute `measurement` of the file of a search."""

READ = tuple(metric for metric in READOUTS if metric.name in ("kl", "agreement", "loss"))
"""Readouts of every candidate."""

SEARCHED, HELD_OUT = "search", "held-out"
"""Labels of the two parts of the text: the one that candidates are chosen on, and the one that the
chosen are judged on."""

NOT_WEIGHED, DROPPED, TIED, CHOSEN, NOT_RACED = range(5)
"""Values of `standing`: how a candidate came out of a step of a method. One that was not raced was
measured on a share of the text to find those that were, and did not compete."""

STANDINGS = ("not weighed", "dropped", "tied", "chosen", "not raced")
"""Names of these values."""


def _read(metric: TokenMetric) -> Variable:
    return Variable(("candidate", "sequence"), "f", metric.least, metric.most)


SEARCHES = {
    SEARCH: Kind(
        {
            **{metric.name: _read(metric) for metric in READ},
            "clean_loss": Variable(("sequence",), "f"),
            "measured": Variable(("candidate", "batch"), "i", 0, 1),
            "predicted": Variable(("candidate",), "f"),
            "parameters": Variable(("candidate",), "i", 0),
            "flops_share": Variable(("candidate",), "f", 0),
            "kv_bytes": Variable(("candidate",), "i", 0),
            "chosen": Variable(("strategy", "step"), "U"),
            "standing": Variable(("strategy", "step", "candidate"), "i", NOT_WEIGHED, NOT_RACED),
            "tokens_read": Variable(("strategy", "step"), "i", 0),
            "tokens_in_full": Variable(("strategy", "step"), "i", 0),
            "applications": Variable(("strategy", "step"), "i", 0),
            "probability": Variable(("strategy", "step", "unit"), "f", *SHARE),
            "rank_correlation": Variable(("step", "text", "text_to"), "f", -1.001, 1.001),
            "healed": Variable(("healing",), "U"),
            "milliseconds": Variable(("version", "phase", "repetition"), "f", 0),
        },
        {
            **SEQUENCES,
            "part": Variable(("sequence",), "U"),
            "source": Variable(("sequence",), "U"),
            "removed": Variable(("candidate",), "U"),
            "size": Variable(("candidate",), "i", 0),
            **text_labels("candidate", "strategy", "unit", "text", "text_to", "healing"),
            **text_labels("version", "phase"),
            **number_labels(1, "step"),
            **number_labels(0, "batch", "repetition"),
        },
        attrs={
            **dict.fromkeys(
                ("units", "target", "objective", "methods", "heal", "layers", "measured_from"), TEXT
            ),
            **dict.fromkeys(("holdout", "level"), NUMBER),
            **dict.fromkeys(("beam", "finalists", "clean_kv_bytes"), whole_from(0)),
            "clean_parameters": whole_from(1),
            "state_cap": whole_from(1),
            **dict.fromkeys((FLOOR, FLOOR_ERROR, FLOOR_AGREEMENT), NUMBER),
            FLOOR_TOKENS: whole_from(1),
            FLOOR_FROM: TEXT,
        },
        needed_attrs=("context", "units", "objective"),
    )
}
"""Kinds of files that `prune` writes."""
