"""One run at a time into an output: a lock that its holder's end releases, however it ends.

The lock is the operating system's, on a hidden file beside the output that says who holds it. A
process that is killed leaves the file, and no lock. Where the system or the file system has no
such locks, or the directory cannot be written, there is none, and runs are not kept apart.
"""

import errno
import os
import socket
import weakref
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from robustness.refusal import InUse

try:
    import fcntl
except ImportError:  # not a POSIX system
    fcntl = None  # type: ignore[assignment]


class Lock:
    """The lock of an output, held from here on until `release`, or until nothing refers to it.

    Parameters
    ----------
    path : path
        The output; it need not be there.

    Attributes
    ----------
    held : bool
        Whether there is a lock at all; see the module.

    Raises
    ------
    InUse
        If another run holds it.
    """

    def __init__(self, path: Path) -> None:
        file = path.with_name(f".{path.name}.lock")
        made = [parent for parent in file.parents if not parent.exists()]
        descriptor = _acquire(file, path)
        self.held = descriptor is not None
        self._release = weakref.finalize(self, _give_back, descriptor, file, made, os.getpid())

    def release(self) -> None:
        """Let others have the output; nothing is left beside it."""
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


def _acquire(file: Path, path: Path) -> int | None:
    """Return the descriptor of a locked file, or None where there are no locks."""
    if fcntl is None:
        return None
    while True:
        try:
            file.parent.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError:  # what is written there will say why
            return None
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno in (errno.EWOULDBLOCK, errno.EACCES):
                holder = _holder(descriptor)
                os.close(descriptor)
                raise InUse(
                    f"{path} is being written by {holder}: wait for it or end it, or choose "
                    "another place"
                ) from None
            os.close(descriptor)
            with suppress(OSError):
                file.unlink()
            return None
        # Its holder may have removed the file between our opening and our locking it.
        if _is_same(descriptor, file):
            with suppress(OSError):  # on a full disk it is still a lock
                os.ftruncate(descriptor, 0)
                os.pwrite(
                    descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode(), 0
                )
            return descriptor
        os.close(descriptor)


def _give_back(descriptor: int | None, file: Path, made: list[Path], owner: int) -> None:
    """Remove the file, and the directories made for it that are empty, and unlock it."""
    if descriptor is None:
        return
    # A forked child shares the lock, which stays its parent's.
    if os.getpid() == owner:
        with suppress(OSError):
            file.unlink()
            for directory in made:
                directory.rmdir()
    os.close(descriptor)


def _is_same(descriptor: int, file: Path) -> bool:
    try:
        there, ours = os.stat(file), os.fstat(descriptor)
    except FileNotFoundError:
        return False
    return (there.st_dev, there.st_ino) == (ours.st_dev, ours.st_ino)


def _holder(descriptor: int) -> str:
    return os.pread(descriptor, 200, 0).decode(errors="replace") or "another run"
