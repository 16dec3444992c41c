"""Fixtures of tests on devices."""

from collections.abc import Iterator

import pytest
from device_cases import Case, device


@pytest.fixture
def case(request: pytest.FixtureRequest) -> Iterator[Case]:
    """A family and a type on a device that is there for the length of a test."""
    with device(request.param.kind, request.param.pretended):
        yield request.param


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Show the warnings of a real device, but let none of them fail a test: cards differ."""
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.filterwarnings("default"))
