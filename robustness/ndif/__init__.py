"""NDIF servers: requests, and the answers that come back."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from robustness.ndif.server import Deployment, deployments

__all__ = ["Deployment", "deployments"]

# Answers are read without what asks for them.
__getattr__ = lazy_face(
    __name__,
    {
        "Deployment": "server",
        "deployments": "server",
    },
)
