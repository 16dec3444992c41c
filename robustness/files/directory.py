"""Directories that a command writes, so that a kill leaves the old files or the new ones.

What is written carries the mark of `robustness.files.manifest`. A whole directory is made beside
its place and put there in one step; several files in a directory that others use as well are made
in a hidden directory in it and moved, and what they replace is not needed any more by then.
"""

import ctypes
import errno
import glob
import os
import re
import shutil
import stat
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path, PurePosixPath
from typing import Any

from safetensors import SafetensorError

from robustness.errors import Refusal, Unwritable, first_line
from robustness.files import manifest
from robustness.files.atomic import REMEDIES
from robustness.files.lock import Lock
from robustness.files.manifest import MANIFEST, Manifest

WRITING = ".stages.writing"
"""The hidden directory in a directory in which files are made that are moved out of it."""

AT_CWD, EXCHANGE = -100, 2
"""The arguments of Linux's `renameat2` that make it swap two paths, absolute or relative."""


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
        What the mark says of it.
    size : int
        Bytes that will be written, for which there must be room.
    fresh : bool
        Whether to replace what an earlier call wrote, if nobody changed or added anything.

    Returns
    -------
    bool
        Whether it was written: without `fresh`, one that is made of the same is left as it is.

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
                _recover(directory)
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
        What the mark says of the files.

    Raises
    ------
    Refusal
        If a file of another has the name of one of these, or the place cannot be written.
    """
    with unwritable(directory):
        clear(directory)
        earlier = manifest.read(directory)
        if earlier is not None:
            _withdraw(directory, earlier)
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
            # The mark comes first: a file that it does not name is nobody's.
            for name in reversed(names):
                (directory / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(whole / name, directory / name)
            _sync(directory)
        finally:
            clear(directory)


def clear(directory: Path) -> None:
    """Remove what a process that was killed in `write_into` has left; for the lock's holder."""
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
            f"the directory {name} is not empty: choose another place, or --fresh to replace "
            "what stages wrote there"
        )
    _refuse_foreign(directory, found, name)
    return False


def _refuse_foreign(directory: Path, found: Manifest, name: str) -> None:
    """Refuse to replace a directory that holds what its mark does not vouch for."""
    for file in (*found.strangers(directory), *found.changed(directory)):
        how = "was changed since" if file in found.files else "is not of what stages wrote there"
        raise Unwritable(
            f"the directory {name} is not empty: {file} in it {how}; move it, or choose another "
            "place"
        )


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
    temporary = Path(tempfile.mkdtemp(dir=directory.parent, prefix=_prefix(directory)))
    try:
        whole = temporary / "new"
        whole.mkdir()
        write(whole)
        _seal(whole, kind, made_of)
        _put(whole, directory)
    finally:
        _discard(temporary)


def _seal(whole: Path, kind: str, made_of: Mapping[str, str]) -> Manifest:
    """Force a new directory to the disk, and mark it as made."""
    found = manifest.describe(whole, kind, made_of)
    manifest.write(found, whole)
    usual = stat.S_IMODE((whole / MANIFEST).stat().st_mode)
    for name in (*found.files, MANIFEST):
        # safetensors makes files that are their owner's alone.
        (whole / name).chmod(usual)
        _sync(whole / name)
    for folder in (*filter(Path.is_dir, whole.rglob("*")), whole):
        _sync(folder)
    return found


def _put(whole: Path, directory: Path) -> None:
    """Put a new directory in its place, from which what stages wrote there before is taken."""
    found = manifest.read(directory) if directory.exists() else None
    if found is None:
        whole.rename(directory)  # over an empty one, if any
        _sync(directory.parent)
        return
    shutil.copymode(directory, whole)
    old = whole if _exchange(whole, directory) else _take_turns(whole, directory)
    try:
        # Nobody finds it any more, so nothing can be put into it behind our back.
        _refuse_foreign(old, found, directory.name)
    except Unwritable:
        if not _exchange(old, directory):
            directory.rename(whole)
            old.rename(directory)
        raise
    _sync(directory.parent)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two directories in one step, where the system and the file system can."""
    try:
        rename = ctypes.CDLL(None, use_errno=True).renameat2
    except (AttributeError, OSError, TypeError):
        return False
    if not sys.platform.startswith("linux"):
        return False
    code = rename(AT_CWD, os.fsencode(one), AT_CWD, os.fsencode(other), EXCHANGE)
    if code and ctypes.get_errno() not in (errno.ENOSYS, errno.EINVAL, errno.ENOTSUP):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()), str(other))
    return code == 0


def _take_turns(whole: Path, directory: Path) -> Path:
    """Rename the one away and the other into its place; return where the one is now.

    Between the two nothing is there. `_recover` puts back what a kill leaves then.
    """
    old = whole.with_name("old")
    directory.rename(old)
    try:
        whole.rename(directory)
    except OSError:
        old.rename(directory)
        raise
    return old


def _recover(directory: Path) -> None:
    """Put back what a killed call had taken out of its place, and remove what else it left."""
    for left in directory.parent.glob(f"{glob.escape(_prefix(directory))}*"):
        if left.is_symlink() or not left.is_dir():
            continue
        parts = {part.name for part in left.iterdir()}
        if parts - {"new", "old"}:
            continue
        if parts == {"new", "old"} and not directory.exists():
            (left / "old").rename(directory)
        _discard(left)


def _discard(temporary: Path) -> None:
    """Remove a temporary directory: what was being written, and what the mark of the old names."""
    for part in ("old", "new"):
        found = manifest.read(temporary / part)
        place = temporary / part
        if found is not None and (found.strangers(place) or found.changed(place)):
            # With its mark, or the next call would take it for what was being written.
            raise Unwritable(f"{temporary} holds files that are not of stages: move them")
        if found is not None:
            _withdraw(temporary / part, found)
        elif (temporary / part).is_dir():
            shutil.rmtree(temporary / part)
    try:
        temporary.rmdir()
    except OSError:
        raise Unwritable(f"{temporary} holds files that are not of stages: move them") from None


def _withdraw(directory: Path, found: Manifest) -> None:
    """Remove the files that the mark of a directory names, the mark last, and empty directories."""
    kept = found.changed(directory)
    for name in found.files:
        if name not in kept:
            (directory / name).unlink(missing_ok=True)
    (directory / MANIFEST).unlink()
    folders = {
        parent for name in (*found.files, MANIFEST) for parent in PurePosixPath(name).parents
    }
    for folder in sorted(folders, key=lambda folder: len(folder.parts), reverse=True):
        with suppress(OSError):
            (directory / folder).rmdir()


def _prefix(directory: Path) -> str:
    return f".{directory.name}.writing-"


def _sync(path: Path) -> None:
    """Force a file or a directory to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        # Some file systems cannot do so with directories.
        with suppress(OSError) if path.is_dir() else nullcontext():
            os.fsync(descriptor)
    finally:
        os.close(descriptor)
