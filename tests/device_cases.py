"""Devices that tests run on, real or pretended, and how close their numbers must be to exact ones.

A case is a family, a type of weights and a device. Those of a real one have the mark `gpu`, which
`make test` leaves out and `make gpu` alone runs; a part of the same cases is pretended in every run
of the tests, and all of them with STAGES_FUZZ=1 in the environment.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import NamedTuple

import numpy as np
import pretended
import pytest
import torch
import xarray as xr
from families import DEEP, tiny
from torch.nn import Module

from robustness.models.model import Model
from robustness.models.opening import open_model

EVERY = os.environ.get("STAGES_FUZZ") == "1"

NOT_THERE = [pytest.mark.slow, pretended.needed]
"""Marks of a pretended case."""

NO_GPU = "there is no CUDA device here"

TYPES = {"float64": torch.float64, "float32": torch.float32, "bfloat16": torch.bfloat16}

FLOORS = {
    torch.float64: {"default": 1e-9},
    torch.float32: {"default": 3e-5, "kl": 1e-5},
    torch.bfloat16: {"default": 0.05},
}
"""Error that is allowed for every value of a variable, a part of its scale or, of KL, in nats."""

FACTOR = 4
"""How many times the error of the same type on the CPU is allowed instead, where that is more."""

COUNTS = {"agreement", "accuracy", "modal_share", "clean_accuracy", "rank"}
"""Variables that jump where two logits change places, of which in half precision the means alone
are held to a tolerance."""


class Case(NamedTuple):
    """A family, a type of weights, and a device."""

    family: str
    kind: str
    dtype: torch.dtype
    pretended: bool

    def module(self) -> Module:
        """Return a plain model on the device."""
        return tiny(self.family, self.dtype).to(self.kind)

    def there(self, **opening: object) -> Model:
        """Open the model on the device."""
        return open_model(self.module(), **opening)

    def here(self, **opening: object) -> Model:
        """Open the same model on the CPU."""
        return open_model(tiny(self.family, self.dtype), **opening)

    def exact(self, **opening: object) -> Model:
        """Open the same model, with the same rounded weights, on the CPU in float64."""
        module = tiny(self.family, self.dtype).double()
        module.set_experts_implementation("eager")
        return open_model(module, **opening)


def case_of(words: str, pretended: bool = True) -> Case:
    """Return the case of a text such as `gpt2 cuda float64`."""
    family, kind, dtype = words.split()
    return Case(family, kind, TYPES[dtype], pretended)


def every_case(
    families: Sequence[str] = DEEP, types: Sequence[str] = tuple(TYPES), kinds: str = "cuda mps"
) -> list[str]:
    """Return cases as texts; MPS has no float64."""
    return [
        f"{family} {kind} {dtype}"
        for family in families
        for kind in kinds.split()
        for dtype in types
        if (kind, dtype) != ("mps", "float64")
    ]


def on(
    *pairs: str, families: Sequence[str] = DEEP, types: Sequence[str] = tuple(TYPES)
) -> pytest.MarkDecorator:
    """Run a test on some pretended cases, and on all families and types of a real device."""
    feigned = every_case(families, types) if EVERY else pairs
    params = [pytest.param(case_of(words), marks=NOT_THERE, id=f"{words} not") for words in feigned]
    real = every_case(families, types, "cuda")
    params += [
        pytest.param(case_of(words, False), marks=pytest.mark.gpu, id=words) for words in real
    ]
    return pytest.mark.parametrize("case", params, indirect=True)


@contextmanager
def device(kind: str, feigned: bool, devices: int = 1) -> Iterator[None]:
    """Pretend that there is a device, or skip a test where there is no real one."""
    if feigned:
        with pretended.machine(kind, devices):
            yield
        return
    if not torch.cuda.is_available():
        pytest.skip(NO_GPU)
    if torch.cuda.device_count() < devices:
        pytest.skip(f"there are less than {devices} CUDA devices here")
    yield


def assert_as_good(case: Case, found: xr.Dataset, near: xr.Dataset, exact: xr.Dataset) -> None:
    """Hold a device's errors against the floors, and against those of the CPU in the same type.

    The order of sums is a device's own, so its digits are; its errors may not be larger.
    """
    assert set(found.data_vars) == set(near.data_vars) == set(exact.data_vars)
    for name, values in exact.data_vars.items():
        if values.dtype.kind not in "fiub":
            continue
        given = [np.asarray(each[name], np.float64) for each in (found, near, exact)]
        if case.dtype == torch.bfloat16 and name.removeprefix("token_") in COUNTS:
            given = [np.nanmean(values, keepdims=True) for values in given]
        seen, other, true = given
        assert seen.shape == true.shape and (np.isnan(seen) == np.isnan(true)).all(), name
        off, own = (np.nanmax(abs(each - true), initial=0) for each in (seen, other))
        floors = FLOORS[case.dtype]
        scale = 1 if name in floors else max(1.0, np.nanmax(abs(true), initial=0))
        allowed = max(FACTOR * own, floors.get(name, floors["default"]) * scale)
        assert off <= allowed, f"{name}: off by {off:.1e}, allowed are {allowed:.1e}"


Measure = Callable[[Model], dict[str, xr.Dataset]]
"""Something that is done with a model: what it makes, by name."""


def compare(case: Case, measure: Measure, **opening: object) -> None:
    """Do the same with a model on the device, on the CPU, and there in float64, and compare."""
    found, near = measure(case.there(**opening)), measure(case.here(**opening))
    exact = near if case.dtype == torch.float64 else measure(case.exact(**opening))
    compare_made(case, found, near, exact)


def compare_made(
    case: Case,
    found: dict[str, xr.Dataset],
    near: dict[str, xr.Dataset],
    exact: dict[str, xr.Dataset],
) -> None:
    """Hold what was made on the device against what was made on the CPU."""
    assert found and found.keys() == near.keys() == exact.keys()
    for name, made in found.items():
        assert_as_good(case, made, near[name], exact[name])


def labelled(**arrays: object) -> xr.Dataset:
    """Return plain arrays as a dataset."""
    found = xr.Dataset()
    for name, values in arrays.items():
        values = np.asarray(values)
        found[name] = ([f"{name}_{axis}" for axis in range(values.ndim)], values)
    return found
