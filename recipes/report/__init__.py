"""The report: one page from files alone."""

from typing import TYPE_CHECKING

from robustness.faces import lazy_face

if TYPE_CHECKING:
    from recipes.report.page import ReportFiles, report

__all__ = ["ReportFiles", "report"]

# What draws for the page needs none of its text.
__getattr__ = lazy_face(
    __name__,
    {
        "ReportFiles": "page",
        "report": "page",
    },
)
