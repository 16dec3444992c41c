"""Directories that a command writes: an interruption leaves the old files or the new ones.

What is written is listed in a manifest. A whole directory is made beside its place and put there in
one step. Several files in a directory that others use too are made in a hidden directory in it and
then moved; by then, the files that they replace are not needed any more.
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
        The directory. One that is there must be empty, or hold what an earlier call wrote.
    write : callable
        Given the temporary path, an empty directory, writes into it; what it raises leaves nothing.
    kind, made_of
        What the manifest says of it.
    size : int
        Number of bytes that will be written, for which there must be room.
    fresh : bool
        Whether to replace what an earlier call wrote, if nobody changed it or added a file.

    Returns
    -------
    bool
        Whether it was written. Without `fresh`, a directory that is made of the same stays.

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
            there = directory.exists() and any(directory.iterdir())
            if there and _is_done(directory, kind, made_of, fresh):
                return False
            _write(directory, write, kind, made_of, size)
            return True


def write_into(
    directory: Path, write: Callable[[Path], Any], *, kind: str, made_of: Mapping[str, str]
) -> None:
    """Write several files into a directory, in which those of others stay as they are.

    For one who has the lock of the output, and keeps what the files are made of until they are all
    in their places. Made again after a kill, the call replaces what it has left.

    Parameters
    ----------
    directory : path
        The directory, which is there.
    write : callable
        Given an empty directory with the name of this one, writes into it.
    kind, made_of
        What the manifest says of the files.

    Raises
    ------
    Refusal
        If a file of another has the name of one of these, or the place cannot be written.
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
    """Remove what a process that was killed in `write_into` has left; the caller has the lock."""
    with suppress(FileNotFoundError):
        shutil.rmtree(directory / WRITING)


def check_name(directory: Path) -> None:
    """Refuse a path that the libraries which write models cannot name."""
    try:
        os.fspath(directory.expanduser().absolute()).encode()
    except UnicodeEncodeError:
        shown = os.fspath(directory).encode(errors="replace").decode()
        raise Unwritable(f"{shown} is no UTF-8: choose a place that has a name in it") from None


@contextmanager
def unwritable(directory: Path) -> Iterator[None]:
    """Refuse what fails while a directory is written, with the reason and what would do."""
    try:
        yield
    except Refusal:
        raise
    except Exception as error:
        # Tokenizers raise Exception itself, with the system's error in its text.
        if not isinstance(error, (OSError, SafetensorError)) and type(error) is not Exception:
            raise
        found = re.search(r"\(os error (\d+)\)", str(error))
        code = getattr(error, "errno", None) or (int(found[1]) if found else 0)
        reason = os.strerror(code) if code else first_line(error)
        name = directory.name or str(directory)
        raise Unwritable(
            f"{name} cannot be written ({reason}): {REMEDIES.get(code, 'mend that')}, or choose "
            "another place"
        ) from error


def _is_done(directory: Path, kind: str, made_of: Mapping[str, str], fresh: bool) -> bool:
    """Return whether what is wanted is there; refuse a directory that may not be replaced."""
    found = manifest.read(directory)
    name = directory.name
    if found is None:
        raise Unwritable(
            f"the directory {name} is not empty, and {MANIFEST}, which would say what in it is of "
            "stages, is not there: choose another place, or empty it"
        )
    if found.kind != kind:
        raise Unwritable(
            f"the directory {name} is not empty, it holds a {found.kind}: choose another place"
        )
    whole = not found.missing(directory) and not found.changed(directory)
    if whole and not fresh and not manifest.difference(found.made_of, made_of):
        return True
    if not fresh:
        raise Unwritable(
            f"the directory {name} is not empty: choose another place, or `fresh` to replace "
            "what stages wrote there"
        )
    refuse_foreign(directory, found, name)
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
    """Force a new directory to the disk, and mark it as made."""
    found = manifest.describe(whole, kind, made_of)
    manifest.write(found, whole)
    usual = stat.S_IMODE((whole / MANIFEST).stat().st_mode)
    for name in (*found.files, MANIFEST):
        # safetensors makes files that are their owner's alone.
        (whole / name).chmod(usual)
        sync_to_disk(whole / name)
    for folder in (*filter(Path.is_dir, whole.rglob("*")), whole):
        sync_to_disk(folder)
    return found
