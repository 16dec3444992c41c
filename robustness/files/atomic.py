"""Files replaced as a whole: an interruption leaves the old file or the new one.

A file is written to a temporary neighbour, forced to the disk and renamed.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

from robustness.errors import InUse, Unwritable, first_line
from robustness.files import ownership
from robustness.files.lock import Lock, is_held
from robustness.files.ownership import follow

REMEDIES = {
    errno.ENOSPC: "make room",
    errno.EDQUOT: "make room",
    errno.EFBIG: "raise the limit on the size of files",
    errno.EACCES: "have writing permitted",
    errno.EPERM: "have writing permitted",
    errno.EROFS: "mount it for writing",
    errno.EEXIST: "move the file that stands where a directory would be",
    errno.ENOTDIR: "move the file that stands where a directory would be",
    errno.EISDIR: "move the directory that has its name",
    errno.ENAMETOOLONG: "give it a shorter name",
}
"""Remedy where a file cannot be written, by the error's number."""


def write_whole(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file by way of a temporary neighbour, so that `path` is never half-written.

    The caller holds the lock of the output. If `path` is a link, its target is written.

    Parameters
    ----------
    path : path
        Path of the file to write.
    write : callable
        Function that writes the content to the temporary path that it is given.

    Raises
    ------
    Unwritable
        If the directory cannot be written, or if the file to be replaced was not written by
        stages or is of another kind.
    """
    with temporary_file(path) as temporary:
        place = follow(path)
        write(temporary)
        # Before the renaming, or a power cut could leave the new name on an empty file.
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        # Checked last, since another program may have put a file there while this one was written.
        ownership.check(path, ownership.kind(temporary, path.suffix))
        os.replace(temporary, place)
        _sync(place.parent)


def write_with_lock(path: Path, write: Callable[[Path], object]) -> None:
    """Write a file as `write_whole` does, under a lock of its own if the caller has none."""
    with nullcontext() if is_held(path) else Lock(path):
        # Where the system has no locks, a temporary file may be that of a process that still runs.
        if is_held(path):
            remove_leftovers(path)
        write_whole(path, write)


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of processes that were killed while they wrote a file.

    Only the holder of the output's lock may call this. Files of other users that may not be removed
    stay.
    """
    for leftover in ownership.leftovers(path):
        with suppress(OSError):
            leftover.unlink(missing_ok=True)


def remove_leftovers_with_lock(path: Path) -> None:
    """Remove the temporary files and the lock of a file that no run is writing."""
    if path.parent.is_dir() and not is_held(path):
        with suppress(InUse), Lock(path) as lock:
            if lock.held:
                remove_leftovers(path)


@contextmanager
def temporary_file(path: Path) -> Iterator[Path]:
    """Make an empty file beside another, and refuse a place that cannot be written."""
    temporary = ownership.temporary(follow(path))
    try:
        temporary.parent.mkdir(parents=True, exist_ok=True)
        # Exclusively, so that it is nobody else's file and no link, even in a shared directory.
        os.close(os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o666))
        yield temporary
    except (OSError, RuntimeError) as error:
        reason = _reason(error, temporary)
        raise Unwritable(f"{path} cannot be written {reason}, or choose another place") from error
    finally:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)


def _sync(directory: Path) -> None:
    """Force the entries of a directory to the disk, where that is possible."""
    # A rename changes the directory, which has a place of its own on the disk.
    with suppress(OSError):
        descriptor = os.open(directory, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _reason(error: BaseException, temporary: Path) -> str:
    """Return why a file cannot be written, and a remedy.

    The NetCDF library reports a full disk as an error of its own, and a read-only one as a lack of
    permission, so writing is tried again without that library.
    """
    if not isinstance(error, OSError) or error.errno in (None, errno.EACCES):
        try:
            with temporary.open("ab", buffering=0) as file:
                file.write(bytes(2**20))
                os.fsync(file.fileno())
        except OSError as cause:
            error = cause
    if not isinstance(error, OSError) or error.errno not in REMEDIES:
        return f"({first_line(error)}): mend that"
    return f"({os.strerror(error.errno or 0)}): {REMEDIES[error.errno or 0]}"
