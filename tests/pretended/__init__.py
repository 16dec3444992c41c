"""A device that is not there: `with machine("cuda", 2) as log:` there are two.

Its tensors say that they are on `cuda:0` (or `mps:0`), compute on the CPU, and refuse what the real
device refuses. Copies between devices and reads by the host are logged with the line of the project
that caused them, and memory can be small. Not pretended are streams, pieces of memory that nothing
fits into, random numbers of the device's own, and rounding of its own: numbers are those of the
CPU, so results can be compared with it.
"""

import pytest

from pretended.guard import obstacle
from pretended.log import BETWEEN, LOG, READ, TO_DEVICE, TO_HOST, Event, Log
from pretended.machine import machine
from pretended.memory import MEMORY
from pretended.tensors import PretendedTensor

needed = pytest.mark.skipif(bool(obstacle()), reason=obstacle())
"""Mark of tests on such a device."""

__all__ = [
    "BETWEEN", "LOG", "MEMORY", "READ", "TO_DEVICE", "TO_HOST", "Event", "Log", "PretendedTensor",
    "machine", "needed", "obstacle",
]  # fmt: skip
