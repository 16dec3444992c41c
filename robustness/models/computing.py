"""What holds while a model computes: its lock, no gradients, and exact products."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Any

import torch

from robustness.models.exact_products import exact_products


@contextmanager
def computing(lock: AbstractContextManager[Any]) -> Iterator[None]:
    """Hold the lock of a model, and compute without gradients and with exact products."""
    with lock, torch.no_grad(), exact_products():
        yield
