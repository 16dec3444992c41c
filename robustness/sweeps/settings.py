"""What a sweep measures: its interventions or schedules, where they are made, and what is read."""

from collections.abc import Sequence
from dataclasses import dataclass

from robustness.errors import Refusal
from robustness.files.metrics import DEFAULT_READOUTS, READOUTS, TokenMetric, check_metrics
from robustness.schedules import Schedule
from robustness.schedules.intervention import Intervention
from robustness.statistics import stopping
from robustness.sweeps.shards import Shard

USUAL_INTERVENTIONS = ("drop", "swap")
"""Interventions of a sweep that names neither interventions nor schedules."""

READOUT_NAMES = tuple(metric.name for metric in READOUTS)
"""Names of the readouts that can be measured."""


@dataclass(frozen=True)
class SweepSettings:
    """Settings of a sweep: those that change what its file holds."""

    interventions: Sequence[str | Intervention] | None = None
    """Names as in `robustness.schedules.built_in.FORMS`, or all as in `PAIRS`, or records of
    one's own; drop and swap where neither these nor schedules are given."""
    schedules: Sequence[Schedule | str] = ()
    """Free schedules, measured instead of interventions."""
    layers: Sequence[int] | None = None
    """Layers at which interventions are made; every layer without it."""
    readouts: Sequence[str] = DEFAULT_READOUTS
    """Readouts to measure, of `READOUT_NAMES`; all that are made of the same sums by default."""
    metrics: Sequence[TokenMetric] = ()
    """Metrics of one's own, measured besides."""
    until_se: float | None = None
    """Relative standard error of the mean KL at which the run stops; see
    `robustness.statistics.stopping`."""
    shard: Shard | None = None
    """Share of the batches that is run; see `robustness.sweeps.shards`."""
    per_token: bool = False
    """Whether the readouts of every token are kept too; see `robustness.sweeps.token_file`."""

    def __post_init__(self) -> None:
        """Refuse settings that are unknown or exclude each other."""
        self._check_readouts()
        check_metrics(self.metrics)
        if self.until_se is not None:
            self._check_stopping(self.until_se)
        if self.schedules:
            self._check_schedules()

    def _check_readouts(self) -> None:
        unknown = [name for name in self.readouts if name not in READOUT_NAMES]
        if unknown or not self.readouts:
            what = f"no readout {unknown[0]!r}" if unknown else "no readout was asked for"
            raise Refusal(f"{what}; there are: {', '.join(READOUT_NAMES)}")

    def _check_stopping(self, bound: float) -> None:
        stopping.check_bound(bound)
        if "kl" not in self.readouts:
            raise Refusal("`until_se` needs the readout kl, which is not among `readouts`")
        if self.per_token:
            raise Refusal("`until_se` and `per_token` exclude each other: leave one out")
        if self.shard is not None:
            raise Refusal("a shard cannot tell when all shards have enough: leave out `until_se`")

    def _check_schedules(self) -> None:
        if isinstance(self.schedules, str):
            raise Refusal(f"schedules are a list: [{self.schedules!r}]")
        if self.interventions or self.layers is not None:
            what = "interventions" if self.layers is None else "`layers` belong to interventions"
            raise Refusal(f"{what} and free schedules cannot be run together: run them apart")
