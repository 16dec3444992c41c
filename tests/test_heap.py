"""While a sweep runs on a CPU, freed memory stays with the process, and is then given back."""

import json
import resource
import subprocess
import sys

import pytest
import torch

from robustness.runs.heap import kept_heap

CPU = torch.device("cpu")

SIZE = 2**23
"""Number of float32 values of a tensor that glibc takes from the system and gives back: 32 MiB."""


# In a process of its own, since what others left in the heap decides what is used again at once. A
# few tensors go by until glibc joins what is free around them.
SCRIPT = f"""
import json, resource
import torch
from robustness.runs.heap import kept_heap

def faults():
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt

def resident():
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

found = {{"before": resident()}}
try:
    with kept_heap(torch.device("cpu")):
        for _ in range(16):
            torch.ones({SIZE})
        begun = faults()
        for _ in range(8):
            torch.ones({SIZE})
        found |= {{"faults": faults() - begun, "meanwhile": resident()}}
        raise ZeroDivisionError
except ZeroDivisionError:
    found["after"] = resident()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    """Page faults of eight large tensors, and bytes of the process around them."""
    done = subprocess.run([sys.executable, "-c", SCRIPT], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


@pytest.mark.slow
def test_freed_memory_is_used_again(found):
    pages = SIZE * 4 / resource.getpagesize()
    assert found["faults"] < 2 * pages, "8 tensors take the pages of one"


@pytest.mark.slow
def test_memory_is_given_back_in_the_end_whatever_happens(found):
    assert found["meanwhile"] > found["before"] + 2 * SIZE
    assert found["after"] < found["before"] + SIZE


def test_on_other_devices_and_other_c_libraries_nothing_changes(monkeypatch):
    asked = []

    def without_heap(name):
        asked.append(name)
        return object()

    monkeypatch.setattr("ctypes.CDLL", without_heap)
    with kept_heap(torch.device("cuda")):
        assert not asked, "the heap of a GPU's memory is none of the C library's"
    with kept_heap(CPU):
        assert asked == [None]
