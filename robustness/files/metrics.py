"""Records of the metrics in files: name, unit and description of each, and how it is measured."""

import inspect
import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from robustness.errors import Refusal
from robustness.files.ranges import SHARE

TOKENS = ("compared", "predicted")
"""Sets of tokens that a mean is over: those whose prediction is compared with the clean model's,
as for KL, and those whose next token is known, as for the loss."""

DISTRIBUTION = "distribution"
"""What the readouts of the project read: sums over the vocabulary, of which `trace.readout` makes
all of them together."""

FINAL_STATES, LOGITS, OTHER_READOUTS = "final states", "logits", "readouts"

READ = (FINAL_STATES, LOGITS, OTHER_READOUTS)
"""What the function of a metric may read."""

LEAST_INFORMATION = -0.1
"""Smallest value in nats that a file may hold: rounding takes a small divergence below 0."""

OCCUPIED = (
    "intervention layer layer_to schedule sequence document relative_depth token token_id compared "
    "predicted tokens_counted top"
).split()
"""Names in the file of a sweep that no metric may have."""

_NAME = re.compile("[a-z][a-z0-9_]{0,63}")


@dataclass(frozen=True)
class Metric:
    """Description of a variable of a file."""

    name: str
    unit: str
    """`nat`, or `1` for a share or a count."""
    long_name: str
    count: bool = field(default=False, kw_only=True)
    """Whether the variable is a whole number."""

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes of the variable in a file."""
        return {"units": self.unit, "long_name": self.long_name}


@dataclass(frozen=True, kw_only=True)
class TokenMetric(Metric):
    """A metric of single tokens, of which a sweep keeps the mean over the tokens of a sequence.

    One of one's own has a function. It travels to a server as source text: it calls torch and
    what it imports from `robustness.trace`, and changes none of its arguments.

    >>> def surprise(readouts, clean):
    ...     return readouts["loss"] - clean["loss"]
    >>> TokenMetric("surprise", "nat", "rise of the loss", function=surprise, tokens="predicted")
    ... # doctest: +ELLIPSIS
    TokenMetric(name='surprise', ...)
    """

    function: Callable[..., Any] | None = None
    """Function that returns the metric of every state and token; of the project's own metrics, the
    one of this name in `robustness.trace.token_metrics`."""
    reads: str = OTHER_READOUTS
    """What the function is called with.

    - `final states`: states (state, token, width) and those of the clean run (token, width), as
      the head receives them;
    - `logits`: logits (state, chunk, vocabulary), those of the clean run (chunk, vocabulary), and
      the next tokens (chunk,), for a chunk of tokens at a time;
    - `readouts`: the readouts of the states by name, (state, token) each, with `top`, the most
      likely token, and those of the clean run, (token,) each."""
    tokens: str = TOKENS[0]
    """Tokens that the mean is over, of `TOKENS`."""
    clean_long_name: str = ""
    """Description of the readout of the clean model; only readouts of the distribution have one."""
    least: float = -math.inf
    """Smallest value that a file may hold."""
    most: float = math.inf
    """Largest value that a file may hold."""

    def __post_init__(self) -> None:
        """Refuse a record of one's own that cannot be measured or kept."""
        if self.clean_long_name and self.reads != DISTRIBUTION:
            raise Refusal(
                f"{self.name} is not measured of the clean model: leave out `clean_long_name`, "
                "which readouts of the distribution alone have"
            )
        if self.tokens not in TOKENS:
            raise Refusal(f"{self.name} is of no tokens {self.tokens!r}: {' or '.join(TOKENS)}")
        if self.function is not None:
            self._check_own()

    def _check_own(self) -> None:
        if not _NAME.fullmatch(self.name) or self.name.startswith(("clean_", "token_")):
            raise Refusal(
                f"{self.name!r} is no name of a metric: lower-case letters, digits and "
                "underscores, and neither clean_ nor token_ before them"
            )
        if self.name in OCCUPIED or self.name in METRICS:
            raise Refusal(f"a file of a sweep holds {self.name} already: give the metric another")
        if self.reads not in READ:
            raise Refusal(f"{self.name} reads no {self.reads!r}; there are: {', '.join(READ)}")
        if not self.unit or not self.long_name:
            raise Refusal(f"{self.name} has no unit or no long name")
        if not inspect.isfunction(self.function):
            raise Refusal(f"the function of {self.name} is no plain function, which could travel")

    @property
    def attrs(self) -> dict[str, str]:
        """Attributes of the variable in a file, by which one of one's own is known again."""
        attrs = super().attrs
        return attrs if self.name in METRICS else attrs | {"tokens": self.tokens}

    @property
    def clean(self) -> "TokenMetric":
        """The record of the same metric of the clean model."""
        return TokenMetric(
            f"clean_{self.name}",
            self.unit,
            self.clean_long_name,
            reads=self.reads,
            tokens=self.tokens,
            least=self.least,
            most=self.most,
        )


