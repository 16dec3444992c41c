"""Manifest of a directory that a command wrote: a list of the files in it that stages wrote.

`stages.json` lists them with the SHA-256 of each, and says what they were made of. A command
replaces or removes files that the manifest lists and nobody changed, and nothing else.
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
"""File name of the manifest."""

MANIFEST_VERSION = 1
"""Version of the manifest's layout; a manifest of a later version is refused."""

LARGEST_MANIFEST = 2**22
"""Most bytes of a manifest."""

SHA256 = re.compile("[0-9a-f]{64}")


@dataclass(frozen=True)
class Manifest:
    """Files that stages wrote into a directory, and what they were made of."""

    kind: str
    """Kind of command that wrote them: `export`, `pretraining` or `distillation`."""
    made_of: Mapping[str, str]
    """Model, text and settings that the files follow from: equal where the files would be."""
    files: Mapping[str, str]
    """SHA-256 of every file, by its path in the directory with `/` between names."""

    def missing(self, directory: Path) -> list[str]:
        """Return the files that do not exist."""
        return [name for name in self.files if not os.path.lexists(directory / name)]

    def changed(self, directory: Path) -> list[str]:
        """Return the files that exist with other content."""
        names = []
        for name, digest in self.files.items():
            if os.path.lexists(directory / name) and not _holds(directory, name, digest):
                names.append(name)
        return names

    def strangers(self, directory: Path) -> list[str]:
        """Return files, links and directories that hold none of the files that are listed."""
        listed = {*self.files, MANIFEST}
        parents: set[str] = set()
        for name in listed:
            parents |= set(map(str, PurePosixPath(name).parents))
        strangers = []
        for path in directory.rglob("*"):
            name = path.relative_to(directory).as_posix()
            if name not in (parents if _is_folder(path) else listed):
                strangers.append(name)
        return sorted(strangers)


def describe(directory: Path, kind: str, made_of: Mapping[str, str]) -> Manifest:
    """Return the manifest of a directory in which stages wrote every file."""
    files = sorted(filter(Path.is_file, directory.rglob("*")))
    digests = {file.relative_to(directory).as_posix(): file_digest(file) for file in files}
    return Manifest(kind, dict(made_of), digests)


def read(directory: Path) -> Manifest | None:
    """Read the manifest of a directory; None where there is none.

    Raises
    ------
    Refusal
        If the file of that name is not a manifest, or one of a later version.
    """
    path = directory / MANIFEST
    if not os.path.lexists(path):
        return None
    if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_MANIFEST:
        raise Refusal(f"{path} is not a file that stages wrote: move it, or choose another place")
    with reading(str(path), "move it, or choose another place"):
        return _parse(json.loads(path.read_bytes()))


def write(manifest: Manifest, directory: Path) -> None:
    """Write the manifest of a new directory before it is put in its place."""
    content = {
        "stages": MANIFEST_VERSION,
        "kind": manifest.kind,
        "made_of": dict(manifest.made_of),
        "files": dict(manifest.files),
    }
    (directory / MANIFEST).write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def difference(earlier: Mapping[str, str], wanted: Mapping[str, str]) -> str:
    """Return in words the setting in which two manifests differ; empty where they are equal."""
    names = [name for name in {**wanted, **earlier} if earlier.get(name) != wanted.get(name)]
    if not names:
        return ""
    # A hash tells a reader less than any setting, so it is named only where nothing else differs.
    name = min(names, key=lambda name: "sha256" in name)
    have, want = earlier.get(name, "none"), wanted.get(name, "none")
    if "sha256" in name:
        have, want = f"{have[:12]}…", f"{want[:12]}…"
    return f"with {name} {have}, not {want}"


def _parse(content: Any) -> Manifest:
    """Return the manifest in parsed JSON, and raise ValueError if it holds none."""
    if not isinstance(content, dict) or not isinstance(content.get("stages"), int):
        raise ValueError("it does not say which version of stages wrote it")
    if content["stages"] > MANIFEST_VERSION:
        raise ValueError(f"a later version of stages wrote it: {content['stages']}")
    kind, made_of, files = content.get("kind"), content.get("made_of"), content.get("files")
    if not isinstance(kind, str) or not _is_text(made_of) or not _is_text(files):
        raise ValueError("it names no files, or not what they are of")
    for name, digest in files.items():
        parts = PurePosixPath(name).parts
        # Raises UnicodeEncodeError, a ValueError, over half of a surrogate pair.
        name.encode()
        # Files are removed by these names, which must not lead out of the directory.
        odd = not parts or ".." in parts or parts[0] == "/" or "\0" in name
        if odd or not SHA256.fullmatch(digest):
            raise ValueError("it names files in a way that stages does not")
    return Manifest(kind, made_of, files)


def _is_text(mapping: Any) -> TypeGuard[dict[str, str]]:
    return isinstance(mapping, dict) and all(isinstance(value, str) for value in mapping.values())


def _holds(directory: Path, name: str, digest: str) -> bool:
    """Whether a file has this content, and is reached without following a link."""
    path = directory / name
    for parent in PurePosixPath(name).parents[:-1]:
        if (directory / parent).is_symlink():
            return False
    return not path.is_symlink() and path.is_file() and file_digest(path) == digest


def _is_folder(path: Path) -> bool:
    return path.is_dir() and not path.is_symlink()
