"""Provenance of a file: its settings, versions of libraries, and digests of its sources."""

import hashlib
import inspect
import platform
from collections.abc import Callable, Iterable, Mapping
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

from robustness.files.schema import SCHEMA

LIBRARIES = (
    "stages-of-inference",
    "torch",
    "transformers",
    "nnsight",
    "datasets",
    "numpy",
    "xarray",
    "netCDF4",
)


def file_attributes(settings: Mapping[str, Any], command: str = "") -> dict[str, Any]:
    """Return the attributes of a file: its settings, and the time, command and versions."""
    return {
        "stages_schema": SCHEMA,
        **{name: value for name, value in settings.items() if value not in (None, "")},
        "conventions": (
            "information in nats; KL(clean || intervened); absolute losses and entropies; "
            "means over the tokens of a sequence"
        ),
        "versions": _versions(),
        # A word of the command holds halves of surrogate pairs if a file's name is no UTF-8.
        "command": (command or "python").encode("utf-8", "backslashreplace").decode(),
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
    }


@cache
def _versions() -> str:
    """Return the versions of libraries and of Python, which do not change while it runs."""
    versions = [f"{name} {version(name)}" for name in LIBRARIES]
    return ", ".join((*versions, f"python {platform.python_version()}"))


@cache
def project_version() -> str:
    """Return the version of this project."""
    return version(LIBRARIES[0])


def value_digest(value: Any) -> str:
    """Return the SHA-256 of a value's `repr`, for measured items that are not a corpus."""
    return hashlib.sha256(repr(value).encode()).hexdigest()


def source_digest(functions: Iterable[Callable[..., Any] | None]) -> str:
    """Hash a user's functions, so that a run of changed ones is not resumed; None is left out."""
    there = [function for function in functions if function is not None]
    try:
        return value_digest([inspect.getsource(function) for function in there])
    except OSError:
        # Of what was typed into a shell there is no source.
        return value_digest([function.__code__.co_code for function in there])


def file_digest(path: Path) -> str:
    """Return the SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