READOUTS: tuple[TokenMetric, ...] = (
    TokenMetric(
        "kl",
        "nat",
        "KL divergence of the intervened from the clean prediction",
        reads=DISTRIBUTION,
        least=LEAST_INFORMATION,
    ),
    TokenMetric(
        "agreement",
        "1",
        "share of tokens whose top-1 prediction is the clean model's",
        reads=DISTRIBUTION,
        least=SHARE[0],
        most=SHARE[1],
    ),
    TokenMetric(
        "loss",
        "nat",
        "cross-entropy of the next token",
        reads=DISTRIBUTION,
        tokens="predicted",
        clean_long_name="cross-entropy of the next token, clean model",
        least=LEAST_INFORMATION,
    ),
    TokenMetric(
        "entropy",
        "nat",
        "entropy of the prediction",
        reads=DISTRIBUTION,
        clean_long_name="entropy of the prediction, clean model",
        least=LEAST_INFORMATION,
    ),
    TokenMetric(
        "accuracy",
        "1",
        "share of tokens whose top-1 prediction is the next token",
        reads=DISTRIBUTION,
        tokens="predicted",
        clean_long_name="share of tokens predicted top-1, clean model",
        least=SHARE[0],
        most=SHARE[1],
    ),
)
"""Readouts of every schedule: means over the tokens of a sequence."""

DEFAULT_READOUTS = tuple(metric.name for metric in READOUTS if metric.reads == DISTRIBUTION)
"""Names of the readouts of a sweep that asks for none; others take a pass of their own."""

CLEAN_READOUTS = tuple(metric.clean for metric in READOUTS if metric.clean_long_name)
"""Readouts of the clean model."""

KL_REVERSE = TokenMetric(
    "kl_reverse",
    "nat",
    "KL of the other prediction from the clean one",
    reads=DISTRIBUTION,
    least=LEAST_INFORMATION,
)
"""What a lens reads besides."""

READOUT_TOKENS = {
    **{metric.name: metric.tokens for metric in (*READOUTS, KL_REVERSE)},
    "top": "compared",
}
"""Tokens of which every readout is, and the most likely token, by name."""

NONFINITE = Metric("nonfinite", "1", "number of tokens with NaN or infinite logits", count=True)
MODAL_SHARE = Metric("modal_share", "1", "share of tokens with the most frequent top-1 prediction")

METRICS: dict[str, Metric] = {
    metric.name: metric for metric in (*READOUTS, *CLEAN_READOUTS, NONFINITE, MODAL_SHARE)
}
"""Every metric of the project by name."""


def metric_of(name: str, attrs: Mapping[Any, Any]) -> Metric | None:
    """Return the record of a variable in the file of a sweep, or None if it is no metric.

    One of a user's own is made of the variable's attributes.
    """
    if name in METRICS:
        return METRICS[name]
    tokens = attrs.get("tokens")
    if not isinstance(tokens, str) or tokens not in TOKENS:
        return None
    unit, long_name = str(attrs.get("units", "1")), str(attrs.get("long_name", name))
    return TokenMetric(name, unit, long_name, tokens=tokens)


def own_metrics(variables: Mapping[Any, Any]) -> list[str]:
    """Return the names of the metrics of a user's own, of variables with their attributes."""
    return [
        str(name)
        for name, variable in variables.items()
        if name not in METRICS and metric_of(str(name), variable.attrs)
    ]


def check_metrics(metrics: Sequence[TokenMetric]) -> None:
    """Refuse what is no list of metrics of one's own with functions and different names."""
    if isinstance(metrics, (str, TokenMetric)) or not isinstance(metrics, Sequence):
        raise Refusal(f"metrics are a list of TokenMetric(…), not {metrics!r:.80}")
    for metric in metrics:
        if not isinstance(metric, TokenMetric):
            raise Refusal(
                "a metric is a record TokenMetric(name, unit, long_name, function=…, reads=…), not "
                f"{metric!r:.80}; built-in ones are asked for with `readouts`"
            )
    names = [metric.name for metric in metrics]
    for metric in metrics:
        if metric.function is None:
            raise Refusal(f"the metric {metric.name} has no function")
        if names.count(metric.name) > 1:
            raise Refusal(f"two metrics are called {metric.name!r}: rename one of them")
