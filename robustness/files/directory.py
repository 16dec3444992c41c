"""Directories that a command writes: an interruption leaves the old files or the new ones.

A manifest lists what is written. A whole directory is made beside its place and put there in one
step. Files in a directory that holds other files too are made in a hidden directory in it and then
moved; by then, the files that they replace are not needed any more.
"""

import os
import re
import shutil
import stat
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from safetensors import SafetensorError

from robustness.errors import Refusal, Unwritable, first_line
from robustness.files import manifest
from robustness.files.atomic import REMEDIES
from robustness.files.exchange import (
    discard,
    put_in_place,
    recover,
    refuse_foreign,
    sync_to_disk,
    temporary_prefix,
    withdraw,
)
from robustness.files.lock import Lock
from robustness.files.manifest import MANIFEST, Manifest

WRITING = ".stages.writing"
"""Name of the hidden directory in which files are made before they are moved."""


def write_directory(
    directory: Path,
    write: Callable[[Path], Any],
    *,
    kind: str,
    made_of: Mapping[str, str],
    size: int = 0,
    fresh: bool = False,
) -> bool:
    """Write a directory by way of a temporary neighbour, so that it is never half-written.

    Parameters
    ----------
    directory : path
        Path of the directory. If it exists, it must be empty or hold what an earlier call wrote.
    write : callable
        Function that writes into the empty temporary directory that it is given. If it raises,
        nothing is left of what it wrote.
    kind, made_of
        Entries of the manifest; see `robustness.files.manifest.Manifest`.
    size : int
        Number of bytes that will be written; the disk must have room for them.
    fresh : bool
        Whether to replace what an earlier call wrote, if nobody changed it or added a file.

    Returns
    -------
    bool
        Whether the directory was written. Without `fresh`, one with equal `made_of` stays as it is.

    Raises
    ------
    Refusal
        If something else is there, there is no room, or the place cannot be written.
    """
    check_name(directory)
    with unwritable(directory):
        directory = Path(os.path.realpath(directory.expanduser()))
        here = Path.cwd()
        if directory in (here, *here.parents):
            raise Unwritable(f"{directory} is the directory that you are in: choose another place")
        if os.path.lexists(directory) and not directory.is_dir():
            raise Unwritable(f"{directory.name} is a file: choose another place")
        with Lock(directory) as lock:
            if lock.held:
                recover(directory)
            occupied = directory.exists() and any(directory.iterdir())
            if occupied and _is_done(directory, kind, made_of, fresh):
                return False
            _write(directory, write, kind, made_of, size)
            return True


def write_into(
    directory: Path, write: Callable[[Path], Any], *, kind: str, made_of: Mapping[str, str]
) -> None:
    """Write files into an existing directory, and leave the other files in it as they are.

    The caller holds the lock of the output, and keeps the sources of the files until all are in
    their places: if the call is killed, the next one writes all of them again.

    Parameters
    ----------
    directory : path
        Path of the directory, which exists.
    write : callable
        Function that writes into the empty directory that it is given, which has the same name.
    kind, made_of
        Entries of the manifest; see `robustness.files.manifest.Manifest`.

    Raises
    ------
    Refusal
        If a file that stages did not write has the name of one of these, or the place cannot be
        written.
    """
    with unwritable(directory):
        clear(directory)
        earlier = manifest.read(directory)
        if earlier is not None:
            withdraw(directory, earlier)
        whole = directory / WRITING / directory.resolve().name
        try:
            whole.mkdir(parents=True)
            write(whole)
            names = [*_seal(whole, kind, made_of).files, MANIFEST]
            for name in names:
                if os.path.lexists(directory / name):
                    raise Unwritable(
                        f"{directory / name} is not of stages, and would be replaced: move it, and "
                        "the same command goes on"
                    )
            # The manifest comes first, since a file that it does not list belongs to nobody.
            for name in reversed(names):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(whole / name, directory / name)
            sync_to_disk(directory)
        finally:
            clear(directory)


def clear(directory: Path) -> None:
    """Remove the hidden directory of a killed `write_into`; the caller holds the lock."""
    with suppress(FileNotFoundError):
        shutil.rmtree(directory / WRITING)


def check_name(directory: Path) -> None:
    """Refuse a path that is not UTF-8, which the libraries that write models need."""
    try:
        os.fspath(directory.expanduser().absolute()).encode()
    except UnicodeEncodeError:
        shown = os.fspath(directory).encode(errors="replace").decode()
        raise Unwritable(f"{shown} is not UTF-8: choose a place whose path is") from None


@contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """Turn an error in the writing of a directory into a Refusal with its reason and a remedy."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        # Tokenizers raise Exception itself, with the system's error in its text.
        if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:
            raise
        quoted = re.search(r"\(os error (\d+)\)", str(error))
        code = getattr(error, "errno", None) or (int(quoted[1]) if quoted else 0)
        reason = os.strerror(code) if code else first_line(error)
        name = directory.name or str(directory)
        raise Unwritable(
            f"{name} cannot be written ({reason}): {REMEDIES.get(code, 'mend that')}, or choose "
            "another place"
        ) from error


def _is_done(directory: Path, kind: str, made_of: Mapping[str, str], fresh: bool) -> bool:
    """Whether a directory already holds the files; refuse one that may not be replaced."""
    earlier = manifest.read(directory)
    name = directory.name
    if earlier is None:
        raise Unwritable(
            f"the directory {name} is not empty, and {MANIFEST}, which would say what in it is of "
            "stages, is not there: choose another place, or empty it"
        )
    if earlier.kind != kind:
        raise Unwritable(
            f"the directory {name} is not empty, it holds a {earlier.kind}: choose another place"
        )
    whole = not earlier.missing(directory) and not earlier.changed(directory)
    if whole and not fresh and not manifest.difference(earlier.made_of, made_of):
        return True
    if not fresh:
        raise Unwritable(
            f"the directory {name} is not empty: choose another place, or `fresh` to replace "
            "what stages wrote there"
        )
    refuse_foreign(directory, earlier, name)
    return False


def _write(
    directory: Path,
    write: Callable[[Path], Any],
    kind: str,
    made_of: Mapping[str, str],
    size: int,
) -> None:
    directory.parent.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(directory.parent).free
    if size > free:
        raise Unwritable(
            f"{directory.name} takes {size / 1e9:.3g} GB, and {free / 1e9:.3g} GB are free there: "
            "make room, or choose another place"
        )
    # A neighbour, since a directory cannot be renamed into another file system.
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=temporary_prefix(directory)))
    try:
        whole = temporary / "new"
        whole.mkdir()
        write(whole)
        _seal(whole, kind, made_of)
        put_in_place(whole, directory)
    finally:
        discard(temporary)


def _seal(whole: Path, kind: str, made_of: Mapping[str, str]) -> Manifest:
    """Write the manifest of a new directory, and force all of the directory to the disk."""
    described = manifest.describe(whole, kind, made_of)
    manifest.write(described, whole)
    usual = stat.S_IMODE((whole / MANIFEST).stat().st_mode)
    for name in (*described.files, MANIFEST):
        # safetensors makes files that are their owner's alone.
        (whole / name).chmod(usual)
        sync_to_disk(whole / name)
    for folder in (*filter(Path.is_dir, whole.rglob("*")), whole):
        sync_to_disk(folder)
    return described
