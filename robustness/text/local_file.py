"""Local files of data: opened by exactly their names, and unpacked.

Nothing is cached between two readings and no name is a pattern, so the file that is named is the
one that is read. A packed file is unpacked into an unnamed temporary file, which the system removes
when the program ends.
"""

import gzip
import hashlib
import operator
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import reduce
from io import BufferedReader
from pathlib import Path
from typing import IO, Protocol

from robustness.errors import Refusal, first_line

# What a system lacks is left out: Windows has its own flags.
FLAGS = ("O_CLOEXEC", "O_NONBLOCK", "O_BINARY")

READ_ONLY = reduce(operator.or_, (getattr(os, flag, 0) for flag in FLAGS), os.O_RDONLY)
"""Flags with which a file is opened to be read."""


BLOCK_BYTES = 2**20
"""Number of bytes that are read at once."""

UNPACKED_IN_MEMORY = 2**25
"""Maximum number of bytes that are unpacked into memory; larger files go to the disk."""

UNPACKED_ANYWAY = 2**30
"""Number of bytes to which a file of any size may unpack."""

LARGEST_RATIO = 100
"""Maximum ratio of unpacked to packed bytes beyond that; text seldom packs to below a tenth."""

IRREGULAR_FILES = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


class Unpacking:
    """A file into which another is unpacked, up to a bound.

    Parameters
    ----------
    file : file
        File to write into.
    name : str
        Name of the packed file, for messages.
    size : int
        Size of the packed file in bytes.
    """

    def __init__(self, file: IO[bytes], name: str, size: int) -> None:
        self.file, self.name = file, name
        self.limit = max(UNPACKED_ANYWAY, LARGEST_RATIO * size)
        self.size = 0

    def write(self, block: bytes) -> None:
        """Append unpacked bytes.

        Raises
        ------
        Refusal
            If the file unpacks to far more than text does, or the disk is full.
        """
        self.size += len(block)
        if self.size > self.limit:
            raise Refusal(
                f"{self.name} unpacks to more than {self.limit >> 20} MiB, far more than text "
                "does: if that is meant, unpack it and name what comes out"
            )
        try:
            self.file.write(block)
        except OSError as error:
            raise Refusal(
                f"{self.name} cannot be unpacked ({error.strerror}): make room, or set TMPDIR to a "
                "directory that can be written and has room"
            ) from error


def printable_name(path: str | Path) -> str:
    """Return a file's base name with escapes for letters that cannot be printed."""
    name = Path(path).name or str(path)
    return "".join(letter if letter.isprintable() else ascii(letter)[1:-1] for letter in name)


def expanded(source: str | Path) -> Path:
    """Return a path with `~` replaced, where it can be."""
    return Path(os.path.expanduser(source))


def file_kind(path: Path) -> int | None:
    """Return the type of the file at a path, as in `stat.S_IFREG`, or None if there is none.

    Raises
    ------
    Refusal
        If the system does not say.
    """
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise Refusal(
            f"{printable_name(path)} cannot be looked at ({error.strerror}): name another"
        ) from error


def open_file(path: Path) -> BufferedReader:
    """Open a regular file by exactly its name.

    Raises
    ------
    Refusal
        If it is not a regular file, or cannot be read.
    """
    kind = file_kind(path)
    if kind is None:
        raise Refusal(f"there is no file {printable_name(path)}: name one that exists")
    if kind == stat.S_IFREG:
        try:
            # The file may have become a pipe since it was looked at, and opening a pipe would wait
            # for a writer.
            file = os.fdopen(os.open(path, READ_ONLY), "rb")
        except OSError as error:
            raise Refusal(
                f"{printable_name(path)} cannot be read ({error.strerror}): check its permissions"
            ) from error
        kind = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
        if kind == stat.S_IFREG:
            return file
        file.close()
    raise Refusal(
        f"{printable_name(path)} is {IRREGULAR_FILES.get(kind, 'no file')}: name a file that can "
        "be reread"
    )


@contextmanager
def unpacked(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """Unpack an open gzip file into an unnamed one, which exists until the block ends.

    Raises
    ------
    Refusal
        If it is damaged, or unpacks to far more than text does.
    """
    with tempfile.SpooledTemporaryFile(UNPACKED_IN_MEMORY) as whole:
        out = Unpacking(whole, name, os.fstat(file.fileno()).st_size)
        try:
            with gzip.GzipFile(fileobj=file, mode="rb") as packed:
                # Block by block, so that the bound holds before all of it is unpacked.
                while block := packed.read(BLOCK_BYTES):
                    out.write(block)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Refusal(
                f"{name} cannot be unpacked ({first_line(error)}): it is damaged or cut off, "
                "copy it again"
            ) from error
        whole.seek(0)
        yield whole


def file_state(file: IO[bytes]) -> tuple[int, ...]:
    """Return numbers of an open file, one of which changes whenever it is written to."""
    status = os.fstat(file.fileno())
    return status.st_ino, status.st_size, status.st_mtime_ns, status.st_ctime_ns


class Digest(Protocol):
    """A hash that can be updated, as those of hashlib."""

    def update(self, data: bytes, /) -> None:
        """Hash further bytes."""

    def hexdigest(self) -> str:
        """Return the hash so far."""


def hash_file(file: BufferedReader) -> Digest:
    """Return the SHA-256 of an open file's bytes, which can be updated, and rewind the file."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256")
    file.seek(0)
    return digest
