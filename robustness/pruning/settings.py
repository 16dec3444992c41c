"""What a search for a smaller model looks for, and how."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import isfinite
from pathlib import Path

from robustness.errors import Refusal
from robustness.pruning.units import UNITS

METHODS = (
    "pairwise",
    "greedy",
    "beam",
    "one-shot",
    "span",
    "influence",
    "angular",
    "exhaustive",
)
"""Names of methods; see `robustness.pruning.methods`."""

OF_BLOCKS = ("span", "influence", "angular")
"""Methods that know whole blocks alone."""

OBJECTIVES = ("kl", "loss")
"""What a candidate is scored by: its KL from the clean model, or how much its loss rises."""

TARGETS = ("remove", "keep", "to_params", "until_kl")
"""Settings of which one says when a search ends."""


@dataclass(frozen=True)
class PruningSettings:
    """Settings of a search: those that change what its file holds."""

    remove: int | None = None
    """Number of units to remove."""
    keep: int | None = None
    """Number of units to keep, of those that may be removed."""
    to_params: float | None = None
    """Number of parameters to come down to; below 1, their share."""
    until_kl: float | None = None
    """Largest search score in nats: KL from the clean model, or rise of the loss if that is the
    objective."""
    units: str = "block"
    """Kind of units, of `units.UNITS`."""
    methods: Sequence[str] = ()
    """Methods, of `METHODS`; without any, `pairwise`, or `greedy` where pairs are too many."""
    objective: str = "kl"
    """One of `OBJECTIVES`."""
    layers: Sequence[int] | None = None
    """Layers whose units may be removed; all without it."""
    beam: int = 4
    """Number of sets that the method beam follows."""
    finalists: int = 8
    """Number of sets that the quadratic model proposes, and that are measured: at the last step, if
    the target is a number of units; half as many at those before it."""
    holdout: float = 0.25
    """Share of the documents that nothing is chosen on."""
    heal: bool = False
    """Whether fitted scales and maps are put in the place of what the first method has removed in
    the end, and measured; see `robustness.healing`."""
    measured: Sequence[Path] = ()
    """Files of sweeps or searches of the same model on the same text, whose numbers are taken."""
    level: float = 0.05
    """Probability with which a look of a race drops the best of candidates that are all alike, if
    scores were normal; a race of twelve looks at them drops it three times as often."""

    def __post_init__(self) -> None:
        """Refuse settings that are unknown, or out of their range."""
        given = [name for name in TARGETS if getattr(self, name) is not None]
        if len(given) != 1:
            given = [f"`{name}`" for name in given]
            both = f"{given[0]} and {given[1]} were" if given else "none was"
            ends = ", ".join(f"`{name}`" for name in TARGETS)
            raise Refusal(f"a search ends at one of {ends}: {both} given")
        for name, known in (("units", UNITS), ("objective", OBJECTIVES)):
            if getattr(self, name) not in known:
                what = f"no {name} {getattr(self, name)!r}"
                raise Refusal(f"{what}; there are: {', '.join(known)}")
        self._check_methods()
        for name, least in (("remove", 1), ("keep", 0), ("beam", 1), ("finalists", 1)):
            value = getattr(self, name)
            if value is not None and value < least:
                raise Refusal(f"`{name}` must be {least} or more, not {value}")
        for name in ("to_params", "until_kl"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise Refusal(f"`{name}` must be a number above 0, not {value:g}")
        if self.heal and self.units != "block":
            raise Refusal(f"`heal` goes with whole blocks, not with `units` {self.units}")
        if self.heal and not self.holdout:
            raise Refusal("`heal` is judged on a held-out part: `holdout` must be above 0")
        if not 0 <= self.holdout <= 0.9:
            raise Refusal(f"`holdout` must be a share from 0 to 0.9, not {self.holdout:g}")
        if not 0 < self.level < 0.5:
            raise Refusal(f"`level` must be a probability between 0 and 0.5, not {self.level:g}")

    def _check_methods(self) -> None:
        if isinstance(self.methods, str):
            raise Refusal(f"methods are a list: [{self.methods!r}]")
        for name in self.methods:
            if name not in METHODS:
                raise Refusal(f"no method {name!r}; there are: {', '.join(METHODS)}")
            if self.methods.count(name) > 1:
                raise Refusal(f"the method {name} was asked for twice")
            if name in OF_BLOCKS and self.units != "block":
                raise Refusal(f"the method {name} removes whole blocks: leave out `units`")

    @property
    def is_counted(self) -> bool:
        """Whether the target is a number of units."""
        return self.remove is not None or self.keep is not None

    @property
    def target(self) -> str:
        """When the search ends, in words."""
        name = next(name for name in TARGETS if getattr(self, name) is not None)
        return f"{name.replace('_', ' ')} {getattr(self, name):g}"
