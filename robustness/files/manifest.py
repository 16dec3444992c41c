"""The mark of a directory that a command wrote: which files in it are the project's own.

`stages.json` names them with the SHA-256 of what is in each, and says what they were made of. A
command replaces or removes what the mark names, unchanged, and nothing else.
"""

import json
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, TypeGuard

from robustness.errors import Refusal, reading
from robustness.files.provenance import file_digest

MANIFEST = "stages.json"
"""The name of the mark."""

FORM = 1
"""Version of what is in it; one with a higher version is refused."""

LONGEST = 2**22
"""Bytes of a mark, at most."""

SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """What a directory holds of the project's, and what it was made of."""

    kind: str
    """What wrote it: `export` or `pretraining`."""
    made_of: Mapping[str, str]
    """Model, text and settings: equal where what is written is the same."""
    files: Mapping[str, str]
    """Of every file its path in the directory, divided by `/`, and its SHA-256."""

    def missing(self, directory: Path) -> list[str]:
        """Return the files that are not there."""
        return [name for name in self.files if not os.path.lexists(directory / name)]

    def changed(self, directory: Path) -> list[str]:
        """Return the files that are there with something else in them."""
        return [
            name
            for name, digest in self.files.items()
            if os.path.lexists(directory / name) and not _holds(directory, name, digest)
        ]

    def strangers(self, directory: Path) -> list[str]:
        """Return what is in the directory and not in the mark: files, links, empty directories."""
        own = {*self.files, MANIFEST}
        parents = {str(parent) for name in own for parent in PurePosixPath(name).parents}
        there = sorted(path.relative_to(directory).as_posix() for path in directory.rglob("*"))
        folders = {name for name in there if _is_folder(directory / name)}
        return [name for name in there if name not in (parents if name in folders else own)]


def describe(directory: Path, kind: str, made_of: Mapping[str, str]) -> Manifest:
    """Return the manifest of a directory in which every file is the project's own."""
    files = sorted(filter(Path.is_file, directory.rglob("*")))
    digests = {file.relative_to(directory).as_posix(): file_digest(file) for file in files}
    return Manifest(kind, dict(made_of), digests)


def read(directory: Path) -> Manifest | None:
    """Read the manifest of a directory; None where there is none.

    Raises
    ------
    Refusal
        If a file has its name and is none, or is one of a later version.
    """
    path = directory / MANIFEST
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LONGEST:
        raise Refusal(f"{path} is not a file that stages wrote: move it, or choose another place")
    with reading(str(path), "move it, or choose another place"):
        return _parse(json.loads(path.read_bytes()))


def write(manifest: Manifest, directory: Path) -> None:
    """Write the manifest of a directory that is not yet in its place."""
    content = {
        "stages": FORM,
        "kind": manifest.kind,
        "made_of": dict(manifest.made_of),
        "files": dict(manifest.files),
    }
    (directory / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def difference(found: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Say in what one thing was made of something else than another; empty where in nothing.

    A hash is named last, since it says less than what it is of.
    """
    names = [name for name in {**wanted, **found} if found.get(name) != wanted.get(name)]
    for name in sorted(names, key=lambda name: "sha256" in name)[:1]:
        have, want = found.get(name, "none"), wanted.get(name, "none")
        if "sha256" in name:
            have, want = f"{have[:12]}…", f"{want[:12]}…"
        return f"with {name} {have}, not {want}"
    return ""


def _parse(content: Any) -> Manifest:
    """Return what a mark says, and raise ValueError where it is none."""
    if not isinstance(content, dict) or not isinstance(content.get("stages"), int):
        raise ValueError("it does not say which version of stages wrote it")
    if content["stages"] > FORM:
        raise ValueError(f"a later version of stages wrote it: {content['stages']}")
    kind, made_of, files = (content.get(name) for name in ("kind", "made_of", "files"))
    if not isinstance(kind, str) or not _is_text(made_of) or not _is_text(files):
        raise ValueError("it names no files, or not what they are of")
    for name, digest in files.items():
        parts = PurePosixPath(name).parts
        name.encode()  # half a surrogate pair is no name
        odd = not parts or ".." in parts or parts[0] == "/" or "\0" in name
        if odd or not SHA256.fullmatch(digest):
            raise ValueError("it names files in a way that stages does not")
    return Manifest(kind, made_of, files)


def _is_text(mapping: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(mapping, dict) and all(isinstance(value, str) for value in mapping.values())


def _holds(directory: Path, name: str, digest: str) -> bool:
    """Return whether a file has this content, and is reached without following a link."""
    path = directory / name
    parents = [directory / parent for parent in PurePosixPath(name).parents[:-1]]
    if any(each.is_symlink() for each in (path, *parents)):
        return False
    return path.is_file() and file_digest(path) == digest


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
