"""Figures as files, which carry the mark of this project."""

from pathlib import Path
from typing import Any

from robustness.files import ownership
from robustness.files.atomic import write_with_lock


def save_figure(figure: Any, path: Path) -> Path:
    """Save a matplotlib figure as a `.png`, `.svg` or `.pdf` file, and return its path."""
    ownership.check(path, ownership.FIGURE)
    kind = path.suffix.lstrip(".").lower()
    # Without a date, so that equal figures are equal files.
    metadata: dict[str, Any] = {
        "png": {"Software": ownership.MARK},
        "svg": {"Creator": ownership.MARK, "Date": None},
        "pdf": {"Creator": ownership.MARK, "CreationDate": None},
    }
    write_with_lock(
        path, lambda file: figure.savefig(file, format=kind, dpi=150, metadata=metadata[kind])
    )
    return path
