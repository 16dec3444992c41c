"""Every kind of file that a command writes, by the attribute `measurement` of the file.

A new kind of file is one more record in a module of this package. A file of a kind without a record
is held to what all files have.
"""

from collections.abc import Mapping

from robustness.files.kinds.evidence import EVIDENCE
from robustness.files.kinds.measurements import MEASUREMENTS
from robustness.files.kinds.probes import PROBES
from robustness.files.kinds.searches import SEARCHES
from robustness.files.kinds.sweeps import SWEEPS
from robustness.files.kinds.tasks import TASKS
from robustness.files.schema import Kind

__all__ = ["KINDS"]

KINDS: Mapping[str, Kind] = {**SWEEPS, **MEASUREMENTS, **PROBES, **TASKS, **SEARCHES, **EVIDENCE}
