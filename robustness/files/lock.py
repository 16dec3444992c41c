"""Locks of outputs, so that one run at a time writes a file; its end releases the lock.

The operating system locks a hidden file beside the output, which names the holder. A process that
is killed leaves the file but no lock. Another user's file can be locked too, if it can be read.
Where the system or the file system has no such locks, or the directory takes no file, there is no
lock, and runs are not kept apart.
"""

import errno
import os
import re
import socket
import stat
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from robustness.errors import InUse, Unwritable
from robustness.files.ownership import follow

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]

HOLDER = re.compile(rb"(process \d+ on [^\n]*)?")
"""Content of a lock's file: its holder, or nothing if the holder was killed at once."""

OPENED = getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)
"""Flags for opening a lock: a link is not followed, and a pipe not waited for."""

_held: set[Path] = set()
"""Paths of the locks that this process holds."""


class Lock:
    """Lock of an output, held until `release`, or until nothing refers to it.

    Parameters
    ----------
    path : path
        Path of the output, which need not exist. If it is a link, its target is locked.

    Attributes
    ----------
    held : bool
        Whether there is a lock; some systems have none.

    Raises
    ------
    InUse
        If another run holds it.
    Unwritable
        If another file has the name of the lock.
    """

    def __init__(self, path: Path) -> None:
        file = _beside(path)
        made = [parent for parent in file.parents if not parent.exists()]
        descriptor = _acquire(file, path)
        self.held = descriptor is not None
        if self.held:
            _held.add(file.absolute())
        self._release = weakref.finalize(self, _give_back, descriptor, file, made, os.getpid())

    def release(self) -> None:
        """Release the output, and leave nothing beside it."""
        self._release()

    def __enter__(self) -> "Lock":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.release()


def is_held(path: Path) -> bool:
    """Whether this process holds the lock of an output."""
    return _beside(path).absolute() in _held


def _beside(path: Path) -> Path:
    place = follow(path)
    return place.with_name(f".{place.name}.lock")


def _acquire(file: Path, path: Path) -> int | None:
    """Return the descriptor of a locked file, or None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        descriptor = _open(file, path)
        if descriptor is None:
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            content = os.pread(descriptor, 200, 0)
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                os.close(descriptor)
                holder = content.decode(errors="replace") or "another run"
                raise InUse(
                    f"{path} is being written by {holder}: wait for it or end it, or choose "
                    "another place"
                ) from None
            os.close(descriptor)
            if error.errno == errno.EBADF:  # a network's file system locks what can be written
                raise _of_another(file, path) from None
            if not content:  # nobody's, like every lock where the system has none
                with suppress(OSError):
                    file.unlink()
            return None
        # Its holder may have removed the file between our opening and our locking it.
        if _is_same(descriptor, file):
            with suppress(OSError):  # of another user, or on a full disk, it is still a lock
                os.ftruncate(descriptor, 0)
                os.pwrite(
                    descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0
                )
            return descriptor
        os.close(descriptor)


def _of_another(file: Path, path: Path) -> InUse:
    return InUse(
        f"{path} may be being written by another user, whose {file.name} cannot be locked: have it "
        "removed, or choose another place"
    )


def _open(file: Path, path: Path) -> int | None:
    """Open the file of a lock, and make it if need be; None where it cannot be made.

    Raises
    ------
    InUse
        If the file is another user's and cannot be read.
    Unwritable
        If the file is not that of a lock.
    """
    no_lock = f"{file} is not the lock of {path.name} that stages makes: move it, or choose another"
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | OPENED, 0o644)
    except OSError:
        if not os.path.lexists(file):  # the writing of the output will say why
            return None
        try:
            # Of another user, who may hold it.
            descriptor = os.open(file, os.O_RDONLY | OPENED)
        except FileNotFoundError:
            return _open(file, path)
        except OSError as error:
            if error.errno == errno.EACCES:
                raise _of_another(file, path) from None
            raise Unwritable(f"{no_lock} place") from None
    # A user's file must not be taken for a lock, whose content is replaced.
    status = os.fstat(descriptor)
    ours = stat.S_ISREG(status.st_mode) and status.st_nlink <= 1 and status.st_size <= 1000
    if not ours or not HOLDER.fullmatch(os.pread(descriptor, 1000, 0)):
        os.close(descriptor)
        raise Unwritable(f"{no_lock} place")
    return descriptor


def _give_back(descriptor: int | None, file: Path, made: list[Path], owner: int) -> None:
    """Remove the file, and the directories made for it that are empty, and unlock it."""
    if descriptor is None:
        return
    # A forked child shares the lock, which stays its parent's.
    if os.getpid() == owner:
        _held.discard(file.absolute())
        with suppress(OSError):
            file.unlink()
            for directory in made:
                directory.rmdir()
    os.close(descriptor)


def _is_same(descriptor: int, file: Path) -> bool:
    """Whether a path still names the file that was opened."""
    try:
        named, opened = os.lstat(file), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (named.st_dev, named.st_ino) == (opened.st_dev, opened.st_ino)
