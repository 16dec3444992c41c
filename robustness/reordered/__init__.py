"""Plain models whose blocks run in another order: rebuilt, generating, exported."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from robustness.reordered.exporting import export
    from robustness.reordered.generation import generate
    from robustness.reordered.rebuilding import rebuild
    from robustness.reordered.settings import Sampling

__all__ = ["Sampling", "export", "generate", "rebuild"]

# Transformers takes seconds, and settings none.
__getattr__ = lazy_face(
    __name__,
    {
        "Sampling": "settings",
        "export": "exporting",
        "generate": "generation",
        "rebuild": "rebuilding",
    },
)
