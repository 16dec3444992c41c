"""A local file of data: opened by its very name, unpacked, and read line by line.

Nothing is kept between two readings and no name is a pattern, so that what is named is what is
read. A packed file is unpacked into an unnamed temporary file, which is gone with the program.
"""

import codecs
import gzip
import hashlib
import json
import os
import re
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path
from typing import IO, Any, TypeGuard

from robustness.errors import Refusal, first_line

BLOCK = 2**20
"""Bytes that are read at once."""

LONGEST = 2**28
"""Bytes of the longest line, and of the largest file that does not hold a row a line."""

IN_MEMORY = 2**25
"""Bytes of a packed file that are unpacked into memory; those of a larger one go to the disk."""

MOST_UNPACKED = 2**30
"""Bytes to which a file may unpack whatever its size."""

MOST_RATIO = 100
"""How many times its size a file may unpack to above that; text packs to a tenth, seldom less."""

KINDS = {
    stat.S_IFIFO: "a pipe",
    stat.S_IFSOCK: "a socket",
    stat.S_IFCHR: "a device",
    stat.S_IFBLK: "a device",
    stat.S_IFDIR: "a directory",
}


class Unpacking:
    """A file to which what another holds is unpacked, up to a bound.

    Parameters
    ----------
    file : file
        Where it goes: in memory if it is small, else on the disk.
    name : str
        Of the packed file.
    size : int
        Of the packed file, in bytes.
    """

    def __init__(self, file: IO[bytes], name: str, size: int) -> None:
        self.file, self.name = file, name
        self.limit = max(MOST_UNPACKED, MOST_RATIO * size)
        self.size = 0

    def write(self, block: bytes) -> None:
        """Add some bytes.

        Raises
        ------
        Refusal
            If there are far more than text packs to, or the disk is full.
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


def shown(path: str | Path) -> str:
    """Return a file's base name as it can be printed and recorded, whatever is in it."""
    name = Path(path).name or str(path)
    return "".join(each if each.isprintable() else ascii(each)[1:-1] for each in name)


def expanded(source: str | Path) -> Path:
    """Return a path with `~` replaced, where it can be."""
    return Path(os.path.expanduser(source))


def kind(path: Path) -> int | None:
    """Return what is at a path, as in `stat.S_IFREG`, or None if there is nothing.

    Raises
    ------
    Refusal
        If that cannot be told.
    """
    try:
        return stat.S_IFMT(path.stat().st_mode)
    except (FileNotFoundError, NotADirectoryError, ValueError):
        return None
    except OSError as error:
        raise Refusal(
            f"{shown(path)} cannot be looked at ({error.strerror}): name another"
        ) from error


def open_file(path: Path) -> BufferedReader:
    """Open a file by its very name.

    Raises
    ------
    Refusal
        If it is no file, or cannot be read.
    """
    found = kind(path)
    if found is None:
        raise Refusal(f"there is no file {shown(path)}: name one that is there")
    if found == stat.S_IFREG:
        try:
            # What is there may have become a pipe since, which would wait for a writer.
            file = os.fdopen(os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK), "rb")
        except OSError as error:
            raise Refusal(
                f"{shown(path)} cannot be read ({error.strerror}): see to its permissions"
            ) from error
        found = stat.S_IFMT(os.fstat(file.fileno()).st_mode)
        if found == stat.S_IFREG:
            return file
        file.close()
    raise Refusal(f"{shown(path)} is {KINDS.get(found, 'no file')}: name a file that can be reread")


@contextmanager
def unpacked(file: IO[bytes], name: str) -> Iterator[IO[bytes]]:
    """Unpack an open file of gzip into one without a name, which is gone with the block.

    Raises
    ------
    Refusal
        If it is damaged, or holds far more than text packs to.
    """
    with tempfile.SpooledTemporaryFile(IN_MEMORY) as whole:
        out = Unpacking(whole, name, os.fstat(file.fileno()).st_size)
        try:
            with gzip.GzipFile(fileobj=file, mode="rb") as packed:
                while block := packed.read(BLOCK):
                    out.write(block)
        except (gzip.BadGzipFile, EOFError, zlib.error) as error:
            raise Refusal(
                f"{name} cannot be unpacked ({first_line(error)}): it is damaged or cut off, "
                "copy it again"
            ) from error
        whole.seek(0)
        yield whole


