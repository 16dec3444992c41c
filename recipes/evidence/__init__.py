"""What experiments are judged by: a model's files, curves, published values, stages."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from recipes.evidence.files import Absent, Files
    from recipes.evidence.signatures import Signature

__all__ = ["Absent", "Files", "Signature"]

# The catalogue of experiments reads curves alone.
__getattr__ = lazy_face(
    __name__,
    {
        "Absent": "files",
        "Files": "files",
        "Signature": "signatures",
    },
)
