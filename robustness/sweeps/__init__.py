"""Sweeps: many schedules over one corpus, each compared with the clean model."""

from robustness.sweeps.execution import run_sweep, sweep
from robustness.sweeps.merging import merge
from robustness.sweeps.rewiring import residuals, rewire
from robustness.sweeps.settings import SweepSettings
from robustness.sweeps.shards import Shard

__all__ = ["Shard", "SweepSettings", "merge", "residuals", "rewire", "run_sweep", "sweep"]
