"""Files: what they must hold, how they are written and read, and runs that resume from them."""

from robustness.files.figures import save_figure
from robustness.files.metrics import Metric, TokenMetric
from robustness.files.netcdf import load, save, save_with_lock
from robustness.files.provenance import file_attributes
from robustness.files.resumable import Run
from robustness.files.sequences import mean_over_tokens, measured_sequences

__all__ = [
    "Metric",
    "Run",
    "TokenMetric",
    "file_attributes",
    "load",
    "mean_over_tokens",
    "measured_sequences",
    "save",
    "save_figure",
    "save_with_lock",
]
