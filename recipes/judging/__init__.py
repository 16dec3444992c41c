"""Verdicts on the paper's claims, and comparisons of several models."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from recipes.judging.verdicts import Number, Verdict, judge, measure

__all__ = ["Number", "Verdict", "judge", "measure"]

# Drawing needs no verdicts.
__getattr__ = lazy_face(
    __name__,
    {
        "Number": "verdicts",
        "Verdict": "verdicts",
        "judge": "verdicts",
        "measure": "verdicts",
    },
)
