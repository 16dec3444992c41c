"""While a sweep runs on a CPU, freed memory stays with the process, and is then given back."""

import resource

import pytest
import torch

from robustness.runs.heap import kept_heap

CPU = torch.device("cpu")

SIZE = 2**23
"""Number of float32 values of a tensor that glibc takes from the system and gives back: 32 MiB."""


def page_faults() -> int:
    """Take and free a large tensor some times, and return how many pages were handed out for it."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(8):
        torch.ones(SIZE)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def resident() -> int:
    with open("/proc/self/statm", "rb") as file:
        return int(file.read().split()[1]) * resource.getpagesize()


def test_freed_memory_is_used_again():
    with kept_heap(CPU):
        torch.ones(SIZE)
        kept = page_faults()
    pages = SIZE * 4 / resource.getpagesize()
    assert kept < 2 * pages, "8 tensors take the pages of one"


def test_memory_is_given_back_in_the_end_whatever_happens():
    with kept_heap(CPU):
        # What others freed before is given back at the end of this.
        torch.ones(SIZE)
    before = resident()
    with pytest.raises(ZeroDivisionError), kept_heap(CPU):
        torch.ones(SIZE)
        assert resident() > before + 2 * SIZE
        raise ZeroDivisionError
    assert resident() < before + SIZE


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