def identity(file: IO[bytes]) -> tuple[int, ...]:
    """Return what changes whenever an open file is written to."""
    found = os.fstat(file.fileno())
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def hash_of(file: BufferedReader) -> Any:
    """Return the SHA-256 of what is in an open file, to be gone on with, and go to its start."""
    file.seek(0)
    digest = hashlib.file_digest(file, "sha256")
    file.seek(0)
    return digest


def lines(file: IO[bytes], name: str, longest: int) -> Iterator[tuple[int, int, bytes]]:
    """Yield the number of each line, from 1, where it begins, and its bytes.

    Raises
    ------
    Refusal
        If a line is longer than it may be.
    """
    number, at = 0, 0
    while line := file.readline(longest + 1):
        number += 1
        if len(line) > longest:
            raise Refusal(
                f"{name}, line {number}, is longer than {longest >> 10} KiB: divide it into several"
            )
        yield number, at, line
        at += len(line)


def decode(line: bytes, name: str, number: int) -> str:
    """Return the text of a line, without the mark that some programs put before the first.

    Raises
    ------
    Refusal
        If it is not UTF-8.
    """
    try:
        return (line.removeprefix(codecs.BOM_UTF8) if number == 1 else line).decode()
    except UnicodeDecodeError as error:
        raise Refusal(
            f"{name} cannot be read as UTF-8 text (line {number}: {error.reason} at byte "
            f"{error.start}): save it as UTF-8"
        ) from error


class NotJson(Refusal):
    """A text that is not JSON."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        names = [name for name, _ in pairs]
        twice = next(name for name in names if names.count(name) > 1)
        raise ValueError(f"{twice[:20]!r} is there twice")
    return found


DECODER = json.JSONDecoder(object_pairs_hook=_once)

SPACE = re.compile(r"[ \t\r\n]*")


def values(text: str, name: str, number: int = 1) -> list[Any]:
    """Return the values of JSON in a text, one after the other.

    Parameters
    ----------
    text : str
        Mostly a line, with one value.
    name, number
        Of the file, and of the line that the text begins in.

    Raises
    ------
    NotJson
        If it is not JSON, has a name twice, or is nested too deeply.
    """
    found = []
    at = SPACE.match(text, 0).end()  # type: ignore[union-attr]
    while at < len(text):
        try:
            value, at = DECODER.raw_decode(text, at)
        except json.JSONDecodeError as error:
            line = number + error.lineno - 1
            problem = f"line {line}, column {error.colno}: {error.msg}"
        except RecursionError:
            problem = f"line {number} is nested too deeply"
        except ValueError as error:
            problem = f"line {number}: {first_line(error)}"
        else:
            found.append(value)
            at = SPACE.match(text, at).end()  # type: ignore[union-attr]
            continue
        raise NotJson(f"{name} cannot be read as json ({problem}): write an object a line")
    return found


def what_is(value: Any) -> str:
    """Return in a word or two what a value of JSON is, for a message."""
    kinds = {str: "a text", bool: "true or false", int: "a number", float: "a number"}
    if isinstance(value, str) and not is_text(value):
        return "half of a surrogate pair"
    if value is None or isinstance(value, bool):
        return str(value)
    return kinds.get(type(value), "a list" if isinstance(value, list) else "an object")


def is_text(value: Any) -> TypeGuard[str]:
    """Whether a value is a text that can be encoded: no half of a surrogate pair is in it."""
    if not isinstance(value, str):
        return False
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


def brief(value: Any) -> str:
    """Return a value of JSON for a message, or what it is where it may be long."""
    plain = value is None or isinstance(value, (str, int, float))
    return (
        repr(value if not isinstance(value, str) else value[:40])[:60] if plain else what_is(value)
    )
