"""Statistics: uncertainty, paired differences, segmentation, and when to stop."""

from robustness.statistics.bootstrap_intervals import bootstrap
from robustness.statistics.paired import by_document, difference
from robustness.statistics.segmentation import partitions, segment
from robustness.statistics.uncertainty import band, interval, standard_error

__all__ = [
    "band",
    "bootstrap",
    "by_document",
    "difference",
    "interval",
    "partitions",
    "segment",
    "standard_error",
]
