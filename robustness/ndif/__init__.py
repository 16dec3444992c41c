"""NDIF servers: requests, and the answers that come back."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from robustness.ndif.server import Deployment, deployments

__all__ = ["Deployment", "deployments"]

_MODULES = {
    "Deployment": "server",
    "deployments": "server",
}


def __getattr__(name: str) -> Any:
    """Import a name when it is asked for: answers are read without what asks for them."""
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
