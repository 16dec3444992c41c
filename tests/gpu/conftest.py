"""Fixtures of tests on devices."""

from collections.abc import Iterator

import pytest
from device_cases import Case, device


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A family and a type on a device that is there for the length of a test."""
    with device(request.param.kind, request.param.pretended):
        yield request.param
